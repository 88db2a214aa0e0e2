"""Traces that a benchmark is asked for and that are not there are said before anything runs."""

from __future__ import annotations

import sys

import pytest
from bench import ablations, autoscalers, hour, routers

from reasonscale.simulator import traces, workload


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (autoscalers.main, ["full", "--traces", "rag,r1-0-12h"]),
        (ablations.main, ["--traces", "r1-0-12h"]),
        (hour.main, ["--trace", "r1-0-12h"]),
    ],
)
def test_a_trace_that_is_not_there_is_named(main, argv, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", *argv, "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"trace r1-0-12h is not under --data {tmp_path}" in capsys.readouterr().err


def test_a_trace_is_there_where_each_of_its_folders_is(tmp_path):
    names = ["rag", "r1-0-6h", "azure-r1"]
    assert autoscalers.absent(names, str(tmp_path)) == ["r1-0-6h", "azure-r1"]
    (tmp_path / "traces" / "servegen_deepseek_r1").mkdir(parents=True)
    assert autoscalers.absent(names, str(tmp_path)) == ["azure-r1"]
    (tmp_path / "traces" / "azure2023").mkdir()
    assert autoscalers.absent(names, str(tmp_path)) == []


def test_each_trace_is_played_under_each_router(monkeypatch):
    short = workload.between(traces.load("agents"), 0.0, 120.0)
    monkeypatch.setattr(traces, "load", lambda name, seed: short)
    rows = routers.simulated(["agents"])["rows"]
    assert [row["router"] for row in rows] == [*routers.SIMULATED, *routers.SIMULATED]
    assert len({row["fleet"] for row in rows}) == 2
