"""The operator's own metrics, beside those of its decisions."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import REGISTRY, CollectorRegistry, Gauge, Histogram


class OperatorMetrics:
    """How the operator itself fares."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.tick = Histogram(
            "reasonscale_operator_tick_seconds", "Time of one turn for all models", registry=registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
        )  # fmt: skip
        self.models = Gauge("reasonscale_operator_models", "Models that it looks after", registry=registry)
        self.leading = Gauge(
            "reasonscale_operator_leading", "1 where this operator acts, 0 where it stands by", registry=registry
        )
        self._age = Gauge(
            "reasonscale_operator_watch_age_seconds",
            "Since the API server was last heard of a kind",
            ["kind"],
            registry=registry,
        )
        self._writes = Gauge(
            "reasonscale_operator_api_writes", "Writes to the API server since the start", registry=registry
        )

    def follow(self, writes: Callable[[], float], ages: dict[str, Callable[[], float]]) -> None:
        """Take these numbers whenever somebody asks."""
        self._writes.set_function(writes)
        for kind, age in ages.items():
            self._age.labels(kind).set_function(age)
