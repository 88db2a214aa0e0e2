"""What counting thinking budgets takes of a step in vLLM's first model runner, with serving/scan.py and without: `python -m bench.scan`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder as Holder

from reasonscale.serving import scan

CHAINS, LENGTHS, STEPS = 250, (250, 1000, 4000, 16000), 9
START, END, WORD = 1, 2, 7


def step_ms(update: Callable[[Any, dict[str, Any]], None], length: int) -> float:
    """Return the milliseconds of one step's upkeep of chains that have so many tokens; the median of some."""
    holder = Holder(
        SimpleNamespace(reasoning_start_token_ids=[START], reasoning_end_token_ids=[END]), CHAINS, 0, "cpu", False
    )
    states = []
    for _ in range(CHAINS):
        state = holder._init_state_entry([WORD, START], 10**6)
        state["output_tok_ids"] = [WORD] * length
        states.append(state)
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        for state in states:
            update(holder, state)
        times.append(1000 * (time.perf_counter() - began))
        for state in states:
            state["output_tok_ids"].append(WORD)
    return round(median(times), 3)


def main() -> int:
    """Measure both, print and keep."""
    plain = Holder._update_think_state
    scan.register()
    rows = [
        {"tokens": length, "plain_ms": step_ms(plain, length), "scan_ms": step_ms(Holder._update_think_state, length)}
        for length in LENGTHS
    ]
    out = {"command": "python -m bench.scan", "chains": CHAINS, "rows": rows}
    Path("bench/results/scan.json").write_text(json.dumps(out, indent=1) + "\n")
    print(json.dumps(out, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
