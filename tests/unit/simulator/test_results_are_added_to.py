"""Results of the benchmark: a command adds its runs, loses none that are there, and resumes only what was cut short."""

from __future__ import annotations

import json

import pytest
from bench import ablations, autoscalers

JOB = ("rag", "hpa", "{}", 120.0, 1, "")


@pytest.fixture
def counted(monkeypatch, tmp_path):
    ran = []

    def one(job):
        ran.append(job)
        return {"key": autoscalers.key(job), "gpu_hours": len(ran)}

    class Now:
        def __init__(self, processes):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, call, job):
            from concurrent.futures import Future

            future = Future()
            future.set_result(call(job))
            return future

    monkeypatch.setattr(autoscalers, "one", one)
    monkeypatch.setattr(autoscalers, "ProcessPoolExecutor", Now)
    return ran


def test_what_was_run_before_an_interruption_is_not_run_again(counted, tmp_path):
    keep = tmp_path / "some.jsonl"
    autoscalers.do([JOB], keep, 1)
    again = autoscalers.do([JOB, ("agents", *JOB[1:])], keep, 1)
    assert [job[0] for job in counted] == ["rag", "agents"]
    assert [row["gpu_hours"] for row in again] == [1, 2]


def _row(trace, named, params, hours):
    job = (trace, named, json.dumps(params), 120.0, 1, "")
    return {"key": autoscalers.key(job), "trace": trace, "named": named, "params": params, "gpu_hours": hours}


def test_runs_that_are_there_stay_and_the_same_ones_are_replaced(tmp_path):
    results = tmp_path / "some.json"
    autoscalers.added(results, [_row("rag", "hpa", {}, 1.0), _row("agents", "hpa", {}, 2.0)], {}, "full --seeds 1")
    held = autoscalers.added(results, [_row("rag", "hpa", {}, 3.0)], {}, "full --traces rag --seeds 1 --out some")
    assert {r["trace"]: r["gpu_hours"] for r in held} == {"rag": 3.0, "agents": 2.0}
    kept = json.loads(results.read_text())
    assert kept["runs"] == held
    assert kept["header"]["command"] == "full --out some, each run by its key"


def test_a_rival_that_is_tuned_otherwise_now_is_left_out(tmp_path):
    results = tmp_path / "some.json"
    autoscalers.added(results, [_row("rag", "hpa", {"target": 4}, 1.0)], {"hpa": {"target": 4}}, "full")
    held = autoscalers.added(results, [_row("rag", "hpa", {"target": 8}, 2.0)], {"hpa": {"target": 8}}, "full")
    assert [r["params"] for r in held] == [{"target": 8}]


def test_ablations_of_one_trace_leave_those_of_the_others(tmp_path):
    results = tmp_path / "ablations.json"
    before = {"runs": [_variant("rag", 1.0), _variant("agents", 2.0)], "behind_our_router": [_variant("rag", 4.0)]}
    results.write_text(json.dumps(before))
    held = ablations.added(results, {"runs": [_variant("rag", 3.0)], "behind_our_router": []})
    assert held == {"runs": [_variant("rag", 3.0), _variant("agents", 2.0)], "behind_our_router": []}


def _variant(trace, hours):
    return {"trace": trace, "variant": "ours", "gpu_hours": hours}
