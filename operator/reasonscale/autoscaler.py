"""The loop: observe, decide, act, record. What it talks to and what time it is are given to it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from reasonscale.scaling.decide import decide
from reasonscale.scaling.emptying import unlapsed
from reasonscale.scaling.record import from_json, to_json
from reasonscale.scaling.state import State
from reasonscale.scaling.types import Decision, Fleet, Freshness, Mode, Observation, Policy

_log = logging.getLogger("reasonscale.autoscaler")


class SignalSource(Protocol):
    """Where observations come from."""

    async def observe(self) -> Observation: ...


class Actuator(Protocol):
    """What holds the replicas."""

    async def set_replicas(self, replicas: int, /) -> None: ...

    async def empty(self, replicas: tuple[str, ...], asleep: tuple[str, ...], /) -> None:
        """Have the routers send nothing to these, and those `asleep` among them sleep; only asked where `fleet` says which they are."""

    async def fleet(self) -> Fleet: ...


@dataclass(frozen=True, slots=True)
class Record:
    """One turn of the loop: what was seen, what was wanted, what was decided, and what went wrong (None: nothing)."""

    model: str
    observation: Observation
    policy: Policy
    decision: Decision
    problem: str | None = None

    def line(self) -> str:
        """Return the decision as one line of JSON for the log."""
        data: dict[str, Any] = {"event": "decision", "model": self.model} | to_json(self.decision)
        if self.problem:
            data["problem"] = self.problem
        return json.dumps(data, separators=(",", ":"))


Listener = Callable[[Record], None]


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class Autoscaler:
    """One model's loop. `policy` may change between ticks: pass a function that returns the one in force.

    A source or an actuator that fails is a problem to report and never a reason to change the number of replicas; a
    failing listener is reported and the others are still called.
    """

    def __init__(
        self,
        model: str,
        source: SignalSource,
        actuator: Actuator,
        policy: Policy | Callable[[], Policy],
        *,
        listeners: Iterable[Listener] = (),
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        state: State | None = None,
    ) -> None:
        self.model = model
        self.state = state or State.new()
        self._source, self._actuator, self._policy = source, actuator, policy
        self._listeners = list(listeners)
        self._clock, self._sleep = clock, sleep
        self._fleet: Fleet | None = None

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every record from now on."""
        self._listeners.append(listener)

    def policy(self) -> Policy:
        """Return the policy in force."""
        return self._policy if isinstance(self._policy, Policy) else self._policy()

    async def tick(self) -> Record | None:
        """Take one turn and return its record; None where not even the number of replicas could be had."""
        policy = self.policy()
        observation, problem = await self._observe()
        if observation is None:
            _log.warning(json.dumps({"event": "blind", "model": self.model, "problem": problem}))
            return None
        self._fleet = observation.fleet
        decision, self.state = decide(observation, policy, self.state)
        failed = await self._bring(decision, observation.fleet, policy)
        if failed is not None:
            problem = f"{problem}; {failed}" if problem else failed
        record = Record(self.model, observation, policy, decision, problem)
        (_log.warning if problem else _log.info)(record.line())
        for listener in self._listeners:
            try:
                listener(record)
            except Exception:
                _log.exception("a listener of the decisions of %s failed", self.model)
        return record

    async def _bring(self, decision: Decision, fleet: Fleet, policy: Policy) -> str | None:
        """Ask for what was decided; return what went wrong."""
        asked, named, failed = decision.target + len(decision.emptied), (decision.emptied, decision.asleep), []
        if policy.mode is Mode.RECOMMEND:  # who is emptied stays so until that has lapsed, and is named no more then
            asked, named = fleet.target, (unlapsed(fleet, policy, self.state, decision.time), fleet.asleep)

        async def number() -> None:
            if asked != fleet.target:
                try:
                    await self._actuator.set_replicas(asked)
                except Exception as error:
                    failed.append(f"could not ask for {asked} replicas: {_words(error)}")

        async def empty() -> None:
            if fleet.emptied is not None and named != (fleet.emptied, fleet.asleep):
                try:
                    await self._actuator.empty(*named)
                except Exception as error:
                    failed.append(f"could not say which replicas are emptied: {_words(error)}")

        # One that is let go must get nothing in between; one that is taken back serves at once.
        for step in (number, empty) if asked < fleet.target else (empty, number):
            await step()
        return "; ".join(failed) or None

    async def run(self, stop: asyncio.Event) -> None:
        """Tick until `stop` is set. A slow tick is not made up for: the next one follows a whole interval later."""
        while not stop.is_set():
            began = self._clock()
            try:
                await self.tick()
            except Exception:
                # Ours to mend; the replicas stay as they are and the loop goes on.
                _log.exception("a turn of the loop of %s failed", self.model)
            interval = self.policy().tick_s
            took = self._clock() - began
            await self._sleep(interval - took if 0.0 <= took < interval else interval)

    async def _observe(self) -> tuple[Observation | None, str | None]:
        try:
            return await self._source.observe(), None
        except Exception as error:
            problem = f"no observation: {_words(error)}"
        try:
            fleet = await self._actuator.fleet()
        except Exception as error:
            problem = f"{problem}; no word of the replicas: {_words(error)}"
            if self._fleet is None:
                return None, problem
            fleet = replace(self._fleet, starting_s=(), draining=0)
        now = self._clock()
        return Observation(time=now, window_s=0.0, freshness=Freshness.ABSENT, age_s=None, fleet=fleet), problem


class RecordFile:
    """A listener that writes whole records, one JSON object a line, from which every decision can be replayed."""

    def __init__(self, path: Path, most_bytes: int = 256 * 1024 * 1024) -> None:
        self._path, self._most = path, most_bytes
        self._file = path.open("a", encoding="utf-8")

    def __call__(self, record: Record) -> None:
        if self._file.tell() > self._most:  # the one before is kept
            self._file.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(json.dumps(to_json(record), separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_records(path: Path) -> list[Record]:
    """Return what a RecordFile wrote. Raises ValueError that names file, line and field of what is wrong."""
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(from_json(Record, json.loads(line)))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return records
