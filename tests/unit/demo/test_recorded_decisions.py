"""A demo that was recorded on real engines: the same observations lead to the same decisions.

Renew the recording after a change of the algorithm: `make demo`, then
`for f in access decisions; do gzip -9nc demo-report/$f.jsonl > tests/data/demo/$f.jsonl.gz; done`.
"""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from reasonscale.autoscaler import Record, read_records
from reasonscale.scaling.record import replay
from reasonscale.scaling.types import NO_BINS, Observation

RECORDING = Path(__file__).parents[2] / "data" / "demo" / "decisions.jsonl.gz"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    plain = tmp_path_factory.mktemp("recorded") / "decisions.jsonl"
    plain.write_bytes(gzip.decompress(RECORDING.read_bytes()))
    return read_records(plain)


def without_inflight(seen: Observation) -> Observation:
    """Return what a scaler sees that knows of queues, rates and KV cache, and of no chain under way."""
    classes = {
        name: replace(counts, reasoning=NO_BINS, answering=NO_BINS, inflight_prompt_tokens=NO_BINS)
        for name, counts in seen.classes.items()
    }
    return replace(seen, classes=classes)


def test_the_recording_scales_up_and_comes_back(records: list[Record]) -> None:
    targets = [r.decision.target for r in records]
    assert max(targets) > targets[0] == targets[-1]


def test_recorded_observations_lead_to_the_recorded_decisions(records: list[Record]) -> None:
    again = replay([r.observation for r in records], records[0].policy)
    for record, decision in zip(records, again, strict=True):
        was = record.decision
        assert (decision.target, decision.reason, decision.act) == (was.target, was.reason, was.act), was.message
        assert decision.numbers.owed_tokens == pytest.approx(was.numbers.owed_tokens, rel=1e-6)


def test_without_the_chains_under_way_decisions_would_have_been_others(records: list[Record]) -> None:
    blind = replay([without_inflight(r.observation) for r in records], records[0].policy)
    changed = [r for r, d in zip(records, blind, strict=True) if d.target != r.decision.target]
    assert any(r.decision.target > r.decision.current for r in changed)
