"""A KV cache that is too small for its chains, on real replicas: the router fills it no further, and the scaler acts at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.engine.streams import Load, asked, questions, whole, with_emptied
from tests.engine.watching import watching

from reasonscale.api import constants as c
from reasonscale.serving.pace import ENV as PACE_ENV

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(600)]
LONG, SHORT = 12, 6


@pytest.fixture(scope="module")
def fleet(start_service: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two replicas of 32 seats whose KV caches hold one context of 2,048 tokens: three or four long chains."""
    log = tmp_path_factory.mktemp("logs") / "access.jsonl"
    args = {"max_num_seqs": "32", "num_gpu_blocks_override": "66"}
    with start_service(log, replicas=2, env={PACE_ENV: "20"}, args=args) as found:
        yield found


def by_replica(fleet: Any) -> dict[str, dict[str, Any]]:
    return {ledger["replica"]: ledger for ledger in fleet.ledgers()}


def test_a_replica_that_preempts_gets_no_more_and_another_is_asked_for_with_the_numbers(fleet: Any) -> None:
    full, other = sorted(fleet.replicas())
    long = [q for q in questions(3 * LONG) if q.startswith("collatz")][:LONG]
    with watching(fleet) as watch:
        fleet.put(with_emptied(fleet.config, fleet, other))
        load = Load(fleet, [asked(fleet, q) for q in long])
        deadline = time.monotonic() + 120
        while not (there := by_replica(fleet))[full]["preemptions"]:
            assert time.monotonic() < deadline, there
            time.sleep(0.2)
        assert len(there[full]["rows"]) > LONG // 2  # a chain may have ended before the first was preempted
        assert not there[other]["rows"]
        fleet.put(with_emptied(fleet.config, fleet))
        time.sleep(1.5)  # a report's time
        more = Load(fleet, [asked(fleet, "12345678+87654321") for _ in range(SHORT)])
        more.wait_characters(SHORT)
        there = by_replica(fleet)
        assert len(there[full]["rows"]) <= LONG
        assert len(there[other]["rows"]) > 0
        arrived = sum(t["arrivals"] for t in there[full]["totals"].values())
        assert arrived == LONG, "the router sent more to the replica that preempts"
        whole([*load.end(), *more.end()])
    said = [d for _, d in watch.seen if d.reason in (c.REASON_KV, c.REASON_PREEMPTION) and d.target > d.current]
    assert said, [d.message for _, d in watch.seen]
    print(f"{by_replica(fleet)[full]['preemptions']} preemptions; {said[0].reason}: {said[0].message}")
    fleet.wait_all_idle()
