"""`reasonscale plan`: what a resource takes and gives, in numbers that follow from its fields."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reasonscale.cli.main import run

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_a_32b_on_two_gpus(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert run(["plan", str(EXAMPLES / "r1-distill-qwen-32b.yaml"), "--json", str(out)]) == 0
    (found,) = json.loads(out.read_text())
    assert found["profile"] == "qwen2-32b-h200"
    assert found["gpus_least"] % 2 == 0
    assert found["gpus_most"] >= found["gpus_least"]
    assert found["chains_of_default_budget"] >= found["chains_of_largest_budget"] > 0
    assert found["tokens_per_s_within_objectives"] > 100
    said = capsys.readouterr().out
    assert "since R1-Distill-Qwen-32B's weights are nearest" in said
    assert "chains of the default budget" in said
    assert "max_num_batched_tokens 384 suits the objectives better than 2048" in said
    assert found["max_num_batched_tokens"] == 384


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
