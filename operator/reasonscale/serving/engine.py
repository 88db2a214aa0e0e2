"""The engine in a replica: vLLM as Serve LLM starts it, with a ledger around every request. Runs under Ray."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from ray.llm._internal.serve.core.configs.openai_api_models import ErrorResponse
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase

from reasonscale.api import constants as c
from reasonscale.serving import events, place
from reasonscale.serving.asleep import Sleeper
from reasonscale.serving.batching import SHORTEST_S, interval_s
from reasonscale.serving.continuation import unpacked
from reasonscale.serving.errors import EngineLost
from reasonscale.serving.gather import BY_TOKEN, Gatherer, gatherer_of
from reasonscale.serving.ledger import Ledger, Result, Tracker
from reasonscale.serving.replay import go_on, mark_of
from reasonscale.serving.settings import CRASH_ENV
from reasonscale.serving.steps import StepSums
from reasonscale.serving.warm import warm


@dataclass(slots=True)
class Asked:
    """What the ingress says of one request, from its coming to its end."""

    cls: str
    most: int | None = None  # output tokens after which it ends as by max_tokens
    created: int | None = None  # the time that all of its events bear
    made: list[int] = field(default_factory=list)  # tokens that another engine made of it
    by_token: bool = False  # those are made again one by one
    keeps: bool = False  # the ingress is told of every token
    fresh: list[int] = field(default_factory=list)  # tokens that it was not told of yet
    mark: int | None = None  # of its prompt; not told yet
    arriving: bool = True  # not in the ledger yet: its prompt is being made
    ingress: str = ""  # which sent it
    sequences: int = 0  # choices of all its prompts that have begun
    tools: bool = False  # it may call tools
    gathers: bool = False  # its tokens leave the engine several at once

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Asked:
        most, created = headers.get(c.HEADER_MOST_OUTPUT, ""), headers.get(c.HEADER_CREATED, "")
        made = headers.get(c.HEADER_MADE)
        return cls(
            headers.get(c.HEADER_CLASS, c.CLASS_MEDIUM), max(1, int(most)) if most.isdigit() else None,
            int(created) if created.isdigit() else None, unpacked(made) if made else [],
            c.HEADER_BY_TOKEN in headers, c.HEADER_KEEP in headers, ingress=headers.get(c.HEADER_INGRESS, ""),
        )  # fmt: skip


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
        self._asked: dict[str, Asked] = {}  # by the id that a request came with
        self.hang_s = 60.0
        self.replica = ""  # the id of the replica that it is in
        self.sleeper = Sleeper(lambda: bool(self._asked or self.ledger.rows), lambda: place.none_starts(self._place))
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
        if self._place is None:
            await super().start()
        else:
            place.without_fetching(self.llm_config)
            async with place.room(self._place, self.llm_config):
                await super().start()
        client = self._engine_client
        self._start_ids, self._end_ids = _think_ids(client)
        reasoning = getattr(client.vllm_config, "reasoning_config", None)
        if getattr(client.vllm_config.model_config, "enable_sleep_mode", False):
            self.sleeper.engine = client
        self._can_budget = reasoning is not None and bool(reasoning.enabled)
        self._by_token = _parser_of(client) in BY_TOKEN
        await warm(client, self._start_ids, budgets=self._can_budget)
        self.sums = _StepLogger.sums = StepSums()  # those steps are no one's work
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
        asked = self._asked_of(rid)
        asked.arriving = False
        asked.sequences += sampling_params.n or 1
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
        crash = os.environ.get(CRASH_ENV)
        if crash and crash in str(prompt.get("prompt")):
            os.kill(os.getpid(), signal.SIGKILL)
        most = asked.most
        if most is not None and most < (sampling_params.max_tokens or most + 1):
            sampling_params = sampling_params.clone()
            sampling_params.max_tokens = most
        keys = [_row_id(rid, index) for index in range(sampling_params.n or 1)]
        made = self._begin(keys, asked, prompt_ids, thinks, delta)
        if made:

            def told(ids: Sequence[int], finish: str | None) -> None:
                if ids:
                    self._progress(rid, ids, True)
                if finish is not None:
                    self._finish(rid, 0, budget, ended=finish == "stop")

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
                        key = _row_id(rid, part.index)
                        if key in self._trackers:
                            if output.prompt_token_ids:
                                ledger.prompt(key, len(output.prompt_token_ids))
                            self._progress(key, part.token_ids, delta)
                            if part.finish_reason is not None:
                                self._finish(key, part.index, budget, ended=part.finish_reason == "stop")
                    yield output
        finally:
            if gatherer is not None and rid in self._trackers:  # its client left
                self._progress(rid, gatherer.unsent(self._trackers[rid].generated), True)
            for index, key in enumerate(keys):
                self._finish(key, index, budget, ended=False)

    def interval_s(self, plain: str) -> float:
        """Return how long what a request streams is gathered into one message."""
        asked = self._asked.get(plain)
        return SHORTEST_S if asked is not None and asked.gathers else interval_s(len(self.ledger.rows))

    def _begin(self, keys: Sequence[str], asked: Asked, prompt_ids: Any, thinks: bool, delta: bool) -> list[int]:
        """Enter a request's choices in the ledger; return what another engine made of it."""
        now = time.time()
        if asked.keeps and prompt_ids:
            asked.mark = mark_of(prompt_ids)
        for key in keys:
            tracker = self._trackers[key] = Tracker(self._end_ids, thinks)
            if asked.made:
                tracker.feed(asked.made)
                self.ledger.resume(
                    key, asked.cls, now, prompt_tokens=len(prompt_ids), generated=tracker.generated,
                    reasoning_tokens=tracker.reasoning_tokens, answering=tracker.answering,
                )  # fmt: skip
                continue
            self.ledger.start(key, asked.cls, now, thinks=not tracker.answering)
            if prompt_ids:
                self.ledger.prompt(key, len(prompt_ids))
            if not delta:
                self._whole.add(key)
        return asked.made

    def _keep(self, key: str, ids: Sequence[int]) -> None:
        asked = self._asked_of(key)
        if asked.keeps:
            asked.fresh.extend(ids)

    def _progress(self, key: str, token_ids: Any, delta: bool) -> None:
        tracker = self._trackers[key]
        new = token_ids if delta else list(token_ids)[tracker.generated :]
        tracker.feed(new)
        self._keep(key, new)
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

    def _asked_of(self, rid: str) -> Asked:
        """Return what was said of a request, from the id of one of its prompts in the engine."""
        # One prefix is the engine's; what follows may look like one, and is the client's.
        plain = rid.removeprefix("chatcmpl-") if rid.startswith("chatcmpl-") else rid.removeprefix("cmpl-")
        return self._asked.get(plain) or self._asked.get(plain.rsplit("-", 1)[0]) or Asked(c.CLASS_MEDIUM)

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
                new = list(ids[tracker.generated :])
                tracker.feed(new)
                self._keep(rid, new)
                self.ledger.progress(rid, tracker.generated, tracker.reasoning_tokens, tracker.answering)

    def by_ingress(self) -> dict[str, int]:
        """Return the sequences that are here, by the ingress that sent them."""
        found: dict[str, int] = {}
        for asked in self._asked.values():
            found[asked.ingress] = found.get(asked.ingress, 0) + max(1, asked.sequences)
        return found

    def retry_after_s(self) -> int:
        """Return when a place should be free: what waits at the rate of late, between 1 and 60 s."""
        rate = self.ledger.ends_per_s(time.time())
        return 5 if not rate else max(1, min(60, round(self.ledger.waiting / rate)))

    def beat(self, plain: str) -> events.Piece | None:
        """Return what says that a request is held here, with the tokens made meanwhile; EngineLost where nothing moves."""
        asked = self._asked.get(plain)
        if asked is None:
            return None
        self.look()
        self.check_moving(time.monotonic())
        return self._alive(asked)

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
        # A burst is counted while its prompts are still being made, else all of it would pass.
        waiting = self.ledger.waiting + sum(a.arriving for a in self._asked.values())
        if waiting >= self.max_waiting and c.HEADER_AGAIN not in headers:
            await stream.aclose()
            yield {"refused": self.retry_after_s(), "waiting": waiting}
            return
        asked = self._asked[plain] = Asked.of(headers)
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
                        counts = self._counts(rid)
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
            yield (events.COUNTS, self._counts(rid), [], ())
        except Exception as error:
            # What a dead engine's client raises is not always its own word for it: a closed socket's, for one.
            if isinstance(error, EngineDeadError) or self._engine_client.errored:
                raise EngineLost("the engine died") from None
            raise
        finally:
            self._asked.pop(plain, None)
            self._counts(rid)  # an aborted request's are nobody's

    def _dead(self, item: Any) -> bool:
        """Tell whether an error comes from an engine that is no more: the request is not at fault."""
        wrong = isinstance(item, ErrorResponse) or (isinstance(item, str) and item.startswith('data: {"error"'))
        return wrong and bool(self._engine_client.errored)

    def _piece(self, rid: str, asked: Asked, event: str) -> events.Piece:
        ids, asked.fresh = asked.fresh, []
        if event.startswith("data: [DONE]"):
            return (events.OTHER, events.DONE, ids, ())
        seen = self._reasoned(rid) if '"usage":{' in event else 0
        kind, text, said = events.rewrite_event(event, self.field_names, self.hidden, seen, asked.created)
        return (kind, text, ids, said)

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
