"""Keeps vLLM's thinking budgets from reading each chain anew at every step. A plugin of vLLM's.

vLLM's first model runner looks for the marks of a chain's begin and end in all tokens since the last mark, for each request
at each step, in Python: with 250 chains of 1,000 tokens that took as long as the model itself, and it grows with the
chain. What was looked through once is left out here, as vLLM's own change 52106 would have it, and this goes when that
is in. The second model runner counts on the GPU and is not touched.
"""

from __future__ import annotations

from typing import Any

IN_FLIGHT = 2  # steps whose tokens may still stand as placeholders when the next is prepared


def register() -> None:
    """Wrap the upkeep of a request's state; called by vLLM in each of its processes."""
    try:
        from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder as Holder
    except ImportError:  # another vLLM: nothing to mend
        return
    plain = getattr(Holder, "_update_think_state", None)
    if plain is None or getattr(Holder, "_reasonscale_scan", False):
        return

    def update(self: Any, state: dict[str, Any]) -> None:
        plain(self, state)
        if "scan_offset" not in state:  # a vLLM that keeps no place to go on from
            return
        seen = len(state["output_tok_ids"]) - unread(self)
        if seen > state["scan_offset"] and -1 in (state["start_thinking"], state["end_thinking"]):
            state["scan_offset"] = seen

    Holder._update_think_state = update
    Holder._reasonscale_scan = True


def unread(holder: Any) -> int:
    """Return how many of the last tokens are looked through again: a mark's length, and what may still be a placeholder."""
    marks = max(len(holder.think_start_token_ids), len(holder.think_end_token_ids))
    return int(marks + IN_FLIGHT * (1 + holder.num_spec_tokens))
