"""What a replica writes to Ray's metrics: every gauge each second, counters by their increments, series bounded."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from reasonscale.api import constants as c
from reasonscale.serving import export
from reasonscale.serving.asleep import Sleeper
from reasonscale.serving.export import Exporter, Here
from reasonscale.serving.ledger import Ledger
from reasonscale.serving.steps import StepSums

HERE = Here("r0", "node-a", 12.5)
Key = tuple[str, frozenset[tuple[str, str]]]


class Store:
    """Ray's metrics as a table, with what was written since it was last cleared."""

    def __init__(self) -> None:
        self.values: dict[Key, float] = {}
        self.fresh: set[Key] = set()

    def kind(self, add: bool) -> Any:
        store = self

        class Metric:
            def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] = ()) -> None:
                assert description
                self.name, self.keys = name, set(tag_keys)

            def set(self, value: float, tags: dict[str, str]) -> None:
                assert set(tags) == self.keys
                key = (self.name, frozenset(tags.items()))
                store.values[key] = store.values.get(key, 0.0) + value if add else value
                store.fresh.add(key)

            inc = set

        return Metric

    def sum(self, name: str, **tags: str) -> float:
        return sum(v for (n, t), v in self.values.items() if n == name and set(tags.items()) <= t)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    found = Store()
    monkeypatch.setattr(export, "Gauge", found.kind(add=False))
    monkeypatch.setattr(export, "Counter", found.kind(add=True))
    return found


def begin(ledger: Ledger, rid: str, tokens: int, cls: str = "medium") -> None:
    ledger.start(rid, cls, 0.0, thinks=True)
    ledger.prompt(rid, 30)
    if tokens:
        ledger.progress(rid, tokens, tokens, answering=False)


def test_metrics_follow_the_ledger_and_counters_never_count_twice(store: Store) -> None:
    ledger, sums, exporter = Ledger(), StepSums(kv_usage=0.25), Exporter("m")
    begin(ledger, "a", 100)
    begin(ledger, "b", 0)
    for now in (1.0, 2.0, 3.0):
        exporter.write(ledger, sums, 4000, now)
    assert store.sum(c.M_WAITING, cls="medium") == 1
    assert store.sum(c.M_WAITING_PROMPT) == 30
    assert store.sum(c.M_INFLIGHT, phase="reasoning", bin="96") == 1
    assert store.sum(c.M_INFLIGHT) == 1
    assert store.sum(c.M_INFLIGHT_PROMPT) == 30
    assert store.sum(c.M_ARRIVALS) == 2
    assert store.sum(c.M_REACHED, bin="96") == 1
    assert store.sum(c.M_REASONING_TOKENS) == 100
    assert store.sum(c.M_KV_USED) == 1000
    assert store.sum(c.M_LEDGER_TIME) == 3.0
    ledger.finish("a", 4.0, ended=True)
    ledger.finish("b", 4.0, ended=False)
    exporter.write(ledger, sums, 4000, 4.0)
    assert store.sum(c.M_INFLIGHT) == store.sum(c.M_WAITING) == store.sum(c.M_INFLIGHT_PROMPT) == 0
    assert store.sum(c.M_ENDED, bin="96") == 1


def test_every_gauge_is_written_again_though_nothing_changed(store: Store) -> None:
    ledger, exporter = Ledger(), Exporter("m")
    begin(ledger, "a", 100)
    exporter.write(ledger, StepSums(), 4000, 1.0)
    gauges = {key for key in store.fresh if not key[0].endswith("_total")}
    store.fresh.clear()
    exporter.write(ledger, StepSums(), 4000, 2.0)
    assert store.fresh == gauges


def test_a_counter_is_never_told_an_increment_of_zero(store: Store) -> None:
    ledger, exporter = Ledger(), Exporter("m")
    begin(ledger, "a", 0)
    exporter.write(ledger, StepSums(), 4000, 1.0)
    written = {name for name, _ in store.values if name.endswith("_total")}
    assert written == {c.M_ARRIVALS, c.M_PROMPT_TOKENS}  # Ray raises on 0, and that would silence the rest


def test_series_are_bounded_and_freshness_is_never_what_is_dropped(store: Store) -> None:
    ledger, exporter = Ledger(), Exporter("m")
    for k in range(c.MAX_CLASSES * 2):
        for j, edge in enumerate(c.TOKEN_BINS):
            begin(ledger, f"{k}-{j}", edge + 1, cls=f"class-{k}")
    exporter.write(ledger, StepSums(kv_usage=0.5), 4000, 1.0, here=HERE)
    exporter.write(ledger, StepSums(kv_usage=0.5), 4000, 9.0, here=HERE)
    assert len(store.values) <= c.MAX_SERIES_PER_REPLICA
    assert store.sum(c.M_LEDGER_TIME) == 9.0
    assert store.sum(c.M_KV_USED) == 2000
    assert store.sum(c.M_ARRIVALS) == len(ledger.rows)
    assert {t for n, t in store.values if n == c.M_ENDED} <= {t for n, t in store.values if n == c.M_REACHED}


def test_a_request_in_a_bin_without_room_counts_in_a_lower_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_MAX_BIN_SERIES", 3)
    ledger, exporter = Ledger(), Exporter("m")
    for k, tokens in enumerate((1, 20, 40, 5000, 60_000)):
        begin(ledger, f"r{k}", tokens)
    exporter.write(ledger, StepSums(), 4000, 1.0)
    assert store.sum(c.M_INFLIGHT) == 5
    assert store.sum(c.M_INFLIGHT, bin="32") == 3


def test_a_replica_says_who_it_is_where_and_since_when(store: Store) -> None:
    Exporter("m").write(Ledger(), StepSums(), 4000, 20.0, here=HERE)
    assert store.sum(c.M_REPLICA, serve_replica="r0", ray_node="node-a") == 12.5


async def test_a_replica_says_whether_it_sleeps_and_how_long_both_ways_took(store: Store) -> None:
    class Engine:
        async def sleep(self, level: int) -> None:
            now[0] += 22.0

        async def wake_up(self) -> None:
            now[0] += 0.5

    now = [100.0]
    sleeper = Sleeper(lambda: False, lambda: nullcontext(True), lambda: now[0])
    exporter = Exporter("m")
    exporter.write(Ledger(), StepSums(), 4000, 20.0, here=HERE, sleeper=sleeper)
    assert not any(name == c.M_ASLEEP for name, _ in store.values), "by which it is known that it can't"
    sleeper.engine = Engine()
    exporter.write(Ledger(), StepSums(), 4000, 20.0, here=HERE, sleeper=sleeper)
    assert store.sum(c.M_ASLEEP) == 0.0
    assert not any(name == c.M_FALL for name, _ in store.values)
    await sleeper.rest(True)
    exporter.write(Ledger(), StepSums(), 4000, 21.0, here=HERE, sleeper=sleeper)
    assert (store.sum(c.M_ASLEEP), store.sum(c.M_FALL)) == (1.0, 22.0)
    await sleeper.rest(False)
    exporter.write(Ledger(), StepSums(), 4000, 22.0, here=HERE, sleeper=sleeper)
    assert (store.sum(c.M_ASLEEP), store.sum(c.M_WOKE)) == (0.0, 0.5)
