"""Serve's config: what must change in place stands under `deployments`, what restarts engines stands nowhere else."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reasonscale.api.load import load_models
from reasonscale.api.resolve import Resolved, resolve
from reasonscale.serving.config import INGRESS, deployment_name, serve_app, serve_config
from reasonscale.serving.settings import ModelSettings, settings_of

EXAMPLE = Path(__file__).parents[3] / "examples" / "micro-reasoner.yaml"


@pytest.fixture(scope="module")
def model() -> Resolved:
    return resolve(load_models(EXAMPLE)[0], EXAMPLE.parent)


def without_deployments(app: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in copy.deepcopy(app).items() if k != "deployments"}


def test_replicas_budgets_and_drain_change_only_what_serve_applies_in_place(model: Resolved) -> None:
    before = serve_app([model], {model.name: 1}, local=True)
    reasoning = replace(model.reasoning, budget_default=77, expose="Hidden")
    after = serve_app([replace(model, reasoning=reasoning, drain_s=900.0)], {model.name: 3}, local=True)
    assert without_deployments(before) == without_deployments(after)
    [server] = [d for d in after["deployments"] if d["name"] == deployment_name(model)]
    assert server["num_replicas"] == 3
    assert server["graceful_shutdown_timeout_s"] == 900.0
    assert server["user_config"]["budget_default"] == 77
    [ingress] = [d for d in after["deployments"] if d["name"] == INGRESS]
    assert ingress["user_config"]["models"][model.served_name]["hidden"] is True
    assert ingress["num_replicas"] == 1


def test_a_long_chain_outlives_every_timeout(model: Resolved) -> None:
    app = serve_app([replace(model, drain_s=7200.0)], {model.name: 1}, local=True)
    assert all(d["graceful_shutdown_timeout_s"] == 7200.0 for d in app["deployments"])
    for env in (app["runtime_env"]["env_vars"], app["args"]["models"][0]["env"], app["args"]["ingress"]["env"]):
        assert int(env["RAY_SERVE_LLM_ROUTER_HTTP_TIMEOUT"]) >= 86_400


def test_the_config_is_json_and_names_one_import_path(model: Resolved) -> None:
    config = serve_config(serve_app([model], {model.name: 1}, local=True), host="127.0.0.1", port=8000)
    assert json.loads(json.dumps(config))["applications"][0]["import_path"] == "reasonscale.serving.app:build"
    assert config["http_options"]["host"] == "127.0.0.1"


def test_several_models_share_one_application_and_one_ingress(model: Resolved) -> None:
    other = replace(model, name="other", served_name="org/other-1.5")
    app = serve_app([model, other], {model.name: 1, "other": 2}, local=True)
    names = [d["name"] for d in app["deployments"]]
    assert names == ["LLMServer:micro-reasoner", "LLMServer:org--other-1_5", INGRESS]
    assert [d["num_replicas"] for d in app["deployments"]] == [1, 2, 1]
    assert set(app["deployments"][-1]["user_config"]["models"]) == {"micro-reasoner", "org/other-1.5"}
    assert app["name"] == "reasonscale"


def test_only_a_local_engine_is_told_to_run_on_this_machines_cpu(model: Resolved) -> None:
    local = serve_app([model], {model.name: 1}, local=True)["args"]["models"][0]
    cluster = serve_app([model], {model.name: 1}, local=False, gpus=True)["args"]["models"][0]
    assert local["gpus"] == 0
    assert local["env"]["REASONSCALE_LOOPBACK"] == "1"
    assert cluster["gpus"] == model.gpus_per_replica
    assert not set(cluster["env"]) & {"REASONSCALE_LOOPBACK", "HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE"}


def test_settings_come_back_from_json_as_they_went(model: Resolved) -> None:
    told = settings_of(model)
    assert ModelSettings.from_json(json.loads(json.dumps(told.to_json()))) == told


def test_only_weights_that_lie_here_keep_an_engine_from_the_hub(model: Resolved) -> None:
    def env_of(m: Resolved) -> dict[str, str]:
        return dict(serve_app([m], {m.name: 1}, local=True)["args"]["models"][0]["env"])

    assert env_of(replace(model, model_source="/models/x"))["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in env_of(replace(model, model_source="Qwen/QwQ-32B"))
