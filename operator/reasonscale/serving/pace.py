"""Holds an engine to a least time per step. A plugin of vLLM's; it does nothing unless REASONSCALE_PACE_MS is set.

Only the demo sets it, and says so: a micro engine fills a core long before it fills its batch, so that a second replica
on the same two cores would add little. Held to a pace, a replica is bound by its batch, as one on a GPU is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

ENV = "REASONSCALE_PACE_MS"


def register() -> None:
    """Wrap the engine core's step where the environment asks for it; called by vLLM in each of its processes."""
    text = os.environ.get(ENV, "")
    if not text:
        return
    least_s = float(text) / 1000
    from vllm.v1.engine.core import EngineCore

    if getattr(EngineCore, "_reasonscale_paced", False):
        return
    # With asynchronous scheduling vLLM's loop takes the second; each call hands one batch to the model either way.
    EngineCore.step = _paced(EngineCore.step, least_s)
    EngineCore.step_with_batch_queue = _paced(EngineCore.step_with_batch_queue, least_s)
    EngineCore._reasonscale_paced = True


def _paced(plain: Callable[[Any], Any], least_s: float) -> Callable[[Any], Any]:
    def step(self: Any) -> Any:
        started = time.perf_counter()
        result = plain(self)
        if result[1]:  # the model ran
            rest = least_s - (time.perf_counter() - started)
            if rest > 0:
                time.sleep(rest)
        return result

    return step
