"""How long an engine takes to go to sleep (level 1: weights in host memory) and to wake: `python -m bench.gpu sleep`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


def measure(folder: Path) -> dict[str, Any]:
    """Return seconds of three sleeps and wakes, to the first token, and what of the GPU is held meanwhile."""
    from vllm import LLM, SamplingParams

    from reasonscale.serving.gpus import GIB, visible

    llm = LLM(
        model=str(folder), load_format="dummy", skip_tokenizer_init=True, enable_sleep_mode=True, max_model_len=8192,
        max_num_seqs=64, gpu_memory_utilization=0.5, enable_prefix_caching=False,
    )  # fmt: skip
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)

    def tokens(most: int) -> tuple[int, ...]:
        one = SamplingParams(temperature=0, max_tokens=most, ignore_eos=True, detokenize=False)
        return tuple(
            llm.generate({"prompt_token_ids": list(range(10, 74))}, one, use_tqdm=False)[0].outputs[0].token_ids
        )

    before, rounds = tokens(params.max_tokens or 8), []
    awake = visible()[0].free
    for _ in range(3):
        began = time.perf_counter()
        llm.sleep(level=1)
        slept = time.perf_counter()
        asleep = visible()[0].free
        woken_from = time.perf_counter()
        llm.wake_up()
        woken = time.perf_counter()
        tokens(1)
        rounds.append(
            {
                "sleep_s": round(slept - began, 3), "wake_s": round(woken - woken_from, 3),
                "wake_to_first_token_s": round(time.perf_counter() - woken_from, 3),
                "freed_gib": round((asleep - awake) / GIB, 2),
            }
        )  # fmt: skip
    return {"rounds": rounds, "same_tokens": tokens(params.max_tokens or 8) == before}
