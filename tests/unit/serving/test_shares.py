"""Fair shares: classes that wait get tokens by their weights, whatever their requests are like; nothing is lost."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from reasonscale.serving.shares import Shares


@dataclass(eq=False)
class Item:
    cls: str
    cost: float


COSTS = st.floats(1.0, 5000.0)


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 10), min_size=2),
    st.lists(st.tuples(st.sampled_from("abcd"), COSTS), min_size=60, max_size=200),
)
def test_no_class_that_waits_gets_ahead_of_another_by_more_than_one_request_of_each(
    weights: dict[str, int], items: list[tuple[str, float]]
) -> None:
    shares: Shares[Item] = Shares(weights)
    for cls, cost in items:
        shares.add(Item(cls, cost))
    got: dict[str, float] = {}
    most = {cls: max((cost for name, cost in items if name == cls), default=0.0) for cls in "abcd"}
    while (item := shares.pop()) is not None:
        got[item.cls] = got.get(item.cls, 0.0) + item.cost
        waits = [cls for cls in "abcd" if shares.number(cls)]
        for i in waits:
            for j in waits:
                ahead = got.get(i, 0.0) / shares.weight(i) - got.get(j, 0.0) / shares.weight(j)
                assert ahead <= most[i] / shares.weight(i) + most[j] / shares.weight(j) + 1e-6


@given(st.lists(st.one_of(st.tuples(st.sampled_from("abc"), COSTS), st.just("pop"), st.just("gone")), max_size=200))
def test_each_request_comes_out_once_in_the_order_of_its_class_or_is_taken_out(steps: list[object]) -> None:
    shares: Shares[Item] = Shares()
    waiting: list[Item] = []
    for step in steps:
        if isinstance(step, tuple):
            waiting.append(Item(*step))
            shares.add(waiting[-1])
        elif step == "pop":
            item = shares.pop()
            assert (item is None) == (not waiting)  # who could go goes: work is conserved
            if item is not None:
                assert item is next(x for x in waiting if x.cls == item.cls)
                waiting.remove(item)
        elif waiting:
            assert shares.remove(waiting[0])
            assert not shares.remove(waiting.pop(0))
        assert sorted(map(id, shares)) == sorted(map(id, waiting))
        assert len(shares) == len(waiting)
    for cls in "abc":
        assert shares.number(cls) == sum(x.cls == cls for x in waiting)


def test_a_class_that_was_silent_has_saved_nothing_up() -> None:
    shares: Shares[Item] = Shares()
    for _ in range(20):
        shares.add(Item("long", 1000.0))
    for _ in range(10):
        assert shares.pop() is not None
    for _ in range(20):
        shares.add(Item("back", 1000.0))
    went = [shares.pop() for _ in range(10)]
    assert sum(item is not None and item.cls == "back" for item in went) in (5, 6)


def test_a_class_whose_chains_run_longer_than_expected_pays_for_them() -> None:
    shares: Shares[Item] = Shares()
    for _ in range(400):
        shares.add(Item("grows", 100.0))
        shares.add(Item("true", 100.0))
    made = {"grows": 0.0, "true": 0.0}
    for _ in range(300):
        item = shares.pop()
        assert item is not None
        really = 500.0 if item.cls == "grows" else 100.0
        shares.charge(item.cls, really - item.cost)
        made[item.cls] += really
    assert 0.95 < made["grows"] / made["true"] < 1.05


def test_who_comes_now_is_told_what_goes_before_it_and_a_class_with_little_waits_for_little() -> None:
    shares: Shares[Item] = Shares({"heavy": 1, "light": 1})
    for _ in range(50):
        shares.add(Item("heavy", 100.0))
    assert shares.ahead("heavy") == 5000.0
    assert shares.ahead("light") == 0.0
    shares.add(Item("light", 100.0))
    assert shares.ahead("light") == 200.0  # its own, and as much of the other's
    assert shares.ahead("light", {"heavy": 900.0, "light": 300.0}) == 800.0


def test_who_comes_while_another_was_charged_too_much_does_not_wait_until_it_is_made_good() -> None:
    shares: Shares[Item] = Shares()
    for _ in range(30):
        shares.add(Item("flood", 1000.0))
    for _ in range(10):
        shares.pop()
    shares.add(Item("few", 100.0), light=True)
    assert shares.pop() is not None
    shares.charge("flood", -8000.0)  # its chains ended after 200 tokens
    shares.add(Item("few", 100.0), light=True)
    assert shares.ahead("few", light=True) <= 100.0 + 1000.0
    next_two = [item.cls for item in (shares.pop(), shares.pop()) if item is not None]
    assert "few" in next_two


def test_who_owes_still_owes_when_it_comes_back_with_all_its_seats_and_not_when_it_has_few() -> None:
    for light in (False, True):
        shares: Shares[Item] = Shares()
        shares.add(Item("a", 10.0))
        shares.pop()
        shares.charge("a", 5000.0)  # a chain that ran on
        shares.add(Item("b", 1000.0))
        shares.add(Item("a", 10.0), light=light)
        assert shares.ahead("a", light=light) == (20.0 if light else 1010.0)
