"""Which replica Serve stops: not the newest where each has its own node."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reasonscale.scaling.victims import Standing, victims


def on(node: str | None, name: str, deployment: str = "engine", running: bool = True) -> Standing:
    return Standing(name, deployment, node, running)


def test_with_one_replica_a_node_the_one_that_ran_first_goes() -> None:
    there = [on("n1", "first"), on("n2", "second"), on("n3", "third")]
    assert victims(there, "engine", 2) == ["first", "second"]


def test_within_one_node_the_newest_goes() -> None:
    assert victims([on("n", "a"), on("n", "b"), on("n", "c")], "engine", 2, head="n") == ["c", "b"]


def test_one_that_does_not_run_yet_goes_before_all() -> None:
    assert victims([on("n1", "a"), on(None, "starts", running=False)], "engine", 1) == ["starts"]


def test_the_node_with_the_fewest_replicas_of_whatever_deployment_is_emptied_first_and_the_heads_last() -> None:
    there = [on("head", "a"), on("n1", "b"), on("n2", "c"), on("n1", "ingress", "other")]
    assert victims(there, "engine", 3, head="head") == ["c", "b", "a"]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.booleans()), max_size=12), st.integers(0, 12))
def test_as_many_go_as_are_asked_for_each_once_and_only_of_that_deployment(
    rows: list[tuple[str, bool, bool]], number: int
) -> None:
    there = [
        Standing(str(i), "engine" if ours else "other", node, running) for i, (node, ours, running) in enumerate(rows)
    ]
    going = victims(there, "engine", number, head="a")
    mine = [r.replica for r in there if r.deployment == "engine"]
    assert len(going) == min(number, len(mine)) == len(set(going))
    assert set(going) <= set(mine)
