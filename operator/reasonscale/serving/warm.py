"""Runs a few requests on an engine before its replica is ready, so that no user pays for what is compiled at its first use.

vLLM captures its graphs at the start, but not what follows the model: sampling, budgets, and kernels that are compiled by
the batch's size and kept on disk, of which a new node has none. On a machine that had just been started the first engine's
steps took 25 ms instead of 6 for five seconds under its first load (tests/data/gpu-fleet), and the loop, which had seen no
other steps, asked for two replicas that nobody needed. With this they took what they always take (tests/data/gpu-fleet-h100).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Final

MOST: Final = 48  # requests at once; as each ends the batch shrinks through every size below
LENGTHS: Final = (4, 20)  # output tokens, spread over the requests
PROMPT: Final = 24
LIMIT_S: Final = 60.0
_log = logging.getLogger(__name__)


def lengths(seats: int, context: int) -> list[int]:
    """Return the output tokens of the requests that warm an engine with so many seats; none where the context is too short."""
    low, high = LENGTHS
    if context < PROMPT + high:
        return []
    count = max(1, min(MOST, seats))
    return [low + i * (high - low) // max(1, count - 1) for i in range(count)]


async def warm(client: Any, start_ids: Sequence[int], *, budgets: bool, limit_s: float = LIMIT_S) -> float | None:
    """Run the requests as users would send them, and return the seconds they took; None where they were given up.

    What kills the engine is raised: its replica must not come up.
    """
    from vllm import SamplingParams

    config, began = client.vllm_config, time.monotonic()
    outputs = lengths(int(config.scheduler_config.max_num_seqs), int(config.model_config.max_model_len))

    async def one(index: int, most: int) -> None:
        # Half of them sample and half are greedy; half think to their budget's end and half have none.
        params = SamplingParams(
            temperature=0.6 if index % 2 else 0.0, top_p=0.95, max_tokens=most, ignore_eos=True, detokenize=False,
            **({"thinking_token_budget": most // 2} if budgets and index % 4 < 2 else {}),
        )  # fmt: skip
        ids = [1 + (index + k) % 97 for k in range(PROMPT - len(start_ids))] + list(start_ids)
        async with aclosing(client.generate({"prompt_token_ids": ids}, params, f"warm-{index}")) as stream:
            async for _ in stream:
                pass

    running = [asyncio.ensure_future(one(i, most)) for i, most in enumerate(outputs)]
    try:
        await asyncio.wait_for(asyncio.gather(*running), limit_s)
    except TimeoutError:
        _log.warning(
            "the engine's first %d requests took more than %.0f s: it serves without them", len(running), limit_s
        )
        return None
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return time.monotonic() - began
