"""Watches a service as the autoscaler would, once a second, and keeps what it saw. For tests on real replicas."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from reasonscale.local.serve_api import ServeActuator, ServeApi
from reasonscale.scaling.decide import decide
from reasonscale.scaling.policy import policy_of
from reasonscale.scaling.state import State
from reasonscale.scaling.types import Decision, Mode, Observation
from reasonscale.signals.sources import ModelSource, Scrape


class Watch:
    """What was seen and what would have been decided, in order of time."""

    def __init__(self) -> None:
        self.seen: list[tuple[Observation, Decision]] = []

    async def run(self, service: Any, stop: threading.Event) -> None:
        api, scrape = ServeApi(service.node.dashboard_url, service.node.token), Scrape(service.node.metrics_urls)
        actuator = ServeActuator(api, service.app, service.deployment, 1)
        source = ModelSource(scrape, service.model, actuator.fleet)
        policy = replace(policy_of(service.resolved, start_prior_s=45.0), mode=Mode.RECOMMEND, tick_s=1.0)
        state = State.new()
        try:
            while not stop.is_set():
                try:
                    observation = await source.observe()
                except Exception:  # the dashboard answers late now and then
                    continue
                finally:
                    await asyncio.sleep(1.0)
                decision, state = decide(observation, policy, state)
                self.seen.append((observation, decision))
        finally:
            await scrape.close()
            await api.close()

    def drains(self) -> list[tuple[float, int, float | None]]:
        """Return (time, replicas that drain, seconds that they are expected to take) of each moment seen."""
        return [(o.time, o.fleet.draining, d.numbers.drain_expected_s) for o, d in self.seen]


@contextmanager
def watching(service: Any) -> Iterator[Watch]:
    """Watch a service in a thread of its own."""
    watch, stop = Watch(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(watch.run(service, stop)), daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join(timeout=30)
