"""Lets several tokens of a stream leave the engine at once where many streams run: each event costs more than its tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

MOST: Final = 64  # tokens that leave at once
# Reasoning parsers of vLLM that hold back, or stop at, several tokens at once; seen by feeding each of them both ways.
BY_TOKEN: Final = frozenset({"ernie45", "granite", "hunyuan_a13b", "mistral", "olmo3"})


class Gatherer:
    """Sets how many tokens of one request vLLM hands over together (its `stream_interval`), by how fast they come.

    vLLM sends the first token and the end at once whatever the number is; what makes events of the tokens, in the
    replica and after it, then works once for all of them.
    """

    __slots__ = ("_clock", "_last_s", "_state")

    def __init__(self, state: Any, clock: Callable[[], float] = time.monotonic) -> None:
        """`state`: vLLM's `RequestState`."""
        self._state, self._clock, self._last_s = state, clock, clock()

    def took(self, tokens: int, interval_s: float) -> None:
        """Note that so many tokens came; those of the next `interval_s` seconds may come together."""
        now = self._clock()
        passed, self._last_s = now - self._last_s, now
        state = self._state
        if tokens <= 0 or passed <= 0.0:
            return
        # Outputs that were read late come close together, and say little of their pace: it is found in a few steps.
        wanted = min(MOST, 4 * state.stream_interval, round(interval_s * tokens / passed))
        if state.stream_interval > 1:
            state.stream_interval = max(2, wanted)  # below, vLLM would forget the tokens that it has not sent
        elif wanted > 1:
            # Sent one by one until now: what is made is sent, or lies in the queue to its reader.
            state.stream_interval = wanted
            state.sent_tokens_offset = state.detokenizer.num_output_tokens()

    def unsent(self, known: int) -> list[int]:
        """Return the tokens that were made after the first `known`: of a request that its client left."""
        return list(self._state.detokenizer.output_token_ids[known:])


def gatherer_of(client: Any, rid: str) -> Gatherer | None:
    """Return what gathers a request's tokens; None where vLLM keeps no such state of it (it is over, or has several choices)."""
    processor = getattr(client, "output_processor", None)
    ids = getattr(processor, "external_req_ids", {}).get(rid) or [rid]
    state = getattr(processor, "request_states", {}).get(ids[0]) if len(ids) == 1 else None
    if state is None or state.detokenizer is None or not hasattr(state, "sent_tokens_offset"):
        return None
    return Gatherer(state)
