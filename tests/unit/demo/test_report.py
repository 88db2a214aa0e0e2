"""The demo passes only where nothing failed, answers are right, thought made it scale, and it came back."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest

from reasonscale.api.constants import REASON_CALM, REASON_COT, REASON_QUEUE
from reasonscale.autoscaler import Record
from reasonscale.demo.report import Run, build, page, words
from reasonscale.demo.svg import Mark, Series, plot
from reasonscale.load.client import Outcome
from reasonscale.scaling.types import Decision, Fleet, Freshness, Numbers, Observation, Policy


def record(t: float, current: int, target: int, reason: str) -> Record:
    seen = Observation(1000 + t, 5, Freshness.FRESH, 1.5, Fleet(current, current))
    return Record(
        "m",
        seen,
        Policy(),
        Decision(
            1000 + t,
            current,
            target,
            target != current,
            reason,
            f"{current} -> {target}: words",
            Numbers(owed_tokens=900),
        ),
    )


def run(**changes: Any) -> Run:
    outcomes = [
        Outcome(
            i * 2.0, "sum", 200, ttft_s=0.2, ttfat_s=1.0, e2e_s=2.0, reasoning_tokens=40, answer_tokens=4, correct=True
        )
        for i in range(30)
    ]
    records = [
        record(5, 1, 1, "Hold"),
        record(10, 1, 2, REASON_COT),
        record(30, 2, 2, "Hold"),
        record(55, 2, 1, REASON_CALM),
    ]
    return replace(Run(1000.0, 60.0, records, outcomes, [(5.0, 40.0), (10.0, 60.0)], 40.0, 1, 1), **changes)


def test_a_good_run_passes_and_names_its_numbers() -> None:
    report = build(run())
    assert report["missing"] == []
    assert (
        report["requests"],
        report["failed"],
        report["correct"],
        report["max_replicas"],
        report["final_replicas"],
    ) == (30, 0, 30, 2, 1)
    assert report["scale_events"][0] | {"message": ""} == {
        "t": 10.0, "from": 1, "to": 2, "reason": REASON_COT, "message": "", "owed_tokens": 900, "waiting": 0, "rate": 0.0,
    }  # fmt: skip
    assert report["request_rate"] == {"mean": 0.5, "lowest": 0.5, "highest": 0.5, "window_s": 30.0}
    assert report["cpu_percent"] == {"mean": 50.0, "highest": 60.0}
    assert {"p50", "p95"} == set(report["ttft_s"]) == set(report["ttfat_s"]) == set(report["tpot_ms"])


def _failed(base: Run) -> list[Outcome]:
    return [*base.outcomes, Outcome(59.0, "sum", 500, "lost")]


def test_a_stream_that_ended_with_an_error_was_cut() -> None:
    lost = [Outcome(58.0, "sum", 200, "the engine was lost", ttft_s=0.2), *_failed(run())]
    report = build(run(outcomes=lost))
    assert (report["failed"], report["streams_cut"]) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outcomes": _failed(run())}, "1 of 31 requests failed"),
        ({"outcomes": [replace(o, correct=False) for o in run().outcomes]}, "0 of 30 answers were right"),
        ({"records": [record(10, 1, 2, REASON_QUEUE)]}, "no scale-up rested on the thought still to come"),
        ({"records": [record(10, 2, 1, REASON_COT)]}, "no scale-up rested on the thought still to come"),
        ({"final_replicas": 2}, "2 replicas at the end; 1 are wanted"),
    ],
)
def test_what_is_missing_is_said(changes: dict[str, Any], message: str) -> None:
    report = build(run(**changes))
    assert any(message in m for m in report["missing"])
    assert message in page(run(**changes), report)


def test_the_summary_tells_what_a_rate_scaler_saw() -> None:
    text = "\n".join(words(build(run())))
    assert "would have seen 0.5 requests/s" in text
    assert "1 -> 2  CoTBacklog" in text


def test_the_page_stands_alone() -> None:
    html = page(run(), build(run()))
    assert html.count("<svg") == 7
    assert "http" not in html.replace("http-equiv", "")
    assert "<script" not in html


def test_a_plot_is_well_formed_and_keeps_its_points_inside() -> None:
    svg = plot(
        "a & b",
        "<s>",
        [Series("x", [(0, 0), (60, 5)], "#000", k) for k in ("line", "step", "area", "dots")],
        60,
        [Mark(30, "now")],
    )
    root = ET.fromstring(svg)
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(circles) == 2
    assert all(0 <= float(e.attrib["cx"]) <= 860 and 0 <= float(e.attrib["cy"]) <= 190 for e in circles)
