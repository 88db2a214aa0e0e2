"""A model's replicas in a cluster: the number that is asked for, and those that the engines' samples tell of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from reasonscale.api import constants as c
from reasonscale.scaling.types import Fleet
from reasonscale.signals.assemble import Sample, process_of


def _of_model(samples: Sequence[Sample], model: str, name: str) -> list[Sample]:
    return [s for s in samples if s.name == name and s.labels.get(c.LABEL_METRIC_MODEL) == model]


def _fresh(samples: Sequence[Sample], model: str, now: float, limit_s: float) -> set[str]:
    """Return the processes that write a fresh ledger."""
    return {process_of(s.labels) for s in _of_model(samples, model, c.M_LEDGER_TIME) if now - s.value <= limit_s}


def ready_replicas(samples: Sequence[Sample], model: str, now: float, limit_s: float) -> int | None:
    """Return the replicas that write a fresh ledger: a pod that runs may hold an engine that still loads.

    None where all ledgers are old, or there is none, as with a Prometheus that has just started: nobody knows then.
    """
    return len(_fresh(samples, model, now, limit_s)) or None


def going_replicas(samples: Sequence[Sample], model: str, now: float, limit_s: float) -> int:
    """Return how many of those that write a fresh ledger have been told to go."""
    going = {process_of(s.labels) for s in _of_model(samples, model, c.M_DRAINING) if s.value > 0.0}
    return len(going & _fresh(samples, model, now, limit_s))


def fetching_replicas(samples: Sequence[Sample], model: str) -> int:
    """Return the replicas that say that they fetch their weights."""
    return sum(1 for s in _of_model(samples, model, c.M_FETCHING) if s.value > 0.0)


class Held:
    """The number of replicas as it stands in the RayService, and when what is not ready yet was asked for."""

    def __init__(self, target: int, clock: Callable[[], float], counted: int = 0) -> None:
        self.target, self._clock = target, clock
        self.ready: Callable[[], Awaitable[int | None]]
        self.emptied: tuple[str, ...] = ()
        self.asleep: tuple[str, ...] = ()
        self.counted = counted  # that were ready when that was known last
        self.spare = 0  # asked for beside the target, for a rollout
        self.replacing = False  # a rollout in place is under way
        self._asked: list[float] = []

    async def set_replicas(self, replicas: int, /) -> None:
        self._asked += [self._clock()] * max(0, replicas - self.target)
        self.target = replicas

    async def empty(self, replicas: tuple[str, ...], asleep: tuple[str, ...], /) -> None:
        self.emptied, self.asleep = replicas, asleep

    async def fleet(self) -> Fleet:
        known = await self.ready()
        # What is unknown is as it was: taken for none, all would be starting, and a gap of the signals would be learnt as a start.
        ready = self.counted = self.counted if known is None else known
        missing, now = max(0, self.target - ready), self._clock()
        self._asked = self._asked[len(self._asked) - missing :] if missing < len(self._asked) else self._asked
        self._asked = [now] * (missing - len(self._asked)) + self._asked
        ages = tuple(now - asked for asked in self._asked)
        going = max(0, ready - self.target - self.spare)
        return Fleet(self.target, min(ready, self.target), ages, going, self.emptied, self.asleep, self.replacing)
