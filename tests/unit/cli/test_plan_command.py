"""`reasonscale plan`: what a resource takes and gives, in numbers that follow from its fields."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reasonscale.cli.main import run
from reasonscale.profiles.library import load
from reasonscale.simulator.policies.base import Static
from reasonscale.simulator.run import Options, setting_of
from reasonscale.simulator.run import run as simulated
from reasonscale.simulator.sustained import requests_per_s
from reasonscale.simulator.workload import make

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_a_32b_on_two_gpus(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert run(["plan", str(EXAMPLES / "r1-distill-qwen-32b.yaml"), "--json", str(out)]) == 0
    (found,) = json.loads(out.read_text())
    assert found["profile"] == "qwen2-32b-h200"
    assert found["gpus_least"] % 2 == 0
    assert found["gpus_most"] >= found["gpus_least"]
    assert found["chains_of_default_budget"] >= found["chains_of_largest_budget"] > 0
    # Not what the objective for a token allows, requests / 45 ms, but what a step of so many takes.
    assert found["tokens_per_s"] == pytest.approx(found["requests_at_once"] / (found["step_ms"] / 1e3), rel=1e-3)
    assert found["step_ms"] < 45
    assert 100 < found["tokens_per_s_within_objectives"] < found["tokens_per_s"]
    said = capsys.readouterr().out
    assert "since R1-Distill-Qwen-32B's weights are nearest" in said
    assert "chains of the default budget" in said
    assert "supposed: a step on 2 GPUs takes what it took on 1" in said
    assert "NVIDIA-H100-80GB-HBM3 is as fast as the profile's H200" in said
    assert "max_num_batched_tokens 384 suits the objectives better than 2048" in said
    assert found["max_num_batched_tokens"] == 384


def test_the_speed_follows_the_gpu_and_the_profile_is_that_of_the_gpu_where_there_is_one(capsys, tmp_path):
    found = {}
    for gpu in ("h200", "h100"):
        out = tmp_path / gpu
        example = str(EXAMPLES / "r1-distill-qwen-7b.yaml")
        assert run(["plan", example, "--profile", f"qwen2-7b-{gpu}", "--json", str(out)]) == 0
        (found[gpu],) = json.loads(out.read_text())
    assert found["h200"]["requests_at_once"] == found["h100"]["requests_at_once"]
    assert found["h200"]["tokens_per_s"] != found["h100"]["tokens_per_s"]
    assert all(row["tokens_per_s"] > 1.5 * row["requests_at_once"] / 0.045 for row in found.values())
    capsys.readouterr()
    unnamed = tmp_path / "m.yaml"
    unnamed.write_text(Path(example).read_text().replace(", profile: qwen2-7b-h100", ""))
    assert run(["plan", str(unnamed)]) == 0
    said = capsys.readouterr().out
    assert "profile qwen2-7b-h100, since" in said
    assert "supposed" not in said


def test_one_replica_keeps_the_objectives_at_the_load_that_is_said_and_not_far_above(tmp_path):
    profile, options, lengths = load("qwen2-7b-h200"), Options(), (500, 3000, 500)
    rate = requests_per_s(profile, options, 5.0, 100, lengths, 0.99)
    options = replace(options, max_replicas=1, router="gated")

    def met(rate):
        t = np.cumsum(np.random.default_rng(7).exponential(1 / rate, 3000))
        work = make("other draws", t, *(np.full(3000, n) for n in lengths))
        return simulated(work, profile, Static(setting_of(work, profile, options), {"replicas": 1}), options).attainment

    assert met(0.9 * rate) >= 0.99
    assert met(1.15 * rate) < 0.99


def test_no_gpu_s_speed_is_said_of_the_bundled_model(capsys, tmp_path):
    out = tmp_path / "plan.json"
    assert run(["plan", str(EXAMPLES / "micro-reasoner.yaml"), "--json", str(out)]) == 0
    (found,) = json.loads(out.read_text())
    assert found["profile"] is found["tokens_per_s"] is None
    said = capsys.readouterr().out
    assert "at least 1 GPU (1 x 1)" in said
    assert "its speed is not known" in said


def test_of_a_model_that_nobody_knows_nothing_is_guessed(capsys, tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text((EXAMPLES / "qwq-32b.yaml").read_text().replace("Qwen/QwQ-32B", "someone/thing"))
    assert run(["plan", str(path)]) == 0
    said = capsys.readouterr().out
    assert "the model's size is not known, so neither is its speed" in said
    assert "the size of its KV cache is not known" in said


@pytest.mark.parametrize("file", sorted(p.name for p in EXAMPLES.glob("*.yaml")))
def test_every_example_has_a_plan(file, capsys):
    assert run(["plan", str(EXAMPLES / file)]) == 0
    assert "KV cache holds" in capsys.readouterr().out


def test_a_trace_is_played_by_policy(tmp_path, capsys):
    rows = [f"{i * 0.5},50,{300 + 10 * (i % 40)},60" for i in range(200)]
    trace = tmp_path / "mine.csv"
    trace.write_text("t,input,reasoning,answer\n" + "\n".join(rows) + "\n")
    out = tmp_path / "plan.json"
    example = str(EXAMPLES / "r1-distill-qwen-32b.yaml")
    assert run(["plan", example, "--trace", str(trace), "--json", str(out)]) == 0
    (found,) = json.loads(out.read_text())
    assert found["policies"]["reasonscale"]["gpu_hours"] > 0
    assert any(name.startswith("static ") for name in found["policies"])
    assert "of requests within" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.yaml"], "nothing.yaml"),
        ([str(EXAMPLES / "qwq-32b.yaml"), "--profile", "b200"], "profile 'b200': no such name or file"),
        ([str(EXAMPLES / "qwq-32b.yaml"), "--trace", "none"], "trace 'none': no such name"),
    ],
)
def test_wrong_input_is_said_in_words(arguments, said, capsys):
    assert run(["plan", *arguments]) == 2
    assert said in capsys.readouterr().err
