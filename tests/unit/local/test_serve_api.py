"""The local actuator speaks Serve's API and reads replicas as a fleet."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from reasonscale.api.load import load_models
from reasonscale.api.resolve import ResolvedSleep, resolve
from reasonscale.local.app import _trouble
from reasonscale.local.serve_api import AppState, ServeActuator, ServeApi, ServeError
from reasonscale.scaling.types import Fleet
from reasonscale.serving.config import deployment_name, serve_app, serve_config
from reasonscale.serving.settings import ModelSettings, settings_of

EXAMPLE = Path(__file__).parents[3] / "examples" / "micro-reasoner.yaml"
MODEL = resolve(load_models(EXAMPLE)[0], EXAMPLE.parent)


class Serve:
    """A played dashboard: keeps what was put, and answers with the states it is given."""

    def __init__(self) -> None:
        self.puts: list[dict[str, Any]] = []
        self.replicas: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            self.puts.append(json.loads(request.content))
            return httpx.Response(200)
        deployments = {deployment_name(MODEL): {"message": "", "replicas": self.replicas}}
        return httpx.Response(
            200,
            json={"applications": {"micro-reasoner": {"status": "RUNNING", "message": "", "deployments": deployments}}},
        )


async def deployed(serve: Serve) -> tuple[ServeApi, ServeActuator]:
    api = ServeApi("http://ray", "token", httpx.MockTransport(serve))
    await api.put(serve_config(serve_app([MODEL], {MODEL.name: 1}, local=True), host="127.0.0.1", port=8000))
    return api, ServeActuator(api, "micro-reasoner", deployment_name(MODEL), 1)


async def test_a_new_number_changes_nothing_else_of_the_config() -> None:
    serve = Serve()
    _, actuator = await deployed(serve)
    await actuator.set_replicas(3)
    before, after = serve.puts
    assert after["applications"][0]["deployments"][0].pop("num_replicas") == 3
    assert before["applications"][0]["deployments"][0].pop("num_replicas") == 1
    assert before == after


async def test_a_model_that_may_sleep_is_told_zero_in_a_form_that_serve_wakes_from_and_nothing_else_changes() -> None:
    sleeps = replace(MODEL, min_replicas=0, sleep=ResolvedSleep(900.0, 100, 2**26, 600.0))
    serve = Serve()
    api = ServeApi("http://ray", "token", httpx.MockTransport(serve))
    await api.put(serve_config(serve_app([sleeps], {sleeps.name: 1}, local=True), host="127.0.0.1", port=8000))
    actuator = ServeActuator(api, "micro-reasoner", deployment_name(sleeps), 1)
    for n in (0, 2, 1):
        await actuator.set_replicas(n)
    numbers = [put["applications"][0]["deployments"][0].pop("autoscaling_config") for put in serve.puts]
    assert [(x["min_replicas"], x["max_replicas"]) for x in numbers] == [(1, 1), (0, 1), (2, 2), (1, 1)]
    assert all(put == serve.puts[0] for put in serve.puts)
    serve.replicas = []
    await actuator.set_replicas(0)
    assert await actuator.fleet() == Fleet(target=0, ready=0, emptied=())


async def test_the_ingress_alone_is_told_which_replicas_are_emptied_and_the_number_stays() -> None:
    serve = Serve()
    _, actuator = await deployed(serve)
    await actuator.set_replicas(2)
    await actuator.empty(("a",), ())
    assert (await actuator.fleet()).emptied == ("a",)
    before, after = serve.puts[1:]
    told = after["applications"][0]["deployments"][-1]["user_config"]
    assert told.pop("emptied") == {deployment_name(MODEL): ["a"]}
    assert before == after
    await actuator.empty((), ())
    assert serve.puts[-1] == before


async def test_the_ingress_alone_is_told_which_replicas_sleep() -> None:
    serve = Serve()
    _, actuator = await deployed(serve)
    before = serve.puts[-1]
    await actuator.empty(("a", "b"), ("b",))
    fleet = await actuator.fleet()
    assert (fleet.emptied, fleet.asleep) == (("a", "b"), ("b",))
    told = serve.puts[-1]["applications"][0]["deployments"][-1]["user_config"]
    assert told["emptied"] == {deployment_name(MODEL): ["a", "b"]}
    assert told["asleep"] == {deployment_name(MODEL): ["b"]}
    await actuator.empty((), ())
    assert serve.puts[-1] == before


async def test_replicas_are_read_by_their_states() -> None:
    serve = Serve()
    _, actuator = await deployed(serve)
    await actuator.set_replicas(3)
    serve.replicas = [
        {"replica_id": "a", "state": "RUNNING"},
        {"replica_id": "b", "state": "STARTING"},
        {"replica_id": "c", "state": "STOPPING"},
    ]
    fleet = await actuator.fleet()
    assert (fleet.target, fleet.ready, len(fleet.starting_s), fleet.draining) == (3, 1, 2, 1)


async def test_a_refusal_is_told_in_serves_words() -> None:
    api = ServeApi("http://ray", None, httpx.MockTransport(lambda r: httpx.Response(400, text="no such deployment")))
    with pytest.raises(ServeError, match="answered 400: no such deployment"):
        await api.put({})


async def test_a_dashboard_that_is_gone_is_said() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(ServeError, match="did not answer"):
        await ServeApi("http://ray", None, httpx.MockTransport(refuse)).state("x")


def test_settings_survive_the_way_through_json() -> None:
    settings = settings_of(MODEL)
    assert ModelSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_budgets_travel_where_a_change_restarts_no_engine() -> None:
    app = serve_app([MODEL], {MODEL.name: 1}, local=True)
    assert "budget_default" not in json.dumps(app["args"])
    assert all("user_config" in d for d in app["deployments"])


def test_an_engine_that_fails_is_quoted() -> None:
    trace = "The deployment failed to start 3 times in a row.\nTraceback (most recent call last):\n  File x\nValueError: no room for one sequence\n"
    assert _trouble(AppState("DEPLOY_FAILED", trace, {}, {})) == "ValueError: no room for one sequence"
    assert _trouble(AppState("DEPLOYING", "", {}, {})) is None


async def test_what_ran_on_a_ray_of_others_is_taken_away_again() -> None:
    serve = Serve()
    api, _ = await deployed(serve)
    assert await api.applications() == ["micro-reasoner"]
    await api.remove_all()
    assert serve.puts[-1]["applications"] == []


async def test_nothing_is_taken_away_where_nothing_was_deployed() -> None:
    serve = Serve()
    await ServeApi("http://ray", None, httpx.MockTransport(serve)).remove_all()
    assert serve.puts == []


def test_engines_take_gpus_where_there_are_some() -> None:
    on_cpu = serve_app([MODEL], {MODEL.name: 1}, local=True)["args"]["models"][0]
    on_gpu = serve_app([MODEL], {MODEL.name: 1}, local=True, gpus=True)["args"]["models"][0]
    assert (on_cpu["gpus"], on_gpu["gpus"]) == (0, 1)
    assert "VLLM_CPU_KVCACHE_SPACE" in on_cpu["env"]
    assert "VLLM_CPU_KVCACHE_SPACE" not in on_gpu["env"]
    assert on_gpu["env"]["REASONSCALE_LOOPBACK"] == "1"


async def test_two_models_that_change_at_once_both_keep_their_number() -> None:
    puts: list[dict[str, Any]] = []

    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.01)
        puts.append(json.loads(request.content))
        return httpx.Response(200)

    api = ServeApi("http://ray", None, httpx.MockTransport(slow))
    deployments = [{"name": "a", "num_replicas": 1}, {"name": "b", "num_replicas": 1}]
    await api.put({"applications": [{"name": "reasonscale", "deployments": deployments}]})
    await asyncio.gather(api.set_replicas("reasonscale", "a", 3), api.set_replicas("reasonscale", "b", 4))
    assert [d["num_replicas"] for d in puts[-1]["applications"][0]["deployments"]] == [3, 4]
