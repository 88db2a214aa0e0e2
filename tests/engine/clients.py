"""Clients that come at their own pace, whatever the service does: what each of them got, and when."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

from reasonscale.api import constants as c


@dataclass
class Got:
    """What became of one request, by the client's own clock. Times from its last try, in seconds."""

    question: str
    cls: str = ""
    came_s: float = 0.0
    status: int = 0
    ttft_s: float | None = None
    done_s: float | None = None
    tokens: int = 0
    told_s: list[int] = field(default_factory=list)  # Retry-After of each refusal
    headers: dict[str, str] = field(default_factory=dict)
    wrong: str = ""
    came: list[tuple[float, int]] = field(default_factory=list)  # when, and how many characters, which are tokens here


def question(rng: random.Random, digits: tuple[int, int] = (3, 8)) -> str:
    """Return a sum: longer numbers, longer chains."""
    low, high = digits
    return "+".join(str(rng.randrange(10 ** (n - 1), 10**n)) for n in (rng.randint(low, high) for _ in range(2)))


class Clients:
    """Streams of one model, from one event loop."""

    def __init__(self, url: str, model: str) -> None:
        self.model = model
        self.http = httpx.AsyncClient(
            base_url=url, timeout=httpx.Timeout(300, connect=30), trust_env=False,
            # Shorter than a server's that a test has scaled down: a connection that it closes may not be taken again.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=1.0),
        )  # fmt: skip
        self.got: list[Got] = []
        self.running = 0

    async def __aenter__(self) -> Clients:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def ask(
        self, text: str, cls: str = "", back: float = 0.0, headers: dict[str, str] | None = None, **more: Any
    ) -> Got:
        """Ask once; a refused client comes back once, with odds of `back`, when it was told to."""
        got = Got(text, cls)
        self.got.append(got)
        sent = {"x-tenant": cls} if cls else {}
        comes_back = random.Random(text).random() < back
        while True:
            await self._try(got, sent | (headers or {}), more)
            if got.status != 429 or len(got.told_s) > 1 or not comes_back:
                return got
            await asyncio.sleep(got.told_s[-1] + 0.05)

    async def _try(self, got: Got, headers: dict[str, str], more: dict[str, Any]) -> None:
        body = {
            "model": self.model, "messages": [{"role": "user", "content": got.question}], "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True},
        } | more  # fmt: skip
        self.running += 1
        began = got.came_s = time.monotonic()
        try:
            async with self.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
                got.status, got.headers = response.status_code, dict(response.headers)
                if response.status_code == 429:
                    got.told_s.append(int(response.headers["retry-after"]))
                if response.status_code != 200:
                    got.wrong = (await response.aread()).decode()
                    return
                got.wrong = ""
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        got.wrong = line
                        continue
                    deltas = [x["delta"] for x in event["choices"]]
                    text = sum(len(d.get("reasoning") or "") + len(d.get("content") or "") for d in deltas)
                    if text:
                        got.came.append((time.monotonic(), text))
                        got.ttft_s = got.ttft_s or time.monotonic() - began
                    if event.get("usage"):
                        got.tokens = event["usage"]["completion_tokens"]
            got.done_s = time.monotonic()
        except httpx.HTTPError as error:
            got.wrong = f"{type(error).__name__} {error}"
        finally:
            self.running -= 1

    async def closed(self, number: int, for_s: float, ask: Callable[[int], Any]) -> None:
        """So many clients that each ask again when they have their answer."""
        end = time.monotonic() + for_s

        async def one(i: int) -> None:
            while time.monotonic() < end:
                await ask(i)

        await asyncio.gather(*(one(i) for i in range(number)))

    async def open(
        self, per_s: float, for_s: float, seed: int, ask: Callable[[random.Random], Any]
    ) -> list[asyncio.Task[Got]]:
        """Clients that come at random, so many a second; return their tasks when the last one has come."""
        rng, tasks, start = random.Random(seed), [], time.monotonic()
        when = 0.0
        while (when := when + rng.expovariate(per_s)) < for_s:
            await asyncio.sleep(max(0.0, start + when - time.monotonic()))
            tasks.append(asyncio.create_task(ask(rng)))
        await asyncio.sleep(max(0.0, start + for_s - time.monotonic()))
        return tasks


def high(values: Iterable[float], share: float = 0.95) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else float("nan")


def rate(got: Iterable[Got], start_s: float, end_s: float, ttft_s: float = float("inf")) -> float:
    """Return the tokens per second that came within a time, of answers that began in time.

    Not those of answers that ended in it: a crowd that began together ends together, before or after.
    """
    return sum(
        n for g in got if g.ttft_s is not None and g.ttft_s <= ttft_s for at, n in g.came if start_s <= at < end_s
    ) / (end_s - start_s)


def pressure_of(got: Got) -> str | None:
    return got.headers.get(c.HEADER_PRESSURE)
