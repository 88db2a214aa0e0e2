"""Leader election by a Lease: of several operators one acts. `kubernetes.aio.leaderelection` with what it lacks.

What it lacks: it can't create a Lease (its client refuses the request that it makes); an API server that can't be reached raises out of the loop instead of costing the lease; a
request that hangs outlives the lease; a process that was frozen goes on writing until its next renewal; a leader that stops
leaves the lease to run out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import Any, TypeVar

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

_log = logging.getLogger("reasonscale.controller")
_T = TypeVar("_T")


class _Lock(LeaseLock):
    """A LeaseLock whose requests end in time and whose failures are answers."""

    def __init__(
        self, name: str, namespace: str, identity: str, api: Any, timeout_s: float, clock: Callable[[], float]
    ) -> None:
        super().__init__(name, namespace, identity, api)
        self._timeout_s, self._clock = timeout_s, clock
        self.renewed_s: float | None = None  # when the request began that last took or renewed the lease

    async def _within(self, call: Awaitable[_T]) -> _T | Exception:
        try:
            # Not wait_for: Python 3.11's loses a cancellation that comes as the call ends, and the election went on for ever.
            async with asyncio.timeout(self._timeout_s):
                return await call
        except Exception as error:  # the network's, aiohttp's and the server's alike: none of them is a lease
            _log.warning(json.dumps({"event": "lease", "problem": _words(error)}))
            return error

    async def get(self, name: str, namespace: str) -> Any:
        found = await self._within(super().get(name, namespace))
        return (False, ApiException(status=0, reason=_words(found))) if isinstance(found, Exception) else found

    async def _write(self, call: Awaitable[bool]) -> bool:
        began = self._clock()
        done = await self._within(call)
        if done is True:
            self.renewed_s = began
        return done is True

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        async def make() -> bool:  # the library's own passes `pretty` as what its client does not take
            lease = client.V1Lease(metadata=client.V1ObjectMeta(name=name), spec=self.update_lease(election_record))
            await self.api_instance.create_namespaced_lease(namespace, lease)
            return True

        return await self._write(make())

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        return await self._write(super().update(name, namespace, updated_record))

    def time_str_to_iso(self, str_time: Any) -> str | None:
        """Return a time of the record as the API wants it; the library's own can't read a whole second."""
        try:
            return datetime.fromisoformat(str(str_time)).isoformat(timespec="microseconds") + "Z"
        except ValueError:
            return None

    async def release(self) -> None:
        """Give the lease back, if it is ours still."""
        held = await self._within(self.api_instance.read_namespaced_lease(self.name, self.namespace))
        if isinstance(held, Exception) or held.spec.holder_identity != self.identity:
            return
        held.spec.holder_identity = ""
        await self._within(self.api_instance.replace_namespaced_lease(self.name, self.namespace, held))


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


class Leader:
    """Runs work while this process holds the Lease, and again whenever it gets it back."""

    def __init__(
        self, api: Any, name: str, namespace: str, identity: str, lease_s: int = 15,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._lease_s, self._clock, self._retry_s = lease_s, clock, max(1.0, lease_s / 7.5)
        self._lock = _Lock(name, namespace, identity, api, self._retry_s, clock)
        self.leading = False

    def may_act(self) -> bool:
        """Tell whether the lease is ours at this moment: also after the process stood still."""
        renewed = self._lock.renewed_s
        return self.leading and renewed is not None and self._clock() - renewed < self._lease_s

    async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Take the lease, work, and begin again when it is lost; until cancelled."""

        async def lead() -> None:
            self.leading = True
            _log.info('{"event": "leading"}')
            await work()

        async def stopped() -> None:
            self.leading = False
            _log.warning('{"event": "not leading", "problem": "the lease was lost"}')

        try:
            while True:
                election = LeaderElection(
                    Config(
                        self._lock, self._lease_s, self._lease_s * 2 / 3 - self._retry_s, self._retry_s, lead, stopped
                    )
                )
                await election.run()
        finally:
            led, self.leading = self.leading, False
            if led:
                await self._lock.release()
