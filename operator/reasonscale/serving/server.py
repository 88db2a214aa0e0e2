"""The Serve deployment that holds an engine. Runs under Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from ray.llm._internal.serve.core.server import llm_server
from ray.llm._internal.serve.core.server.llm_server import LLMServer

from reasonscale.serving import loopback
from reasonscale.serving.batching import batched
from reasonscale.serving.engine import ReasonEngine
from reasonscale.serving.export import Exporter, describe
from reasonscale.serving.settings import ModelSettings

log = logging.getLogger("ray.serve")
loopback.apply()
STREAM_INTERVAL_S = 0.02


class ReasonServer(LLMServer):  # type: ignore[misc]
    """Serve LLM's server with our engine, whose ledger it exports."""

    _default_engine_cls = ReasonEngine

    async def _start_engine(self) -> None:
        # Serve LLM starts an actor of 670 MB to collect usage statistics, also where they are switched off.
        plain = llm_server.push_telemetry_report_for_all_models
        llm_server.push_telemetry_report_for_all_models = lambda all_models: None
        try:
            await super()._start_engine()
        finally:
            llm_server.push_telemetry_report_for_all_models = plain
        self._exporter = Exporter(self._llm_config.model_id)
        self._export_task = asyncio.create_task(self._export())
        if self._pending is not None:
            self._apply(self._pending)

    _pending: dict[str, Any] | None = None

    def _batch_output_stream(self, generator: Any) -> Any:
        # Serve LLM's own batcher holds the first token back for an interval, and wakes up each interval for each stream.
        return batched(generator, STREAM_INTERVAL_S)

    async def _export(self) -> None:
        engine = self.engine
        while True:
            try:
                self._look()
                self._exporter.write(engine.ledger, engine.sums, engine.kv_capacity_tokens, time.time())
            except Exception:  # the next second may do better; a silent ledger would hold the scaler for good
                log.exception("the ledger could not be written")
            await asyncio.sleep(1.0)

    def _look(self) -> None:
        self.engine.look()
        if not self.engine.ledger.rows:
            self.engine.sums.idle()

    def _apply(self, config: dict[str, Any]) -> None:
        settings = ModelSettings.from_json(config)
        self.engine.field_names = settings.field_names
        self.engine.hidden = settings.hidden
        self.engine.max_waiting = settings.max_waiting

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new settings; no engine restarts."""
        self._pending = user_config
        if user_config and self.engine is not None:
            self._apply(user_config)

    async def ledger(self) -> dict[str, Any]:
        """Return the ledger as plain values."""
        from ray import serve

        self._look()
        return {"replica": serve.get_replica_context().replica_id.unique_id} | describe(
            self.engine.ledger, self.engine.sums, self.engine.kv_capacity_tokens
        )
