"""Serve's request router by expected work (`routing.Loads`). Runs under Ray, once in each ingress."""

from __future__ import annotations

import time
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from reasonscale.api import constants as c
from reasonscale.serving import shared
from reasonscale.serving.routing import Loads


def _told(pending: PendingRequest | None) -> dict[str, str]:
    args: list[Any] = pending.args if pending is not None else []
    return getattr(args[1], "headers", {}) if len(args) > 1 else {}


def _place(rid: str | None, replica: str) -> None:
    if rid:
        shared.PLACED[rid] = (replica, time.monotonic())
        while len(shared.PLACED) > shared.PLACED_MOST:
            shared.PLACED.popitem(last=False)


class ExpectedWork(RequestRouter):  # type: ignore[misc]
    """Ranks all replicas by the tokens that they hold and expect."""

    def initialize_state(self, **kwargs: Any) -> None:
        self._loads = shared.LOADS.setdefault(self._deployment_id.name, Loads())

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take the replicas that there are, and their reports: also where no request comes, so that the gate sees room."""
        super().update_replicas(replicas)
        shared.READY[self._deployment_id.name] = len(self._heard(replicas))

    def _heard(self, replicas: list[RunningReplica]) -> dict[str, RunningReplica]:
        by_name = {replica.replica_id.unique_id: replica for replica in replicas}
        self._loads.keep(by_name)
        for name, replica in by_name.items():
            self._loads.report(name, replica.routing_stats or {})
        return by_name

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # all are tried; the next round waits
        by_name = self._heard(candidate_replicas)
        told = _told(pending_request)
        only = told.get(c.HEADER_REPLICA)
        if only is not None:  # the ingress speaks to this one, and to no other
            return [[by_name[only]]] if only in by_name else []
        order = self._loads.order(by_name, told.get(c.HEADER_SESSION))
        if order:
            _place(told.get(c.HEADER_UNIQUE_ID), order[0])  # one that hangs never says that it took it
        return [[by_name[name]] for name in order]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        told = _told(pending_request)
        if c.HEADER_REPLICA in told:
            return
        prompt = told.get(c.HEADER_PROMPT_TOKENS, "")
        self._loads.sent(replica_id.unique_id, float(prompt) if prompt.isdigit() else 0.0, told.get(c.HEADER_SESSION))
        _place(told.get(c.HEADER_UNIQUE_ID), replica_id.unique_id)
