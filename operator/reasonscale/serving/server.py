"""The Serve deployment that holds an engine. Runs under Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import ray
from ray import serve
from ray.llm._internal.serve.core.server import llm_server
from ray.llm._internal.serve.core.server.llm_server import LLMServer

from reasonscale.serving import fetching, leaving, loopback
from reasonscale.serving.asleep import Sleeper
from reasonscale.serving.batching import batched
from reasonscale.serving.engine import ReasonEngine
from reasonscale.serving.errors import EngineLost
from reasonscale.serving.export import Exporter, Here, describe
from reasonscale.serving.routing import AT, BY, KV_CAPACITY, KV_TOKENS, PREEMPTED, REQUESTS, RESTS, WAITING_PROMPT
from reasonscale.serving.settings import ModelSettings

log = logging.getLogger("ray.serve")
loopback.apply()
STREAM_BEAT_S = 5.0  # a stream that says nothing says that it is alive
WHOLE_BEAT_S = 1.0  # and an answer that comes at once says how far it is
_EXIT_AFTER_S = 1.0  # what an engine's loss is told to its requests in


class ReasonServer(LLMServer):  # type: ignore[misc]
    """Serve LLM's server with our engine, whose ledger it exports."""

    _default_engine_cls = ReasonEngine

    async def _start_engine(self) -> None:
        # Serve LLM starts an actor of 670 MB to collect usage statistics, also where they are switched off.
        plain = llm_server.push_telemetry_report_for_all_models
        llm_server.push_telemetry_report_for_all_models = lambda all_models: None
        loading = self._llm_config.model_loading_config
        try:
            with (
                leaving.at_once_if_told(),
                fetching.of_replica(self._llm_config.model_id, str(loading.model_source or "")),
            ):
                await super()._start_engine()
        finally:
            llm_server.push_telemetry_report_for_all_models = plain
        self.engine.replica = serve.get_replica_context().replica_id.unique_id
        self._exporter = Exporter(self._llm_config.model_id)
        self._here = Here(self.engine.replica, ray.get_runtime_context().get_node_id(), time.time())
        self._export_task = asyncio.create_task(self._export())
        if self._pending is not None:
            self._apply(self._pending)

    _pending: dict[str, Any] | None = None

    async def _run_request(
        self, request: Any, *, engine_method: str, batch_output_stream: bool = False, raw_request_info: Any = None
    ) -> AsyncGenerator[Any, None]:
        # Serve LLM's own batcher holds the first token back for an interval, and wakes up each interval for each stream.
        await self._maybe_add_request_id_to_request(request)
        source = getattr(self.engine, engine_method)(request, raw_request_info)
        if not batch_output_stream:
            return source  # type: ignore[no-any-return]
        return self._sent(source, STREAM_BEAT_S if request.stream else WHOLE_BEAT_S, request)

    async def _sent(self, source: AsyncGenerator[Any, None], beat_s: float, request: Any) -> AsyncGenerator[Any, None]:
        try:
            yield [await anext(source)]  # that it is here, before anything that takes time
            batches = batched(
                source, lambda: self.engine.interval_s(request.request_id), beat_s,
                lambda: self.engine.beat(request.request_id),
            )  # fmt: skip
            async with aclosing(batches):
                async for batch in batches:
                    yield batch
        except EngineLost as error:
            self._give_up(error)
            raise
        finally:
            await source.aclose()

    def _give_up(self, error: EngineLost) -> None:
        """Leave: Serve starts another replica at once, and checks one that stays for half a minute first."""
        if not self._leaving:
            self._leaving = True
            log.error("this replica goes, since its engine was lost: %s", error)
            asyncio.get_running_loop().call_later(_EXIT_AFTER_S, leaving.leave)

    _leaving = False

    async def _export(self) -> None:
        engine = self.engine
        while True:
            try:
                self._look()
                self.engine.check_moving(time.monotonic())
                self._exporter.write(
                    engine.ledger,
                    engine.sums,
                    engine.kv_capacity_tokens,
                    time.time(),
                    draining=leaving.told_to_go(),
                    here=self._here,
                    sleeper=engine.sleeper,
                )
            except EngineLost as error:
                self._give_up(error)
            except Exception:  # the next second may do better; a silent ledger would hold the scaler for good
                log.exception("the ledger could not be written")
            await asyncio.sleep(1.0)

    async def record_routing_stats(self) -> dict[str, Any]:
        """Return what the router weighs replicas by."""
        ledger, sums = self.engine.ledger, self.engine.sums
        preempted, self._preempted = sums.preemptions > self._preempted, sums.preemptions
        return {
            KV_TOKENS: sums.kv_usage * self.engine.kv_capacity_tokens, KV_CAPACITY: self.engine.kv_capacity_tokens,
            WAITING_PROMPT: ledger.waiting_prompt_tokens, REQUESTS: len(ledger.rows), AT: time.time(), PREEMPTED: preempted,
            BY: self.engine.inflight.by_ingress(), RESTS: self.engine.sleeper.stage,
        }  # fmt: skip

    _preempted = 0

    def _look(self) -> None:
        self.engine.look()
        if not self.engine.ledger.rows:
            self.engine.sums.idle()

    def _apply(self, config: dict[str, Any]) -> None:
        settings = ModelSettings.from_json(config)
        self.engine.field_names = settings.field_names
        self.engine.hidden = settings.hidden
        self.engine.max_waiting = settings.max_waiting
        self.engine.hang_s = settings.hang_s

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new settings; no engine restarts."""
        self._pending = user_config
        if user_config and self.engine is not None:
            self._apply(user_config)

    async def rest(self, asleep: bool, raw_request_info: Any = None) -> bool:
        """Go to sleep, or wake; return whether the engine sleeps. `raw_request_info`: by it the router finds this replica."""
        try:
            sleeper: Sleeper = self.engine.sleeper
            return await sleeper.rest(asleep)
        except EngineLost as error:
            self._give_up(error)
            raise

    async def ledger(self) -> dict[str, Any]:
        """Return the ledger as plain values."""
        self._look()
        return {"replica": self.engine.replica} | describe(
            self.engine.ledger, self.engine.sums, self.engine.kv_capacity_tokens
        )
