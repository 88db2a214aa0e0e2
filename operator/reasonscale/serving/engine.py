"""The engine in a replica: vLLM as Serve LLM starts it, with a ledger around every request. Runs under Ray."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ray.llm._internal.serve.core.configs.openai_api_models import ErrorResponse
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from vllm.sampling_params import RequestOutputKind
from vllm.v1.metrics.loggers import StatLoggerBase

from reasonscale.api.constants import CLASS_MEDIUM, HEADER_CLASS, HEADER_MOST_OUTPUT, HEADER_REQUEST_ID
from reasonscale.serving import events
from reasonscale.serving.ledger import Ledger, Result, Tracker
from reasonscale.serving.steps import StepSums


class _StepLogger(StatLoggerBase):  # type: ignore[misc]
    """Hands each step's figures to the replica's sums. One engine a process, so the sums hang on the class."""

    sums: StepSums = StepSums()
    capacity_tokens: float = 0.0

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        pass

    def log_engine_initialized(self) -> None:
        pass

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        if scheduler_stats is None:
            return
        prefill = iteration_stats.num_prompt_tokens if iteration_stats is not None else 0
        preempted = iteration_stats.num_preempted_reqs if iteration_stats is not None else 0
        self.sums.step(
            time.monotonic(), scheduler_stats.num_running_reqs, scheduler_stats.num_waiting_reqs,
            scheduler_stats.kv_cache_usage, type(self).capacity_tokens, prefill, preempted,
        )  # fmt: skip


class ReasonEngine(VLLMEngine):  # type: ignore[misc]
    """Serve LLM's vLLM engine with a ledger."""

    def __init__(self, llm_config: Any) -> None:
        super().__init__(llm_config)
        self.ledger = Ledger()
        self.sums = StepSums()
        self.field_names: tuple[str, ...] = ("reasoning", "reasoning_content")
        self.hidden = False
        self.max_waiting = 1_000_000
        self.kv_capacity_tokens = 0.0
        self._start_ids: tuple[int, ...] = ()
        self._end_ids: tuple[int, ...] = ()
        self._trackers: dict[str, Tracker] = {}
        self._whole: set[str] = set()  # requests whose output comes at once: read from the engine's own state
        self._classes: OrderedDict[str, str] = OrderedDict()  # request id -> class, until the engine takes it
        self._most: dict[str, int] = {}  # request id -> output tokens that the ingress counts it to
        self._arriving: set[str] = set()  # admitted, and not in the ledger yet: their prompts are being made
        self._results: OrderedDict[str, Result] = OrderedDict()

    def _start_async_llm_engine(self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any) -> Any:
        from vllm.platforms import current_platform
        from vllm.v1.engine import async_llm

        if current_platform.is_cpu():
            # Ray asks for a worker process beside the engine's; on a CPU one process holds both in half the memory.
            vllm_engine_config.parallel_config.distributed_executor_backend = "uni"
        plain = async_llm.load_stat_logger_plugin_factories
        async_llm.load_stat_logger_plugin_factories = lambda: [*plain(), _StepLogger]
        _StepLogger.sums = self.sums
        try:
            client = super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)
        finally:
            async_llm.load_stat_logger_plugin_factories = plain
        cache = client.vllm_config.cache_config
        blocks = cache.num_gpu_blocks or cache.num_gpu_blocks_override or 0
        self.kv_capacity_tokens = _StepLogger.capacity_tokens = float(blocks * cache.block_size)
        return client

    async def start(self) -> None:
        await super().start()
        client = self._engine_client
        self._start_ids, self._end_ids = _think_ids(client)
        reasoning = getattr(client.vllm_config, "reasoning_config", None)
        self._can_budget = reasoning is not None and bool(reasoning.enabled)
        self._plain_generate = client.generate
        client.generate = self._generate

    def _thinks(self, prompt_ids: Any) -> bool:
        """Tell whether a prompt leaves the chain open: it is closed where its last end mark follows its last start."""
        if not self._end_ids:
            return False
        if len(self._end_ids) != 1 or not prompt_ids:
            return True
        ids = list(prompt_ids)
        end = len(ids) - 1 - ids[::-1].index(self._end_ids[0]) if self._end_ids[0] in ids else -1
        start = (
            len(ids) - 1 - ids[::-1].index(self._start_ids[0]) if self._start_ids and self._start_ids[0] in ids else -1
        )
        return end < 0 or start > end

    async def _generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        """Run a request under the ledger's eye, each of its choices in a row of its own."""
        rid, ledger = request_id, self.ledger
        cls = self._class_of(rid)
        prompt_ids = (
            prompt.get("prompt_token_ids") if isinstance(prompt, dict) else getattr(prompt, "prompt_token_ids", None)
        )
        thinks = self._thinks(prompt_ids)
        delta = sampling_params.output_kind == RequestOutputKind.DELTA
        budget = sampling_params.thinking_token_budget
        if budget is not None and not self._can_budget:
            # The engine would answer with an error that no client caused.
            sampling_params, budget = sampling_params.clone(), None
            sampling_params.thinking_token_budget = None
        most = self._most.get(self._plain_id(rid))
        if most is not None and most < (sampling_params.max_tokens or most + 1):
            sampling_params = sampling_params.clone()
            sampling_params.max_tokens = most
        keys = [_row_id(rid, index) for index in range(sampling_params.n or 1)]
        for key in keys:
            tracker = self._trackers[key] = Tracker(self._end_ids, thinks)
            ledger.start(key, cls, time.time(), thinks=not tracker.answering)
            if prompt_ids:
                ledger.prompt(key, len(prompt_ids))
        if not delta:
            self._whole.update(keys)
        try:
            async with aclosing(self._plain_generate(prompt, sampling_params, request_id, **kwargs)) as stream:
                async for output in stream:
                    for made in output.outputs:
                        key = _row_id(rid, made.index)
                        if key in self._trackers:
                            if output.prompt_token_ids:
                                ledger.prompt(key, len(output.prompt_token_ids))
                            self._progress(key, made.token_ids, delta)
                            if made.finish_reason is not None:
                                self._finish(key, made.index, budget, ended=made.finish_reason == "stop")
                    yield output
        finally:
            for index, key in enumerate(keys):
                self._finish(key, index, budget, ended=False)

    def _progress(self, key: str, token_ids: Any, delta: bool) -> None:
        tracker = self._trackers[key]
        tracker.feed(token_ids if delta else list(token_ids)[tracker.generated :])
        self.ledger.progress(key, tracker.generated, tracker.reasoning_tokens, tracker.answering)

    def _finish(self, key: str, index: int, budget: int | None, *, ended: bool) -> None:
        """Take a choice out of the ledger, once."""
        tracker = self._trackers.pop(key, None)
        self._whole.discard(key)
        if tracker is None:
            return
        # vLLM forces the end marks as the budget's last tokens.
        exhausted = budget is not None and tracker.reasoning_tokens >= budget - len(self._end_ids) >= 0
        result = self.ledger.finish(key, time.time(), ended=ended, exhausted=exhausted)
        if not self.ledger.rows:
            self.sums.idle()  # after an abort no step may follow that would say so
        if result is not None:
            # The choices of a request have one prompt.
            self._results[key] = result if index == 0 else replace(result, prompt_tokens=0)

    def _plain_id(self, rid: str) -> str:
        """Return the id that a request came with from the id of one of its prompts in the engine."""
        # One prefix is the engine's; what follows may look like one, and is the client's.
        plain = rid.removeprefix("chatcmpl-") if rid.startswith("chatcmpl-") else rid.removeprefix("cmpl-")
        return plain if plain in self._classes else plain.rsplit("-", 1)[0]

    def _class_of(self, rid: str) -> str:
        """Return the class that a request came with; from now on the ledger knows of it."""
        plain = self._plain_id(rid)
        self._arriving.discard(plain)
        return self._classes.get(plain, CLASS_MEDIUM)

    def look(self) -> None:
        """Bring the rows of requests whose output comes at once up to date, from the engine's own state."""
        if not self._whole:
            return
        for state in list(self._engine_client.output_processor.request_states.values()):
            parent = getattr(state, "parent_req", None)
            external = getattr(state if parent is None else parent, "external_req_id", None) or state.request_id
            rid = _row_id(external, state.request_index)
            tracker = self._trackers.get(rid)
            if tracker is None or rid not in self._whole or state.detokenizer is None:
                continue
            self.ledger.prompt(rid, state.prompt_len or 0)
            ids = state.detokenizer.output_token_ids
            if len(ids) > tracker.generated:
                tracker.feed(list(ids[tracker.generated :]))
                self.ledger.progress(rid, tracker.generated, tracker.reasoning_tokens, tracker.answering)

    def retry_after_s(self) -> int:
        """Return when a place should be free: what waits at the rate of late, between 1 and 60 s."""
        rate = self.ledger.ends_per_s(time.time())
        return 5 if not rate else max(1, min(60, round(self.ledger.waiting / rate)))

    async def _watched(
        self, stream: AsyncGenerator[Any, None], prefix: str, request: Any, info: Any
    ) -> AsyncGenerator[Any, None]:
        """Run a request: refuse it where too many wait, rewrite what it streams, and end with what it came to."""
        headers = {k.lower(): v for k, v in (info.headers if info is not None else {}).items()}
        # An id of the client's may come twice at once; the engine aborts by it and the ledger keeps rows by it.
        plain = request.request_id = f"{headers.get(HEADER_REQUEST_ID) or request.request_id}.{uuid.uuid4().hex[:8]}"
        # A burst is counted while its prompts are still being made, else all of it would pass.
        waiting = self.ledger.waiting + len(self._arriving)
        if waiting >= self.max_waiting:
            await stream.aclose()
            yield {"refused": self.retry_after_s(), "waiting": waiting}
            return
        self._arriving.add(plain)
        self._classes[plain] = headers.get(HEADER_CLASS, CLASS_MEDIUM)
        most = headers.get(HEADER_MOST_OUTPUT, "")
        if most.isdigit():
            self._most[plain] = max(1, int(most))
        rid = prefix + plain
        try:
            async with aclosing(stream):
                async for item in stream:
                    if isinstance(item, ErrorResponse):
                        yield {"error": item.error.model_dump()}
                    elif isinstance(item, str):
                        piece = self._piece(rid, item)
                        if piece is not None:
                            yield piece
                    else:
                        counts = self._counts(rid)
                        yield {
                            "response": events.rewrite_response(
                                item.model_dump(), self.field_names, self.hidden, counts["reasoning_tokens"]
                            ),
                            "counts": counts,
                        }
                        return
            yield (events.COUNTS, self._counts(rid))
        finally:
            self._classes.pop(plain, None)
            self._most.pop(plain, None)
            self._arriving.discard(plain)
            self._counts(rid)  # an aborted request's are nobody's

    def _piece(self, rid: str, event: str) -> tuple[str, Any] | None:
        if event.startswith("data: [DONE]"):
            return (events.OTHER, events.DONE)
        seen = self._reasoned(rid) if '"usage":{' in event else 0
        return events.rewrite_event(event, self.field_names, self.hidden, seen)

    def _reasoned(self, rid: str) -> int:
        """Return the reasoning tokens of a request's parts so far."""
        rows: dict[str, Tracker | Result] = {**self._trackers, **self._results}
        return sum(row.reasoning_tokens for key, row in rows.items() if _part_of(key, rid))

    def _counts(self, rid: str) -> dict[str, Any]:
        """Return what a request came to, its parts (several prompts) added up."""
        keys = [key for key in self._results if _part_of(key, rid)]
        found = [self._results.pop(k) for k in keys]
        return {
            "prompt_tokens": sum(r.prompt_tokens for r in found),
            "reasoning_tokens": sum(r.reasoning_tokens for r in found),
            "answer_tokens": sum(r.answer_tokens for r in found),
            "budget_exhausted": any(r.exhausted for r in found),
        }

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        async for item in self._watched(
            super().chat(request, raw_request_info), "chatcmpl-", request, raw_request_info
        ):
            yield item

    async def completions(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        async for item in self._watched(
            super().completions(request, raw_request_info), "cmpl-", request, raw_request_info
        ):
            yield item


def _row_id(rid: str, index: int) -> str:
    """Return the id of a choice's row in the ledger."""
    return rid if index == 0 else f"{rid}_{index}"


def _part_of(key: str, rid: str) -> bool:
    """Tell whether a row belongs to a request: it, one of its prompts (`-0`) or one of its choices (`_1`)."""
    return key.startswith(rid) and (len(key) == len(rid) or key[len(rid)] in "-_")


def _think_ids(client: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the token ids that open and close a chain, from the engine's reasoning parser; empty where there is none."""
    config = client.vllm_config
    reasoning = getattr(config, "reasoning_config", None)
    start = getattr(reasoning, "reasoning_start_token_ids", None) if reasoning is not None else None
    end = getattr(reasoning, "reasoning_end_token_ids", None) if reasoning is not None else None
    if end:
        return tuple(start or ()), tuple(end)
    name = getattr(getattr(config, "structured_outputs_config", None), "reasoning_parser", "") or ""
    if not name:
        return (), ()
    tokenizer = client.get_tokenizer()
    if name == "openai_gptoss":
        return (), tuple(tokenizer.encode("<|channel|>final<|message|>", add_special_tokens=False))
    vocab = tokenizer.get_vocab()
    ids = [vocab.get(mark) for mark in ("<think>", "</think>")]
    return ((ids[0],) if ids[0] is not None else ()), ((ids[1],) if ids[1] is not None else ())
