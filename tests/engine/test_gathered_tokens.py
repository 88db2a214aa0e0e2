"""However many tokens vLLM is told to hand over at once, and whenever: its reader gets each of them once, the first and the last without delay."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonscale.serving.gather import MOST, Gatherer, gatherer_of

pytestmark = pytest.mark.engine


def state_of(rid: str = "r") -> Any:
    """A request's state as vLLM makes it, without its statistics."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.engine.output_processor import RequestOutputCollector, RequestState

    params = SamplingParams(detokenize=False, output_kind=RequestOutputKind.DELTA)
    asked = SimpleNamespace(request_id=rid, prompt_token_ids=[1, 2], sampling_params=params)
    return RequestState(
        request_id=rid, external_req_id=rid, parent_req=None, request_index=0, lora_request=None, output_kind=RequestOutputKind.DELTA,
        prompt=None, prompt_token_ids=[1, 2], prompt_embeds=None, logprobs_processor=LogprobsProcessor.from_new_request(None, asked),
        detokenizer=IncrementalDetokenizer.from_new_request(None, asked), max_tokens_param=None, arrival_time=0.0,
        queue=RequestOutputCollector(RequestOutputKind.DELTA, rid), log_stats=False, stream_interval=1,
    )  # fmt: skip


def step(state: Any, tokens: list[int], end: bool = False) -> None:
    """One step of the engine, as vLLM's output processor takes it."""
    from vllm.v1.engine import FinishReason

    state.detokenizer.update(tokens, False)
    made = state.make_request_output(tokens, None, FinishReason.LENGTH if end else None, None)
    if made is not None:
        state.queue.put(made)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.floats(0.001, 1.0), st.sampled_from([0.0, 0.02, 0.2, 1.0])), min_size=1, max_size=60)
)  # fmt: skip
def test_no_token_is_lost_or_sent_twice(steps: list[tuple[int, bool, float, float]]) -> None:
    state, now, made, got = state_of(), [0.0], 0, []
    gatherer: Gatherer | None = None
    for i, (count, reads, passed, interval_s) in enumerate(steps):
        now[0] += passed
        step(state, list(range(made, made + count)), end=i + 1 == len(steps))
        made += count
        # A reader may be slow: vLLM then puts together what came.
        if (reads or i + 1 == len(steps)) and (output := state.queue.get_nowait()) is not None:
            ids = list(output.outputs[0].token_ids)
            got += ids
            if gatherer is None:
                gatherer = Gatherer(state, clock=lambda: now[0])
            else:
                gatherer.took(len(ids), interval_s)
    assert got == list(range(made))


def test_tokens_of_twenty_milliseconds_leave_ten_at_once_where_they_may_be_gathered_for_two_hundred() -> None:
    state, now, sizes = state_of(), [0.0], []
    gatherer = None
    for i in range(60):
        now[0] += 0.02
        step(state, [i])
        if (output := state.queue.get_nowait()) is not None:
            sizes.append(len(output.outputs[0].token_ids))
            if gatherer is None:
                gatherer = Gatherer(state, clock=lambda: now[0])
            else:
                gatherer.took(sizes[-1], 0.2)
    assert sizes == [1, 1, 4, 10, 10, 10, 10, 10]


def test_slow_tokens_leave_one_by_one_and_very_fast_ones_in_bounded_lots() -> None:
    slow, fast, now = state_of(), state_of(), [0.0]
    for state, interval_s in ((slow, 0.02), (fast, 100.0)):
        step(state, [0])
        gatherer = Gatherer(state, clock=lambda: now[0])
        for _ in range(4):
            now[0] += 0.04
            gatherer.took(1, interval_s)
    assert (slow.stream_interval, fast.stream_interval) == (1, MOST)


def test_what_was_made_and_not_sent_is_known_when_a_client_leaves() -> None:
    state, now = state_of(), [0.0]
    step(state, [7])
    gatherer = Gatherer(state, clock=lambda: now[0])
    now[0] = 0.01
    step(state, [8])
    gatherer.took(2, 0.2)
    step(state, [9])
    assert gatherer.unsent(2) == [9]


def test_a_request_of_several_choices_is_left_as_it_is() -> None:
    one, two = state_of("a"), state_of("b")
    processor = SimpleNamespace(external_req_ids={"r": ["a", "b"], "one": ["a"]}, request_states={"a": one, "b": two})
    assert gatherer_of(SimpleNamespace(output_processor=processor), "r") is None
    assert gatherer_of(SimpleNamespace(output_processor=processor), "one") is not None
    assert gatherer_of(SimpleNamespace(output_processor=processor), "over") is None


def test_outputs_that_were_read_late_and_so_come_close_together_do_not_silence_a_stream() -> None:
    state, now = state_of(), [0.0]
    step(state, [0])
    gatherer = Gatherer(state, clock=lambda: now[0])
    now[0] = 0.0005
    gatherer.took(1, 0.2)
    assert state.stream_interval <= 4
