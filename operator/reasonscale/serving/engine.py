"""The engine in a replica: vLLM as Serve LLM starts it, with a ledger around every request. Runs under Ray."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from ray.llm._internal.serve.core.configs.openai_api_models import ErrorResponse
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase

from reasonscale.api import constants as c
from reasonscale.serving import events, firsts, place
from reasonscale.serving.asleep import Sleeper
from reasonscale.serving.batching import SHORTEST_S, interval_s
from reasonscale.serving.errors import EngineLost
from reasonscale.serving.gather import BY_TOKEN, Gatherer, gatherer_of
from reasonscale.serving.inflight import Asked, InFlight, row_id
from reasonscale.serving.ledger import Ledger
from reasonscale.serving.replay import go_on
from reasonscale.serving.settings import CRASH_ENV
from reasonscale.serving.steps import StepSums
from reasonscale.serving.warm import warm


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
        prefill = iteration_stats.num_prompt_tokens if iteration_stats is not None else 0
        preempted = iteration_stats.num_preempted_reqs if iteration_stats is not None else 0
        if scheduler_stats is None:  # the second part of a step (`firsts`)
            self.sums.preemptions += preempted
            return
        self.sums.step(
            time.monotonic(), scheduler_stats.num_running_reqs, scheduler_stats.num_waiting_reqs,
            scheduler_stats.kv_cache_usage, type(self).capacity_tokens, prefill, preempted,
        )  # fmt: skip


class ReasonEngine(VLLMEngine):  # type: ignore[misc]
    """Serve LLM's vLLM engine with a ledger."""

    def __init__(self, llm_config: Any) -> None:
        super().__init__(llm_config)
        self.inflight = InFlight()
        self.field_names: tuple[str, ...] = ("reasoning", "reasoning_content")
        self.hidden = False
        self.max_waiting = 1_000_000
        self.kv_capacity_tokens = 0.0
        self.hang_s = 60.0
        self.replica = ""  # the id of the replica that it is in
        self.sleeper = Sleeper(lambda: self.inflight.any, lambda: place.none_starts(self._place))

    @property
    def ledger(self) -> Ledger:
        return self.inflight.ledger

    @property
    def sums(self) -> StepSums:
        return self.inflight.sums

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

    def _prepare_engine_config(self, callback_ctx: Any) -> Any:
        """Return the engine's configuration; on one GPU without Ray's worker process between engine and GPU.

        That worker costs a message to and fro each step, and forbids asynchronous scheduling.
        """
        if self._place is None:
            return super()._prepare_engine_config(callback_ctx)
        return place.engine_config(self.llm_config)

    _place: int | None = None  # the GPU of an engine that has one alone

    async def start(self) -> None:
        self._place = await place.gpu_of(self.llm_config)
        place.without_fetching(self.llm_config)
        if self._place is None:
            await super().start()
        else:
            async with place.room(self._place, self.llm_config):
                await super().start()
        client = self._engine_client
        self.inflight.start_ids, self.inflight.end_ids = _think_ids(client)
        reasoning = getattr(client.vllm_config, "reasoning_config", None)
        if getattr(client.vllm_config.model_config, "enable_sleep_mode", False):
            self.sleeper.engine = client
        self._can_budget = reasoning is not None and bool(reasoning.enabled)
        self._by_token = _parser_of(client) in BY_TOKEN
        await warm(client, self.inflight.start_ids, budgets=self._can_budget)
        self.inflight.sums = _StepLogger.sums = StepSums()  # those steps are no one's work
        firsts.ahead(client)
        self._plain_generate = client.generate
        client.generate = self._generate

    async def _generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        """Run a request under the ledger's eye, each of its choices in a row of its own."""
        rid, inflight, ledger = request_id, self.inflight, self.ledger
        asked = inflight.asked_of(rid)
        asked.arriving = False
        asked.sequences += sampling_params.n or 1
        prompt_ids = (
            prompt.get("prompt_token_ids") if isinstance(prompt, dict) else getattr(prompt, "prompt_token_ids", None)
        )
        thinks = inflight.thinks(prompt_ids)
        delta = sampling_params.output_kind == RequestOutputKind.DELTA
        budget = sampling_params.thinking_token_budget
        if budget is not None and not self._can_budget:
            # The engine would answer with an error that no client caused.
            sampling_params, budget = sampling_params.clone(), None
            sampling_params.thinking_token_budget = None
        crash = os.environ.get(CRASH_ENV)
        if crash and crash in str(prompt.get("prompt")):
            os.kill(os.getpid(), signal.SIGKILL)
        most = asked.most
        if most is not None and most < (sampling_params.max_tokens or most + 1):
            sampling_params = sampling_params.clone()
            sampling_params.max_tokens = most
        keys = [row_id(rid, index) for index in range(sampling_params.n or 1)]
        made = inflight.begin(keys, asked, prompt_ids, thinks, delta)
        if made:

            def told(ids: Sequence[int], finish: str | None) -> None:
                if ids:
                    inflight.progress(rid, ids, True)
                if finish is not None:
                    inflight.finish(rid, 0, budget, ended=finish == "stop")

            source = go_on(
                self._plain_generate, self._engine_client, prompt, sampling_params, request_id, made,
                by_token=asked.by_token or self._by_token, on_tokens=told, **kwargs,
            )  # fmt: skip
        else:
            source = self._plain_generate(prompt, sampling_params, request_id, **kwargs)
        # Parsers of tools are made for one token at a time, and so are some of chains.
        gathers = delta and not made and len(keys) == 1 and not asked.tools and not self._by_token
        gatherer: Gatherer | None = None
        try:
            async with aclosing(source) as stream:
                async for output in stream:
                    if gathers:
                        if gatherer is None:
                            gatherer = gatherer_of(self._engine_client, rid)
                            asked.gathers = gatherer is not None
                        else:
                            gatherer.took(len(output.outputs[0].token_ids), interval_s(len(ledger.rows)))
                    for part in () if made else output.outputs:
                        key = row_id(rid, part.index)
                        if inflight.generated(key) is not None:
                            if output.prompt_token_ids:
                                ledger.prompt(key, len(output.prompt_token_ids))
                            inflight.progress(key, part.token_ids, delta)
                            if part.finish_reason is not None:
                                inflight.finish(key, part.index, budget, ended=part.finish_reason == "stop")
                    yield output
        finally:
            known = inflight.generated(rid)
            if gatherer is not None and known is not None:  # its client left
                inflight.progress(rid, gatherer.unsent(known), True)
            for index, key in enumerate(keys):
                inflight.finish(key, index, budget, ended=False)

    def interval_s(self, plain: str) -> float:
        """Return how long what a request streams is gathered into one message."""
        asked = self.inflight.get(plain)
        return SHORTEST_S if asked is not None and asked.gathers else interval_s(len(self.ledger.rows))

    def beat(self, plain: str) -> events.Piece | None:
        """Return what says that a request is held here, with the tokens made meanwhile; EngineLost where nothing moves."""
        asked = self.inflight.get(plain)
        if asked is None:
            return None
        self.look()
        self.check_moving(time.monotonic())
        return self._alive(asked)

    def look(self) -> None:
        """Bring the ledger up to date, also of requests whose output comes at once."""
        self.inflight.look(self._engine_client)

    def check_moving(self, now: float) -> None:
        """Raise EngineLost where the engine is dead, or has requests and has made no step for `hang_s`."""
        if self._engine_client.errored:
            raise EngineLost("the engine died")
        if self.sleeper.lost is not None:
            raise self.sleeper.lost
        if not self.ledger.rows or self._moved[0] != self.sums.told:
            self._moved = (self.sums.told, now)
        elif now - self._moved[1] > self.hang_s:
            raise EngineLost(f"the engine made no step for {now - self._moved[1]:.0f} s")

    _moved: tuple[int, float] = (0, float("inf"))

    def _alive(self, asked: Asked) -> events.Piece:
        mark, asked.mark = asked.mark, None
        ids, asked.fresh = asked.fresh, []
        return (events.ALIVE, {"prompt": mark}, ids, ())

    async def _watched(
        self, stream: AsyncGenerator[Any, None], prefix: str, request: Any, info: Any
    ) -> AsyncGenerator[Any, None]:
        """Run a request: refuse it where too many wait, rewrite what it streams, and end with what it came to."""
        headers = {k.lower(): v for k, v in (info.headers if info is not None else {}).items()}
        # An id of the client's may come twice at once; the engine aborts by it and the ledger keeps rows by it.
        plain = headers.get(c.HEADER_UNIQUE_ID) or f"{request.request_id}.{uuid.uuid4().hex[:8]}"
        request.request_id = plain
        waiting = self.inflight.waiting
        if waiting >= self.max_waiting and c.HEADER_AGAIN not in headers:
            await stream.aclose()
            yield {"refused": self.inflight.retry_after_s(), "waiting": waiting}
            return
        asked = self.inflight.enter(plain, headers)
        asked.tools = bool(getattr(request, "tools", None))
        rid = prefix + plain
        try:
            yield (events.ALIVE, {"replica": self.replica}, [], ())
            await self.sleeper.awake()
            async with aclosing(stream):
                async for item in stream:
                    if self._dead(item):
                        raise EngineLost("the engine died")
                    if isinstance(item, ErrorResponse):
                        yield {"error": item.error.model_dump()}
                    elif isinstance(item, str):
                        if asked.mark is not None:
                            yield self._alive(asked)
                        yield self._piece(rid, asked, item)
                    else:
                        counts = self.inflight.counts(rid)
                        response = item.model_dump()
                        if asked.created is not None and "created" in response:
                            response["created"] = asked.created
                        yield {
                            "response": events.rewrite_response(
                                response, self.field_names, self.hidden, counts["reasoning_tokens"]
                            ),
                            "counts": counts,
                        }
                        return
            yield (events.COUNTS, self.inflight.counts(rid), [], ())
        except Exception as error:
            # What a dead engine's client raises is not always its own word for it: a closed socket's, for one.
            if isinstance(error, EngineDeadError) or self._engine_client.errored:
                raise EngineLost("the engine died") from None
            raise
        finally:
            self.inflight.leave(plain, rid)

    def _dead(self, item: Any) -> bool:
        """Tell whether an error comes from an engine that is no more: the request is not at fault."""
        wrong = isinstance(item, ErrorResponse) or (isinstance(item, str) and item.startswith('data: {"error"'))
        return wrong and bool(self._engine_client.errored)

    def _piece(self, rid: str, asked: Asked, event: str) -> events.Piece:
        ids, asked.fresh = asked.fresh, []
        if event.startswith("data: [DONE]"):
            return (events.OTHER, events.DONE, ids, ())
        seen = self.inflight.reasoned(rid) if '"usage":{' in event else 0
        kind, text, said = events.rewrite_event(event, self.field_names, self.hidden, seen, asked.created)
        return (kind, text, ids, said)

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


def _parser_of(client: Any) -> str:
    """Return the name of the engine's reasoning parser; empty where there is none."""
    return getattr(getattr(client.vllm_config, "structured_outputs_config", None), "reasoning_parser", "") or ""


def _think_ids(client: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the token ids that open and close a chain, from the engine's reasoning parser; empty where there is none."""
    config = client.vllm_config
    reasoning = getattr(config, "reasoning_config", None)
    start = getattr(reasoning, "reasoning_start_token_ids", None) if reasoning is not None else None
    end = getattr(reasoning, "reasoning_end_token_ids", None) if reasoning is not None else None
    if end:
        return tuple(start or ()), tuple(end)
    name = _parser_of(client)
    if not name:
        return (), ()
    tokenizer = client.get_tokenizer()
    if name == "openai_gptoss":
        return (), tuple(tokenizer.encode("<|channel|>final<|message|>", add_special_tokens=False))
    vocab = tokenizer.get_vocab()
    ids = [vocab.get(mark) for mark in ("<think>", "</think>")]
    return ((ids[0],) if ids[0] is not None else ()), ((ids[1],) if ids[1] is not None else ())
