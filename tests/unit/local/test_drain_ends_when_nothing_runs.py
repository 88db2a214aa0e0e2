"""A drain ends when it is known, twice, that nothing runs; what nobody knows is not taken for nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reasonscale.api import constants as c
from reasonscale.local import app as module
from reasonscale.local.app import LocalApp
from reasonscale.local.serve_api import ServeError
from reasonscale.scaling.types import Fleet
from reasonscale.signals.assemble import Sample
from reasonscale.signals.sources import ModelSource, SignalsMissing

LIMIT_S = 0.4


class Ledger:
    """A played metrics page: what waits, by how often it was read; None where it can't be read."""

    limit_s = 6.0

    def __init__(self, waiting: Callable[[int], float | None], age_s: float = 0.0, frozen: bool = False) -> None:
        self.waiting, self.age_s, self.reads = waiting, age_s, 0
        self.written = time.time() if frozen else None

    async def fetch(self) -> list[Sample]:
        self.reads += 1
        waiting = self.waiting(self.reads)
        if waiting is None:
            raise SignalsMissing("no metrics endpoint answered")
        labels = {c.LABEL_METRIC_MODEL: "m", "WorkerId": "w"}
        written = self.written or time.time() - self.age_s
        return [
            Sample(c.M_LEDGER_TIME, labels, written),
            Sample(c.M_WAITING, labels | {c.LABEL_METRIC_CLASS: "low"}, waiting),
        ]


async def one_ready() -> Fleet:
    return Fleet(target=1, ready=1)


async def drained(ledger: Ledger, fleet: Callable[..., object] = one_ready) -> tuple[float, str]:
    """Return how long a drain took and what it said."""
    said: list[str] = []
    app = LocalApp([], "127.0.0.1", 8000, Path(), say=said.append)
    app._sources = [ModelSource(ledger, "m", fleet)]  # type: ignore[arg-type]
    began = time.monotonic()
    await app._drain(LIMIT_S)
    return time.monotonic() - began, " ".join(said)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DRAIN_POLL_S", 0.02)


async def test_it_ends_after_two_zeros_in_a_row() -> None:
    ledger = Ledger(lambda n: 0.0)
    took, said = await drained(ledger)
    assert (ledger.reads, said) == (2, "")
    assert took < LIMIT_S


async def test_one_zero_between_requests_is_not_enough() -> None:
    ledger = Ledger(lambda n: 0.0 if n in (1, 3) or n > 4 else 5.0)
    _, said = await drained(ledger)
    assert ledger.reads == 6
    assert "5 requests still run" in said


async def test_the_same_zero_read_twice_counts_once() -> None:
    took, _ = await drained(Ledger(lambda n: 0.0, frozen=True))
    assert took >= LIMIT_S


@pytest.mark.parametrize("ledger", [Ledger(lambda n: None), Ledger(lambda n: 5.0, age_s=8.0)])
async def test_what_nobody_knows_is_waited_for_as_long_as_the_limit(ledger: Ledger) -> None:
    took, said = await drained(ledger)
    assert LIMIT_S <= took < LIMIT_S + 1
    assert "can't be seen" in said


async def test_a_dashboard_that_is_gone_does_not_end_it() -> None:
    async def gone() -> Fleet:
        raise ServeError("did not answer")

    took, _ = await drained(Ledger(lambda n: 0.0), gone)
    assert took >= LIMIT_S


async def test_a_slow_dashboard_does_not_lengthen_it() -> None:
    async def slow() -> Fleet:
        await asyncio.sleep(30)
        return await one_ready()

    took, _ = await drained(Ledger(lambda n: 0.0), slow)
    assert took < LIMIT_S + 1


async def test_without_a_replica_nothing_runs() -> None:
    async def none() -> Fleet:
        return Fleet(target=0, ready=0)

    took, _ = await drained(Ledger(lambda n: None), none)
    assert took < LIMIT_S
