"""What the ledger costs: `python -m bench.ledger`.

Two ways. By itself: time of the ledger's own code for each token, and of what it does once a step and once a second, with
32 requests in flight. And paired: one real engine with 32 requests at once, each round once with the ledger around every
stream and once without, in turn, so that a drift of the machine falls on both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.forecast import header
from bench.stack import NUMBERS, model

from reasonscale.demo import tasks
from reasonscale.serving.config import LOCAL_ENV
from reasonscale.serving.ledger import Ledger, Tracker
from reasonscale.serving.steps import StepSums

BATCH, TOKENS, END = 32, 1024, 2


def _best_s(do: Callable[[], None], times: int) -> float:
    """Return the least time of several runs: the rest is other people's work."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        do()
        found.append(time.perf_counter() - began)
    return min(found)


def _decode() -> None:
    ledger = Ledger()
    trackers = {f"r{k}": Tracker((END,), True) for k in range(BATCH)}
    for rid in trackers:
        ledger.start(rid, "medium", 0.0, thinks=True)
    for _ in range(TOKENS):
        for rid, tracker in trackers.items():
            tracker.feed((5,))
            ledger.progress(rid, tracker.generated, tracker.reasoning_tokens, tracker.answering)
    for rid in trackers:
        ledger.finish(rid, 1.0, ended=True)


def by_itself() -> dict[str, float]:
    """Return microseconds of the ledger's own code."""
    ledger, sums = Ledger(), StepSums()
    for k in range(BATCH):
        ledger.start(f"r{k}", "medium", 0.0, thinks=True)
        ledger.progress(f"r{k}", 40 * k + 1, 40 * k + 1, answering=False)

    def look() -> None:
        ledger.now()

    def steps() -> None:
        for k in range(10_000):
            sums.step(float(k), BATCH, 0, 0.5, 5120, 0, 0)

    return {
        "per_token_us": round(1e6 * _best_s(_decode, 5) / (BATCH * TOKENS), 3),
        "per_step_us": round(1e6 * _best_s(steps, 5) / 10_000, 3),
        "look_once_a_second_us": round(1e6 * _best_s(look, 50), 1),
    }


async def _engine() -> tuple[Any, Any, Any]:
    """Return vLLM's client, its own `generate` and our engine around it, as a replica has them but for Ray."""
    from unittest.mock import AsyncMock, patch

    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
    from ray.serve.llm import LLMConfig
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from reasonscale.serving.engine import ReasonEngine

    source = model().model_source
    args = AsyncEngineArgs(
        model=source, dtype="float32", max_model_len=2048, max_num_seqs=BATCH, max_num_batched_tokens=2048, enforce_eager=True,
        enable_prefix_caching=False, reasoning_parser="qwen3", seed=0,
    )  # fmt: skip
    client = AsyncLLM.from_engine_args(args)
    plain = client.generate
    ours = ReasonEngine(LLMConfig(model_loading_config={"model_id": "micro", "model_source": source}))
    ours._engine_client = client
    with patch.object(VLLMEngine, "start", AsyncMock()):  # what starts the engine under Ray; it runs already
        await ours.start()
    return client, plain, ours


async def _round(generate: Any, prompts: list[list[int]], tokens: int) -> float:
    """Return tokens per second of one round; every request makes the same number."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        temperature=0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )

    async def one(k: int, ids: list[int]) -> int:
        made = 0
        async for output in generate(
            {"prompt_token_ids": ids}, params.clone(), request_id=f"chatcmpl-{time.monotonic_ns()}-{k}"
        ):
            made += len(output.outputs[0].token_ids)
        return made

    began = time.perf_counter()
    counts = await asyncio.gather(*(one(k, ids) for k, ids in enumerate(prompts)))
    return sum(counts) / (time.perf_counter() - began)


async def paired(pairs: int, tokens: int) -> dict[str, Any]:
    """Return throughput with and without the ledger, by pair."""
    client, plain, ours = await _engine()
    counted = client.generate
    try:
        tokenizer = client.get_tokenizer()
        prompts = []
        for n in NUMBERS[:BATCH]:
            chat = [{"role": "user", "content": tasks.collatz_task(n).question}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            prompts.append(tokenizer.encode(text, add_special_tokens=False))
        for generate in (plain, counted):
            await _round(generate, prompts, 32)  # warm
        rates: dict[str, list[float]] = {"without": [], "with": []}
        for pair in range(pairs):
            order = [("without", plain), ("with", counted)]
            for name, generate in order if pair % 2 == 0 else order[::-1]:
                rates[name].append(await _round(generate, prompts, tokens))
            print(f"pair {pair}: {rates['without'][-1]:.0f} without, {rates['with'][-1]:.0f} with", file=sys.stderr)
        lost = [100 * (1 - w / o) for o, w in zip(rates["without"], rates["with"], strict=True)]
        return {
            "batch": BATCH,
            "tokens_per_request": tokens,
            "tokens_per_s": {name: [round(r, 1) for r in values] for name, values in rates.items()},
            "overhead_percent": round(mean(lost), 2),
            "overhead_percent_ci95": round(1.96 * stdev(lost) / math.sqrt(len(lost)), 2) if len(lost) > 1 else None,
            "counted_all": sum(t.arrivals for t in ours.ledger.totals.values()) == BATCH * (pairs + 1),
        }
    finally:
        client.shutdown()


def main() -> int:
    """Measure, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="tokens that every request makes")
    parser.add_argument("--out", type=Path, default=Path("bench/results/ledger.json"))
    args = parser.parse_args()
    for name, value in LOCAL_ENV.items():  # before vLLM is imported
        os.environ.setdefault(name, value)
    itself = by_itself()
    found = asyncio.run(paired(args.pairs, args.tokens))
    # What the code's own time is of the time that a token takes: free of the noise of whole rounds.
    rate = mean(found["tokens_per_s"]["without"])
    share = 100 * rate * 1e-6 * (itself["per_token_us"] + itself["per_step_us"] / BATCH)
    command = f"python -m bench.ledger --pairs {args.pairs} --tokens {args.tokens}"
    result = {
        "header": header(command),
        "by_itself": itself,
        "share_of_a_core_percent": round(share, 2),
        "paired": found,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"ledger: {itself['per_token_us']} us a token ({share:.2f} % of a core at {rate:.0f} tokens/s); paired {found['overhead_percent']} % +- {found['overhead_percent_ci95']}; {args.out}"
    )
    return 0 if found["counted_all"] else 1


if __name__ == "__main__":
    sys.exit(main())
