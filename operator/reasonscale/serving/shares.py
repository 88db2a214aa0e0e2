"""Whose turn it is at the gate: start-time fair queueing by tokens, over classes with weights. Pure.

Each class has a tag: the tokens it was charged, over its weight. The class with the least tag goes next, so that of classes
that always wait each gets tokens by its weight, whatever the number and the length of its requests. A request is charged
what it is expected to make when it is sent, and corrected by what it really made (`charge`), so that a class of long
chains pays for them. A class that comes back from silence starts where those are that wait: it saves nothing up, and what it owes it
still owes, unless it runs less than its share by then. (Tags can fall, where chains end sooner than was expected: with lengths not known
yet a flood was charged six times too much, and whoever came while it was so waited nine seconds for it to be made good.)
Method: Goyal, Vin, Cheng, "Start-time fair queueing", SIGCOMM 1996.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterator, Mapping
from typing import Generic, Protocol, TypeVar


class Queued(Protocol):
    """What can wait: it has a class and an expected cost in tokens."""

    cls: str
    cost: float


T = TypeVar("T", bound=Queued)


class Shares(Generic[T]):
    """Requests that wait, by class; first come first served within one."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.weights: Mapping[str, float] = weights or {}
        self._queues: dict[str, OrderedDict[int, T]] = {}
        self._tokens: dict[str, float] = {}  # that wait in each
        self._tags: dict[str, float] = {}
        self._now = 0.0  # the tag that was served last

    def weight(self, cls: str) -> float:
        return float(self.weights.get(cls, 1.0))

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[T]:
        for queue in self._queues.values():
            yield from queue.values()

    def number(self, cls: str) -> int:
        """Return how many requests of a class wait."""
        return len(self._queues.get(cls, ()))

    def of(self, cls: str) -> Iterator[T]:
        """Yield the requests of a class that wait, the first first."""
        yield from self._queues.get(cls, {}).values()

    def classes(self) -> list[str]:
        """Return the classes of which requests wait."""
        return [cls for cls, queue in self._queues.items() if queue]

    def add(self, item: T, *, light: bool = False) -> None:
        """Put a request at the end of its class. `light`: the class runs less than its share."""
        queue = self._queues.setdefault(item.cls, OrderedDict())
        if not queue:
            self._tags[item.cls] = self._start(item.cls, light)
        queue[id(item)] = item
        self._tokens[item.cls] = self._tokens.get(item.cls, 0.0) + item.cost

    def remove(self, item: T) -> bool:
        """Take a request out that does not wait any longer; False where it did not wait."""
        queue = self._queues.get(item.cls)
        if queue is None or queue.pop(id(item), None) is None:
            return False
        self._tokens[item.cls] = self._tokens[item.cls] - item.cost if queue else 0.0
        return True

    def pop(self, among: Container[str] | None = None) -> T | None:
        """Take out the request that goes next, of these classes or of all, and charge its class; None where there is none."""
        ready = [cls for cls in self.classes() if among is None or cls in among]
        if not ready:
            return None
        cls = min(ready, key=lambda name: (self._tags[name], name))
        item = next(iter(self._queues[cls].values()))
        self.remove(item)
        self._now = max(self._now, self._tags[cls])
        self.charge(cls, item.cost)
        return item

    def charge(self, cls: str, tokens: float) -> None:
        """Charge a class tokens; fewer than none give back what was charged for nothing."""
        self._tags[cls] = self._tags.get(cls, self._now) + tokens / self.weight(cls)

    def _start(self, cls: str, light: bool) -> float:
        """Return the tag at which a class is that has nothing waiting."""
        now = min((self._tags[name] for name, queue in self._queues.items() if queue), default=self._now)
        return now if light else max(self._tags.get(cls, 0.0), now)

    def _tag(self, cls: str, light: bool = False) -> float:
        return self._tags[cls] if self.number(cls) else self._start(cls, light)

    def ahead(self, cls: str, more: Mapping[str, float] | None = None, *, light: bool = False) -> float:
        """Return the tokens that go before a request of a class that comes now; `more` waits beside what waits here."""
        waiting = {name: self._tokens.get(name, 0.0) for name in self._queues}
        for name, tokens in (more or {}).items():
            waiting[name] = waiting.get(name, 0.0) + tokens
        own = waiting.pop(cls, 0.0)
        start = self._tag(cls, light) + own / self.weight(cls)
        for name, tokens in waiting.items():
            lead = (start - self._tag(name)) * self.weight(name)
            own += max(0.0, min(tokens, lead))
        return own
