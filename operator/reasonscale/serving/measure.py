"""Measures how long an engine's steps take on the hardware it finds: a decode sweep, and prefill points. Runs vLLM itself.

The rows are those that docs/simulator.md describes, so that `profile fit` takes them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

BATCHES: Final = (1, 8, 32, 64, 128, 256, 512)
CONTEXTS: Final = (8192, 4096, 2048, 1024, 512)
SHORT: Final = 256
STEPS, WARM_STEPS = 48, 8
MOST_PREFILL: Final = 270_000  # tokens that are computed to set one point up: about 8 s of a 7B on an H100
SAMPLING: Final[Mapping[str, Any]] = {"temperature": 0.6, "top_p": 0.95}


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine takes at once; sizes in tokens."""

    kv_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


def sweep_points(limits: Limits) -> Iterator[tuple[int, int]]:
    """Yield (requests decoding, prompt tokens of each): a short and, where it fits, a long context for each number."""
    room = limits.max_model_len - STEPS - 2 * WARM_STEPS - 200
    batches = sorted({b for b in BATCHES if b < limits.max_num_seqs} | {limits.max_num_seqs})
    for batch in batches:
        fits = [
            c
            for c in CONTEXTS
            if c <= room and batch * (c + 256) <= 0.9 * limits.kv_tokens and batch * c <= MOST_PREFILL
        ]
        short = min(SHORT, max(16, room // 4), max(16, int(0.3 * limits.kv_tokens / batch)))
        if batch * (short + 128) > limits.kv_tokens:
            continue
        yield batch, short
        if fits and fits[0] >= 2 * short:
            yield batch, fits[0]
        elif (longer := min(room, int(0.8 * limits.kv_tokens / batch) - 128)) >= 2 * short:
            yield batch, longer


def prefill_points(limits: Limits) -> list[int]:
    """Return prompt lengths: parts of a step, one step, and several where they fit."""
    step = limits.max_num_batched_tokens
    found = [n for n in (128, 256, 512, 1024) if n < step] + [step, 2 * step, 4 * step]
    most = min(limits.max_model_len - 2, limits.kv_tokens - 64)
    return [n for n in found if n <= most] or [most]


class Bench:
    """One engine whose steps are timed; prompts are drawn at random, so that nothing is cached."""

    def __init__(self, engine: Any, vocab: int, clock: Callable[[], float] = time.perf_counter, seed: int = 1) -> None:
        self._engine, self._vocab, self._clock = engine, vocab, clock
        self._random, self._next = random.Random(seed), 0

    def _params(self, most: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(**SAMPLING, max_tokens=most, ignore_eos=True, detokenize=False)

    def _add(self, tokens: int, most: int) -> str:
        self._next += 1
        name = f"m{self._next}"
        prompt = [self._random.randrange(10, self._vocab) for _ in range(tokens)]
        self._engine.add_request(name, {"prompt_token_ids": prompt}, self._params(most))
        return name

    def decode(self, batch: int, context: int, steps: int = STEPS) -> list[float]:
        """Return the sweep's row [requests, mean context, median ms, low, high] (10th and 90th percentiles)."""
        most = steps + 2 * WARM_STEPS + batch * context // 512 + 64
        names = [self._add(context, most) for _ in range(batch)]
        made = dict.fromkeys(names, 0)

        def step() -> None:
            for output in self._engine.step():
                made[output.request_id] = len(output.outputs[0].token_ids)

        while min(made.values()) < 1:
            step()
        for _ in range(WARM_STEPS):
            step()
        times, before = [], self._clock()
        at = context + sum(made.values()) / batch
        for _ in range(steps):
            step()
            now = self._clock()
            times.append(1000 * (now - before))
            before = now
        mean_context = (at + context + sum(made.values()) / batch) / 2
        self._engine.abort_request(names)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        ordered = sorted(times)
        low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
        return [batch, round(mean_context, 1), round(median(times), 4), round(low, 4), round(high, 4)]

    def prefill(self, tokens: int, times: int) -> list[float]:
        """Return [prompt tokens, median ms] of one request with one output token, alone in the engine."""
        found = []
        for _ in range(times):
            began = self._clock()
            self._add(tokens, 1)
            while self._engine.has_unfinished_requests():
                self._engine.step()
            found.append(1000 * (self._clock() - began))
        return [tokens, round(median(found), 4)]


def measure(
    engine_kwargs: Mapping[str, Any], source: str, *, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Start an engine, measure it, stop it, and return the measurements."""
    import vllm
    from vllm import LLM

    kwargs = {k: v for k, v in engine_kwargs.items() if k not in ("reasoning_parser", "reasoning_config")}
    kwargs |= {"skip_tokenizer_init": True, "enable_prefix_caching": False, "disable_log_stats": True}
    began = time.perf_counter()
    llm = LLM(model=source, **kwargs)
    try:
        return _measured(llm, time.perf_counter() - began, vllm.__version__, say)
    finally:
        core = getattr(llm.llm_engine, "engine_core", None)
        if core is not None:
            core.shutdown()


def _measured(llm: Any, start_s: float, version: str, say: Callable[[str], None]) -> dict[str, Any]:
    config = llm.llm_engine.vllm_config
    cache, scheduler = config.cache_config, config.scheduler_config
    limits = Limits(
        int(cache.num_gpu_blocks) * int(cache.block_size), int(scheduler.max_num_seqs),
        int(scheduler.max_num_batched_tokens), int(config.model_config.max_model_len),
    )  # fmt: skip
    say(f"engine ready after {start_s:.0f} s, {limits.kv_tokens:,} tokens of KV cache")
    bench = Bench(llm.llm_engine, int(config.model_config.get_vocab_size()))
    bench.decode(1, 16, steps=4)  # what is compiled at its first use
    data: dict[str, Any] = {
        "kv_tokens": limits.kv_tokens, "block_size": int(cache.block_size), "max_num_seqs": limits.max_num_seqs,
        "max_num_batched_tokens": limits.max_num_batched_tokens, "engine_start_s": round(start_s, 1),
        "gpus_per_replica": int(config.parallel_config.world_size), "sampling": dict(SAMPLING), "vllm": version,
        "sweep": [], "prefill": [],
    }  # fmt: skip
    for tokens in prefill_points(limits):
        row = bench.prefill(tokens, 5 if tokens <= limits.max_num_batched_tokens else 3)
        data["prefill"].append(row)
        say(f"prefill {row[0]:>6} tokens  {row[1]:8.2f} ms")
    for batch, context in sweep_points(limits):
        row = bench.decode(batch, context)
        data["sweep"].append(row)
        say(f"decode {batch:>4} requests of {row[1]:>7,.0f} tokens  {row[2]:8.3f} ms ({row[3]:.3f} to {row[4]:.3f})")
    return data


def describe_machine(gpu: Any | None) -> dict[str, Any]:
    """Return what the measurements were taken on."""
    if gpu is None:
        return {"device": "cpu"}
    return {"device": gpu.name, "driver": gpu.driver, "memory_gib": round(gpu.total / 2**30, 1)}
