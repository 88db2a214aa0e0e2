"""First tokens leave a step before the tokens of streams that run already, and nothing is lost, doubled or out of its stream's order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.serving.virtual_time import clock, play

from reasonscale.serving import firsts


@dataclass
class Step:
    """What an engine tells of a step, as far as it matters here."""

    outputs: list[Any]
    scheduler_stats: object | None = field(default_factory=object)


def read(steps: list[list[str]]) -> list[tuple[float, list[str], bool]]:
    """Return when what was read, and whether it told of a step, as vLLM's loop reads: a request is no new one after its first output."""

    async def run() -> list[tuple[float, list[str], bool]]:
        queue: asyncio.Queue[Step] = asyncio.Queue()
        states = {name: SimpleNamespace(is_prefilling=True) for step in steps for name in step}
        core = SimpleNamespace(get_output_async=queue.get, outputs_queue=queue)
        firsts.ahead(SimpleNamespace(engine_core=core, output_processor=SimpleNamespace(request_states=states)))
        for step in steps:
            queue.put_nowait(Step([SimpleNamespace(request_id=name) for name in step]))
        seen: list[tuple[float, list[str], bool]] = []
        left = sum(map(len, steps))
        told = 0
        while left or told < len(steps):
            part = await core.get_output_async()
            names = [o.request_id for o in part.outputs]
            for name in names:
                states[name].is_prefilling = False
            seen.append((clock(), names, part.scheduler_stats is not None))
            left, told = left - len(names), told + (part.scheduler_stats is not None)
        return seen

    out = play(run())
    assert isinstance(out, list)
    return out


def test_a_first_token_is_told_before_those_of_all_streams_that_run() -> None:
    crowd = [str(i) for i in range(63)]
    assert read([crowd, [*crowd, "new"]]) == [(0.0, crowd, True), (0.0, ["new"], True), (firsts.AHEAD_S, crowd, False)]


def test_nobody_waits_where_the_next_step_has_come_already() -> None:
    steps = [["a"], ["a", "new"], ["a", "new"]]
    assert [at for at, _, _ in read(steps)] == [0.0] * 4


def test_a_step_without_first_tokens_or_with_them_alone_is_told_at_once_as_it_came() -> None:
    assert read([["a", "b"], ["a", "b"], []]) == [
        (0.0, ["a", "b"], True), (0.0, ["a", "b"], True), (0.0, [], True),
    ]  # fmt: skip


@given(st.lists(st.lists(st.sampled_from("abcdef"), unique=True, max_size=6), max_size=8))
def test_whatever_comes_each_step_is_told_once_and_each_stream_in_its_order(steps: list[list[str]]) -> None:
    parts = read(steps)
    assert sum(told for _, _, told in parts) == len(steps)
    assert [told for _, _, told in parts][:1] in ([], [True])
    at = iter(parts)
    known: set[str] = set()
    for step in steps:
        _, names, _ = next(at)
        if len(names) < len(step):
            assert not known & set(names)
            names = names + next(at)[1]
        assert sorted(names) == sorted(step)
        known |= set(step)
