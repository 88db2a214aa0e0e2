"""An application with the deployments of the real one and no engine behind them: for what Serve does with a config."""

from __future__ import annotations

from typing import Any

from ray import serve

from reasonscale.serving.config import INGRESS
from reasonscale.serving.numbers import built


class Light:
    """A replica that keeps what it is told."""

    def __init__(self, *others: Any) -> None:
        self._told: Any = None

    def reconfigure(self, told: Any) -> None:
        self._told = told

    def told(self) -> Any:
        return self._told


def build(args: dict[str, Any]) -> serve.Application:
    """Return the application; its deployments' names and forms come from the same args as the real one's."""
    few = {"ray_actor_options": {"num_cpus": 0}}
    servers = [
        serve.deployment(Light, name=m["deployment"]).options(**built(sleeps=bool(m.get("sleeps"))), **few).bind()
        for m in args["models"]
    ]
    return serve.deployment(Light, name=INGRESS).options(**few).bind(*servers)
