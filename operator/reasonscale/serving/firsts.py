"""Hands on the first tokens of a step before the tokens of the streams that run already.

An engine tells the tokens of a step together, the newest request's last, and each costs replica, ingress and proxy over a
millisecond between them: beside 63 streams a first token came after all of theirs.
"""

from __future__ import annotations

import asyncio
from copy import copy
from typing import Any, Final

AHEAD_S: Final = 0.005  # until a first token has left the replica


def ahead(client: Any) -> None:
    """Have a vLLM client read each step that has first tokens in two parts, these ones first."""
    core, states = client.engine_core, client.output_processor.request_states
    plain, queue = core.get_output_async, core.outputs_queue
    rest: list[Any] = []

    def is_first(output: Any) -> bool:
        state = states.get(output.request_id)
        return state is not None and state.is_prefilling

    async def get() -> Any:
        if rest:
            # Who reads more slowly than the engine steps waits for nobody.
            await asyncio.sleep(AHEAD_S if queue.empty() else 0.0)
            return rest.pop()
        outputs = await plain()
        firsts = [o for o in outputs.outputs if is_first(o)]
        if 0 < len(firsts) < len(outputs.outputs):
            later = copy(outputs)
            later.outputs = [o for o in outputs.outputs if not is_first(o)]
            later.scheduler_stats = None  # a step is told once
            outputs.outputs = firsts
            rest.append(later)
        return outputs

    core.get_output_async = get
