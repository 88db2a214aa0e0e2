"""Where samples come from: Ray's own metrics endpoints, or a Prometheus that scrapes them."""

from __future__ import annotations

import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx
from prometheus_client.parser import text_string_to_metric_families

from reasonscale.api.constants import RAY_PREFIX
from reasonscale.scaling.types import Fleet, Observation
from reasonscale.signals.assemble import READ, Memory, Sample, assemble, read_of

DIRECT_LIMIT_S = 6.0
_OURS = "reasonscale_"
_QUERY = f'{{__name__=~"({RAY_PREFIX})?({"|".join(sorted(READ))})"}}'


class SignalsMissing(RuntimeError):
    """No samples could be had; the message says from where and why."""


class Samples(Protocol):
    """Something that gives the newest samples of every model."""

    limit_s: float  # a ledger older than this is stale

    async def fetch(self) -> list[Sample]: ...


def parse(text: str) -> list[Sample]:
    """Return our samples of a page in Prometheus' text format; SignalsMissing where it is none."""
    ours = "\n".join(
        line for line in text.splitlines() if line.startswith((RAY_PREFIX + _OURS, _OURS)) and "_bucket{" not in line
    )
    try:
        return [
            Sample(s.name.removeprefix(RAY_PREFIX), s.labels, s.value)
            for family in text_string_to_metric_families(ours + "\n")
            for s in family.samples
        ]
    except ValueError as error:
        raise SignalsMissing(f"a metrics page could not be read: {error}") from None


class Scrape:
    """Reads metrics endpoints directly; several models share one read within half a second."""

    def __init__(
        self,
        urls: Sequence[str],
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._urls, self._clock = tuple(urls), clock
        self._http = httpx.AsyncClient(timeout=5, transport=transport, trust_env=False)
        self._last: tuple[float, list[Sample]] | None = None
        self.limit_s = DIRECT_LIMIT_S

    async def close(self) -> None:
        await self._http.aclose()

    async def fetch(self) -> list[Sample]:
        """Return all endpoints' samples; SignalsMissing where none of them answered."""
        now = self._clock()
        if self._last is not None and 0 <= now - self._last[0] < 0.5:
            return self._last[1]
        out: list[Sample] = []
        failures = []
        for url in self._urls:
            try:
                response = await self._http.get(url)
                response.raise_for_status()
                out += parse(response.text)
            except httpx.HTTPError as error:
                failures.append(f"{url}: {type(error).__name__} {error}".strip())
        if failures and len(failures) == len(self._urls):
            raise SignalsMissing("no metrics endpoint answered: " + "; ".join(failures))
        self._last = (now, out)
        return out


class Prometheus:
    """Asks a Prometheus; `scrape_interval_s` is how often it looks at the pods."""

    def __init__(
        self, url: str, *, scrape_interval_s: float = 15.0, token_file: Path | None = None, ca_file: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:  # fmt: skip
        self._url, self._token_file = url, token_file
        verify = ssl.create_default_context(cafile=str(ca_file)) if ca_file is not None else True
        self._http = httpx.AsyncClient(base_url=url, timeout=10, verify=verify, transport=transport, trust_env=False)
        self.limit_s = scrape_interval_s + 15.0

    async def close(self) -> None:
        await self._http.aclose()

    def _headers(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        try:
            return {"Authorization": f"Bearer {self._token_file.read_text().strip()}"}
        except OSError as error:
            raise SignalsMissing(f"the token for Prometheus can't be read: {error}") from None

    async def fetch(self) -> list[Sample]:
        """Return the newest samples of every model with one query; SignalsMissing where there is no answer."""
        try:
            response = await self._http.post("/api/v1/query", data={"query": _QUERY}, headers=self._headers())
            if response.status_code in (401, 403):
                raise SignalsMissing(
                    f"Prometheus at {self._url} refused the query with {response.status_code}: give it the bearer token that it wants"
                )
            data: dict[str, Any] = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise SignalsMissing(f"Prometheus at {self._url} did not answer: {type(error).__name__} {error}") from None
        if data.get("status") != "success":
            raise SignalsMissing(
                f"Prometheus at {self._url} refused the query: {data.get('error', response.status_code)}"
            )
        return [
            read_of(row["metric"]["__name__"].removeprefix(RAY_PREFIX), row["metric"], float(row["value"][1]))
            for row in data["data"]["result"]
        ]


class ModelSource:
    """One model's observations from shared samples; the autoscaler's `SignalSource`."""

    def __init__(
        self,
        samples: Samples,
        model: str,
        fleet: Callable[[], Awaitable[Fleet]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._samples, self._model, self._fleet, self._clock = samples, model, fleet, clock
        self._memory = Memory()

    async def observe(self) -> Observation:
        """Return what is known now; samples that could not be had make it ABSENT, never an error."""
        fleet = await self._fleet()
        try:
            found = await self._samples.fetch()
        except SignalsMissing:
            found = []
        observation, self._memory = assemble(
            found, self._model, fleet, self._clock(), self._memory, limit_s=self._samples.limit_s
        )
        return observation
