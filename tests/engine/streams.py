"""Clients that listen to many streams at once, and what they must have heard. For tests on real replicas."""

from __future__ import annotations

import copy
import itertools
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from reasonscale.demo.tasks import collatz_split
from reasonscale.serving.config import INGRESS
from reasonscale.serving.numbers import set_emptied


@dataclass
class Heard:
    """What one client got of its stream."""

    reasoning: str = ""
    content: str = ""
    roles: int = 0
    ids: set[str] = field(default_factory=set)
    created: set[int] = field(default_factory=set)
    finishes: list[str] = field(default_factory=list)
    usages: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    dones: int = 0
    longest_s: float = 0.0  # between two of its events
    status: int = 0

    @property
    def said(self) -> tuple[str, str]:
        return self.reasoning, self.content


def questions(number: int) -> list[str]:
    """Return long chains and short ones, none trained on."""
    long = sorted(collatz_split()[1], reverse=True)
    return [f"collatz {long[i % len(long)]}" if i % 3 else f"{91824 + 37 * i}+{55173 + 11 * i}" for i in range(number)]


def hear(
    url: str, body: dict[str, Any], into: Heard, on_text: Callable[[int], None] = lambda characters: None
) -> Heard:
    """Listen to one stream to its end; a connection that breaks is an error of it."""
    try:
        return _hear(url, body, into, on_text)
    except httpx.HTTPError as error:
        into.errors.append({"code": "connection", "message": repr(error)})
        return into


def _hear(url: str, body: dict[str, Any], into: Heard, on_text: Callable[[int], None]) -> Heard:
    with (
        httpx.Client(timeout=300, trust_env=False) as client,
        client.stream("POST", f"{url}/v1/chat/completions", json=body) as response,
    ):
        into.status = response.status_code
        if response.status_code != 200:
            into.errors.append(json.loads(response.read())["error"])
            return into
        last = time.monotonic()
        for line in response.iter_lines():
            if not line.startswith("data: "):
                continue
            now = time.monotonic()
            into.longest_s, last = max(into.longest_s, now - last), now
            if line == "data: [DONE]":
                into.dones += 1
                continue
            event = json.loads(line[6:])
            if "error" in event:
                into.errors.append(event["error"])
                continue
            into.ids.add(event["id"])
            into.created.add(event["created"])
            if event.get("usage"):
                into.usages.append(event["usage"])
            for choice in event["choices"]:
                delta = choice["delta"]
                into.roles += "role" in delta
                chain, answer = delta.get("reasoning") or "", delta.get("content") or ""
                into.reasoning, into.content = into.reasoning + chain, into.content + answer
                on_text(len(chain) + len(answer))
                if choice.get("finish_reason"):
                    into.finishes.append(choice["finish_reason"])
    return into


def asked(service: Any, question: str, **more: Any) -> dict[str, Any]:
    return {
        "model": service.model, "messages": [{"role": "user", "content": question}], "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    } | more  # fmt: skip


class Load:
    """Streams that run side by side."""

    def __init__(self, service: Any, bodies: list[dict[str, Any]]) -> None:
        self.heard = [Heard() for _ in bodies]
        self.characters = 0
        self._pool = ThreadPoolExecutor(len(bodies))
        self._lock = threading.Lock()
        self._futures = [
            self._pool.submit(hear, service.url, body, heard, self._count)
            for body, heard in zip(bodies, self.heard, strict=True)
        ]

    def _count(self, characters: int) -> None:
        with self._lock:
            self.characters += characters

    def wait_characters(self, number: float, within_s: float = 240.0) -> None:
        """Wait until the clients have got so much text together; how many events that takes depends on the machine."""
        deadline = time.monotonic() + within_s
        while self.characters < number:
            assert time.monotonic() < deadline, f"{self.characters} characters after {within_s:.0f} s"
            time.sleep(0.02)

    def end(self, within_s: float = 300.0) -> list[Heard]:
        deadline = time.monotonic() + within_s
        for future in self._futures:
            future.result(timeout=max(0.1, deadline - time.monotonic()))
        self._pool.shutdown()
        return self.heard


class Flow:
    """Streams one after another, so many at once, until it is told to end."""

    def __init__(self, service: Any, bodies: list[dict[str, Any]], at_once: int) -> None:
        self.heard: list[tuple[int, Heard]] = []
        self._service, self._bodies = service, bodies
        self._stop = threading.Event()
        self._next = itertools.count()
        self._pool = ThreadPoolExecutor(at_once)
        self._futures = [self._pool.submit(self._run) for _ in range(at_once)]

    def _run(self) -> None:
        while not self._stop.is_set():
            which = next(self._next) % len(self._bodies)
            heard = Heard()
            self.heard.append((which, heard))
            hear(self._service.url, self._bodies[which], heard)

    def end(self, within_s: float = 120.0) -> list[tuple[int, Heard]]:
        """Let those that run end; return which body each had, and what it got."""
        self._stop.set()
        for future in self._futures:
            future.result(timeout=within_s)
        self._pool.shutdown()
        return self.heard


def whole(heard: list[Heard]) -> None:
    """Assert that each stream came to its own end, once."""
    errors = [h.errors for h in heard if h.errors]
    assert not errors, errors[:3]
    for h in heard:
        assert (h.status, h.dones, h.roles, len(h.ids), len(h.created)) == (200, 1, 1, 1, 1)
        assert len(h.finishes) == 1
        assert len(h.usages) == 1


def with_replicas(config: dict[str, Any], service: Any, number: int, deployment: str | None = None) -> dict[str, Any]:
    """Return Serve's config with another number of the model's replicas, or of another deployment's."""
    out = copy.deepcopy(config)
    for entry in out["applications"][0]["deployments"]:
        if entry["name"] == (deployment or service.deployment):
            entry["num_replicas"] = number
    return out


def with_emptied(config: dict[str, Any], service: Any, *replicas: str) -> dict[str, Any]:
    """Return Serve's config whose ingresses send nothing more to these of the model's replicas, and to all others."""
    out = copy.deepcopy(config)
    for entry in out["applications"][0]["deployments"]:
        if entry["name"] == INGRESS:
            set_emptied(entry, service.deployment, replicas)
    return out


def pauses_of(service: Any, heard: list[Heard]) -> list[float]:
    """Return the longest silence of each of these streams that went on in another engine, the shortest first."""
    by_id = {i.removeprefix("chatcmpl-").split(".")[0]: h for h in heard for i in h.ids}
    return sorted(h.longest_s for rid, h in by_id.items() if service.log_line(rid)["resumed"])


def in_words(pauses: list[float]) -> str:
    """Return what a test prints of them."""
    return (
        f"{len(pauses)} streams went on elsewhere, longest silence p50 {pauses[len(pauses) // 2]:.2f} s, "
        f"p95 {pauses[len(pauses) * 95 // 100]:.2f} s, longest {pauses[-1]:.2f} s"
    )


def share_of(heard: list[Heard], share: float) -> float:
    """Return a share of the characters that these streams said together."""
    return share * sum(len(text) for h in heard for text in h.said)


def busiest(service: Any) -> tuple[str, int]:
    """Return the replica with the most requests, and its process."""
    found = max(service.ledgers(), key=lambda ledger: len(ledger["rows"]))["replica"]
    return found, service.pids()[found]


def engines_of(pid: int) -> list[int]:
    """Return the processes of a replica's engine."""
    return [
        child.pid for child in psutil.Process(pid).children(recursive=True) if "EngineCore" in "".join(child.cmdline())
    ]
