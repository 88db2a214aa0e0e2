"""How many prompt tokens a step should take at most: `max_num_batched_tokens`, from the objectives. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from reasonscale.scaling.types import Objectives, StepTime

DEFAULT_TOKENS = 2048
LEAST_TOKENS = 256
GRAIN_TOKENS = 128  # whole tiles of the GPU's matrix units
DECODING = 1.2  # a step beside prompts decodes too: so many times the step of an empty engine
PROMPT_SHARE = 0.7  # of the time allowed a prompt token; the rest is for waiting behind others


@dataclass(frozen=True, slots=True)
class Chunk:
    """`max_num_batched_tokens`, and why."""

    tokens: int
    reason: str


def chunk_of(step: StepTime | None, objectives: Objectives, max_num_seqs: int, most: int = DEFAULT_TOKENS) -> Chunk:
    """Return the tokens that a step should take at most.

    Few: a step with a neighbour's prompt then keeps the time per output token. But not so few that a long prompt, whose
    every chunk pays for a step, misses its time to first token: (base + d c) / c seconds a token. Where both can't be, the
    prompt's start goes first, since a step that is late once is made up for by those after it, and a queue is not.
    """
    if step is None or step.d <= 0.0:
        return Chunk(most, "nothing is known of the engine's speed: vLLM's default")
    base = DECODING * step.a
    pace = (objectives.tpot_s - base) / step.d
    allowed = PROMPT_SHARE * objectives.ttft_per_prompt_token_s
    if allowed <= step.d:
        return Chunk(most, "prompts alone take what the time to first token allows: as many as a step may")
    start = base / (allowed - step.d)
    tokens = max(start, min(pace, most), LEAST_TOKENS, max_num_seqs)
    tokens = min(most, GRAIN_TOKENS * ceil(tokens / GRAIN_TOKENS))
    if pace >= most:
        return Chunk(tokens, f"a step with so many keeps {objectives.tpot_s * 1e3:g} ms a token")
    if start > pace:
        return Chunk(
            tokens,
            f"as few as start a prompt in time; a step with so many takes {(base + step.d * tokens) * 1e3:.0f} ms",
        )
    return Chunk(
        tokens, f"more would take a step beyond {objectives.tpot_s * 1e3:g} ms a token for all beside a prompt"
    )
