"""The ledger's counts add up, whatever order requests come, run and leave in."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from reasonscale.api.constants import CLASS_OTHER, MAX_CLASSES, TOKEN_BINS, bin_of
from reasonscale.serving.ledger import Ledger, Tracker

OPEN, CLOSE = 7, 8  # token ids of no meaning but to close a chain


def run(ledger: Ledger, rid: str, tokens: int, *, cls: str = "medium", prompt: int = 10) -> None:
    ledger.start(rid, cls, 0.0, thinks=True)
    ledger.prompt(rid, prompt)
    ledger.progress(rid, tokens, tokens, answering=False)


def test_a_request_that_ends_by_itself_reaches_every_bin_below_its_length_and_ends_in_the_last() -> None:
    ledger = Ledger()
    run(ledger, "a", 100)
    ledger.finish("a", 1.0, ended=True)
    totals = ledger.totals["medium"]
    top = TOKEN_BINS.index(96)
    assert totals.reached == [1] * (top + 1) + [0] * (len(TOKEN_BINS) - top - 1)
    assert totals.ended.index(1) == top
    assert sum(totals.ended) == 1


@pytest.mark.parametrize("leaves", [{"ended": False}, {"ended": True, "exhausted": True}], ids=["aborted", "cut"])
def test_an_abort_and_a_budgets_cut_are_censored(leaves: dict[str, bool]) -> None:
    ledger = Ledger()
    run(ledger, "a", 100)
    ledger.finish("a", 1.0, **leaves)
    assert sum(ledger.totals["medium"].ended) == 0
    assert ledger.totals["medium"].reached[0] == 1
    assert ledger.totals["medium"].budget_exhausted == int("exhausted" in leaves)
    assert not ledger.rows


def test_a_request_waits_until_its_first_token() -> None:
    ledger = Ledger()
    ledger.start("a", "high", 0.0, thinks=True)
    ledger.prompt("a", 50)
    now = ledger.now()["high"]
    assert (now.waiting, now.waiting_prompt_tokens, sum(now.reasoning)) == (1, 50, 0)
    ledger.progress("a", 1, 1, answering=False)
    now = ledger.now()["high"]
    assert (now.waiting, now.waiting_prompt_tokens, now.reasoning[0]) == (0, 0, 1)
    assert now.inflight_prompt_tokens[0] == 50


def test_one_that_left_while_it_waited_was_an_arrival_and_reached_nothing() -> None:
    ledger = Ledger()
    ledger.start("a", "low", 0.0, thinks=True)
    ledger.finish("a", 1.0, ended=True)
    assert ledger.totals["low"].arrivals == 1
    assert sum(ledger.totals["low"].reached) == sum(ledger.totals["low"].ended) == 0


def test_a_second_end_and_news_of_one_that_left_change_nothing() -> None:
    ledger = Ledger()
    run(ledger, "a", 20)
    assert ledger.finish("a", 1.0, ended=True) is not None
    ledger.progress("a", 900, 900, answering=False)
    assert ledger.finish("a", 2.0, ended=True) is None
    assert sum(ledger.totals["medium"].ended) == 1
    assert ledger.totals["medium"].reasoning_tokens == 20


def test_a_chain_that_is_preempted_and_made_again_is_not_counted_twice() -> None:
    ledger = Ledger()
    run(ledger, "a", 200)
    ledger.progress("a", 0, 0, answering=False)
    ledger.progress("a", 120, 120, answering=False)
    ledger.progress("a", 201, 201, answering=False)
    assert ledger.totals["medium"].reasoning_tokens == 201
    assert max(ledger.totals["medium"].reached) == 1


def test_classes_beyond_the_cap_fold_into_one() -> None:
    ledger = Ledger()
    for k in range(3 * MAX_CLASSES):
        ledger.start(f"r{k}", f"class-{k}", 0.0, thinks=True)
    assert len(ledger.totals) == MAX_CLASSES
    assert ledger.totals[CLASS_OTHER].arrivals == 3 * MAX_CLASSES - (MAX_CLASSES - 1)
    assert sum(t.arrivals for t in ledger.totals.values()) == 3 * MAX_CLASSES


@given(
    before=st.lists(st.integers(10, 20), max_size=40),
    after=st.lists(st.integers(10, 20), max_size=40),
    end=st.sampled_from([(CLOSE,), (OPEN, CLOSE), (OPEN, OPEN, CLOSE)]),
    data=st.data(),
)
def test_the_end_of_a_chain_is_found_however_the_stream_is_cut(
    before: list[int], after: list[int], end: tuple[int, ...], data: Any
) -> None:
    ids = [*before, *end, *after]
    tracker = Tracker(end, thinks=True)
    at = 0
    while at < len(ids):
        n = data.draw(st.integers(1, 7))
        tracker.feed(ids[at : at + n])
        at += n
    assert tracker.generated == len(ids)
    assert tracker.answering
    assert tracker.reasoning_tokens == len(before)


@given(ids=st.lists(st.integers(10, 20), max_size=60), end=st.sampled_from([(CLOSE,), (OPEN, CLOSE)]))
def test_without_its_end_all_is_chain_and_without_a_chain_all_is_answer(ids: list[int], end: tuple[int, ...]) -> None:
    thinking, plain, no_parser = Tracker(end, thinks=True), Tracker(end, thinks=False), Tracker((), thinks=True)
    for tracker in (thinking, plain, no_parser):
        tracker.feed(ids)
    assert (thinking.reasoning_tokens, thinking.answering) == (len(ids), False)
    assert (plain.reasoning_tokens, plain.answering) == (0, True)
    assert (no_parser.reasoning_tokens, no_parser.answering) == (0, True)


class Life(RuleBasedStateMachine):
    """Requests of three classes come, think, answer and leave; a plain list of facts is kept beside the ledger."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.live: dict[str, list[Any]] = {}  # id -> class, generated, reasoning
        self.gone: list[tuple[str, int, bool]] = []  # class, generated, ended by itself
        self.thought: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.count = 0

    @rule(cls=st.sampled_from(["low", "medium", "high"]), prompt=st.integers(1, 3000))
    def arrive(self, cls: str, prompt: int) -> None:
        rid = f"r{self.count}"
        self.count += 1
        self.ledger.start(rid, cls, 0.0, thinks=True)
        self.ledger.prompt(rid, prompt)
        self.live[rid] = [cls, 0, 0]

    @precondition(lambda self: self.live)
    @rule(data=st.data(), more=st.integers(1, 5000), thinking=st.booleans())
    def generate(self, data: Any, more: int, thinking: bool) -> None:
        rid = data.draw(st.sampled_from(sorted(self.live)))
        row = self.live[rid]
        thinking = thinking and row[1] == row[2]
        row[1] += more
        row[2] += more if thinking else 0
        (self.thought if thinking else self.answered)[row[0]] += more
        self.ledger.progress(rid, row[1], row[2], answering=row[2] < row[1])

    @precondition(lambda self: self.live)
    @rule(data=st.data(), ended=st.booleans(), exhausted=st.booleans())
    def leave(self, data: Any, ended: bool, exhausted: bool) -> None:
        rid = data.draw(st.sampled_from(sorted(self.live)))
        cls, generated, reasoning = self.live.pop(rid)
        result = self.ledger.finish(rid, 1.0, ended=ended, exhausted=exhausted)
        assert result is not None
        assert (result.reasoning_tokens, result.answer_tokens) == (reasoning, generated - reasoning)
        self.gone.append((cls, generated, ended and not exhausted))

    @invariant()
    def everything_adds_up(self) -> None:
        now = self.ledger.now()
        for cls, totals in self.ledger.totals.items():
            live = [r for r in self.live.values() if r[0] == cls]
            gone = [g for g in self.gone if g[0] == cls]
            lengths = [r[1] for r in live if r[1]] + [g[1] for g in gone if g[1]]
            assert totals.arrivals == len(live) + len(gone)
            assert totals.reached == [sum(n >= max(edge, 1) for n in lengths) for edge in TOKEN_BINS]
            natural = Counter(bin_of(g[1]) for g in gone if g[2] and g[1])
            assert totals.ended == [natural[j] for j in range(len(TOKEN_BINS))]
            assert (totals.reasoning_tokens, totals.answer_tokens) == (self.thought[cls], self.answered[cls])
            assert now[cls].waiting == sum(r[1] == 0 for r in live)
            running = Counter(bin_of(r[1]) for r in live if r[1])
            inflight = [a + b for a, b in zip(now[cls].reasoning, now[cls].answering, strict=True)]
            assert inflight == [running[j] for j in range(len(TOKEN_BINS))]
            assert sum(inflight) == totals.reached[0] - sum(g[1] > 0 for g in gone)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
