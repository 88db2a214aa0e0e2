"""Reads the ledgers from the pods themselves, where there is no Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import httpx

from reasonscale.signals.assemble import READ, Sample, read_of
from reasonscale.signals.sources import SignalsMissing, parse

AT_ONCE: Final = 32
LIMIT_S: Final = 10.0  # ledgers are written and exposed each second, and read once a turn


@dataclass(frozen=True, slots=True)
class Target:
    """A metrics page, and the labels that its samples get: which pod of whom it is."""

    url: str
    labels: Mapping[str, str]


class PodScrape:
    """Reads the metrics pages of the pods that there are now. A pod that does not answer is left out: its ledger grows old."""

    def __init__(
        self, targets: Callable[[], Iterable[Target]], transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._targets, self._busy = targets, asyncio.Semaphore(AT_ONCE)
        self._http = httpx.AsyncClient(timeout=3, transport=transport, trust_env=False)
        self.limit_s = LIMIT_S

    async def close(self) -> None:
        await self._http.aclose()

    async def _read(self, target: Target) -> list[Sample] | str:
        async with self._busy:
            try:
                answer = await self._http.get(target.url)
                answer.raise_for_status()
                found = parse(answer.text)
            except (httpx.HTTPError, SignalsMissing) as error:
                return f"{target.url}: {type(error).__name__} {error}".strip()
        return [read_of(s.name, {**s.labels, **target.labels}, s.value) for s in found if s.name in READ]

    async def fetch(self) -> list[Sample]:
        """Return all pods' samples; SignalsMissing where there are pods and none of them answered."""
        read = await asyncio.gather(*(self._read(t) for t in self._targets()))
        failures = [x for x in read if isinstance(x, str)]
        if failures and len(failures) == len(read):
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise SignalsMissing(f"no pod's metrics port answered: {failures[0]}{more}")
        return [s for x in read if not isinstance(x, str) for s in x]
