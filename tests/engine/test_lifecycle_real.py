"""Nothing owed is lost: engines are killed, stopped and taken away under running streams, on real replicas."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from reasonscale.demo.tasks import collatz_split
from reasonscale.serving.pace import ENV as PACE_ENV
from reasonscale.serving.settings import CRASH_ENV

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
POISON = "999+1"  # an engine dies of it
STREAMS = 24


@pytest.fixture(scope="module")
def fleet(start_service: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two replicas of 15 ms a step, so that chains last for seconds."""
    env = {PACE_ENV: "15", CRASH_ENV: POISON}
    with start_service(tmp_path_factory.mktemp("logs") / "access.jsonl", replicas=2, env=env) as found:
        yield found


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


def hear(url: str, body: dict[str, Any], into: Heard, on_event: Callable[[], None] = lambda: None) -> Heard:
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
            on_event()
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
                into.reasoning += delta.get("reasoning") or ""
                into.content += delta.get("content") or ""
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
        self.events = 0
        self._pool = ThreadPoolExecutor(len(bodies))
        self._lock = threading.Lock()
        self._futures = [
            self._pool.submit(hear, service.url, body, heard, self._count)
            for body, heard in zip(bodies, self.heard, strict=True)
        ]

    def _count(self) -> None:
        with self._lock:
            self.events += 1

    def wait_events(self, number: int, within_s: float = 60.0) -> None:
        """Wait until the clients have got so many events together."""
        deadline = time.monotonic() + within_s
        while self.events < number:
            assert time.monotonic() < deadline, f"{self.events} events after {within_s:.0f} s"
            time.sleep(0.02)

    def end(self, within_s: float = 300.0) -> list[Heard]:
        deadline = time.monotonic() + within_s
        for future in self._futures:
            future.result(timeout=max(0.1, deadline - time.monotonic()))
        self._pool.shutdown()
        return self.heard


def whole(heard: list[Heard]) -> None:
    """Assert that each stream came to its own end, once."""
    assert [h.errors for h in heard if h.errors] == []
    for h in heard:
        assert (h.status, h.dones, h.roles, len(h.ids), len(h.created)) == (200, 1, 1, 1, 1)
        assert len(h.finishes) == 1
        assert len(h.usages) == 1


@pytest.fixture(scope="module")
def undisturbed(fleet: Any) -> list[Heard]:
    """The same requests with nothing happening to them."""
    heard = Load(fleet, [asked(fleet, q) for q in questions(STREAMS)]).end()
    whole(heard)
    return heard


def test_a_killed_replicas_streams_go_on_elsewhere_with_the_very_same_text(
    fleet: Any, undisturbed: list[Heard]
) -> None:
    fleet.wait_replicas(2)
    load = Load(fleet, [asked(fleet, q) for q in questions(STREAMS)])
    load.wait_events(1500)
    victim, pid = sorted(fleet.pids().items())[0]
    os.kill(pid, signal.SIGKILL)
    heard = load.end()
    whole(heard)
    for got, want in zip(heard, undisturbed, strict=True):
        assert (got.said, got.finishes, got.usages) == (want.said, want.finishes, want.usages)
    pauses = sorted(round(h.longest_s, 2) for h in heard)
    lines = [json.loads(line) for line in fleet.access_log.read_text().splitlines()]
    print(f"{victim} killed: {sum(entry['resumed'] > 0 for entry in lines)} resumed; longest pauses, s: {pauses[-5:]}")
    assert any(entry["resumed"] for entry in lines)
    fleet.wait_replicas(2, but=frozenset({victim}))


def test_stop_strings_limits_and_whole_answers_survive_a_kill_and_what_cannot_is_told(fleet: Any) -> None:
    fleet.wait_replicas(2)
    long = questions(2)[1]
    plain = hear(fleet.url, asked(fleet, long), Heard())
    # A stop string deep in the chain, so long that a kill falls before and inside it.
    text = plain.reasoning
    at = len(text) * 2 // 3
    stop = text[at : at + 6]
    assert text.index(stop) > len(text) // 4
    bodies = [
        asked(fleet, long),
        asked(fleet, long, stop=[stop]),
        asked(fleet, long, stop=[stop], include_stop_str_in_output=True),
        asked(fleet, long, max_tokens=len(text) - 10),
        asked(fleet, long, thinking_token_budget=len(text) // 2),
        asked(fleet, long, min_tokens=len(text) // 2, stop=[stop[0]]),
    ] * 2
    want = Load(fleet, bodies[:6]).end() * 2
    # Enough that both replicas hold some, whatever the last reports of the requests before them said.
    bound = [asked(fleet, long, logprobs=True)] * 16
    held = Load(fleet, bound)
    held.wait_events(1)
    load = Load(fleet, bodies)
    wholes = ThreadPoolExecutor(2)
    body = asked(fleet, long) | {"stream": False}
    del body["stream_options"]
    answers = [wholes.submit(httpx.post, f"{fleet.url}/v1/chat/completions", json=body, timeout=300) for _ in range(2)]
    load.wait_events(600)
    victim, pid = sorted(fleet.pids().items())[-1]
    os.kill(pid, signal.SIGKILL)
    got = load.end()
    whole(got)
    for g, w in zip(got, want, strict=True):
        assert (g.said, g.finishes, g.usages) == (w.said, w.finishes, w.usages)
    for answer in answers:
        message = answer.result().json()["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == plain.said
    lost = [h for h in held.end() if h.errors]
    assert lost, "no stream with logprobs was on the replica that was killed"
    for h in lost:
        assert [e["code"] for e in h.errors] == ["engine_lost"]
        assert "logprobs" in h.errors[0]["message"]
    fleet.wait_replicas(2, but=frozenset({victim}))


def test_a_prompt_that_kills_its_engine_kills_two_at_most_and_everyone_elses_stream_goes_on(
    fleet: Any, undisturbed: list[Heard]
) -> None:
    fleet.wait_replicas(2)
    before = set(fleet.pids())
    load = Load(fleet, [asked(fleet, q) for q in questions(STREAMS)])
    load.wait_events(600)
    poison = Heard()
    hear(fleet.url, asked(fleet, POISON), poison)
    assert (poison.status, [e["code"] for e in poison.errors]) == (500, ["engine_crash_suspect"])
    heard = load.end()
    whole(heard)
    assert [h.said for h in heard] == [h.said for h in undisturbed]
    fleet.wait_replicas(2)
    assert len(before - set(fleet.pids())) <= 2


def test_a_stopped_replicas_streams_go_on_elsewhere(fleet: Any, undisturbed: list[Heard]) -> None:
    fleet.wait_replicas(2)
    fleet.settings(hang_s=8.0)  # a minute, scaled down
    load = Load(fleet, [asked(fleet, q) for q in questions(STREAMS)])
    load.wait_events(800)
    victim, pid = sorted(fleet.pids().items())[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        heard = load.end()
        whole(heard)
        assert max(h.longest_s for h in heard) < 90  # each goes on within it; all ends take as long as the machine does
        assert [h.said for h in heard] == [h.said for h in undisturbed]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    fleet.settings(hang_s=60.0)
    fleet.wait_replicas(2, but=frozenset({victim}))


def test_three_become_one_under_running_streams_and_none_is_cut(fleet: Any, undisturbed: list[Heard]) -> None:
    fleet.put(with_replicas(fleet.config, fleet, 3))
    fleet.wait_replicas(3)
    load = Load(fleet, [asked(fleet, q) for q in questions(STREAMS)])
    load.wait_events(600)
    fleet.put(with_replicas(fleet.config, fleet, 1))
    heard = load.end()
    whole(heard)
    assert [h.said for h in heard] == [h.said for h in undisturbed]
    fleet.wait_replicas(1, 60.0)
    assert fleet.wait_idle()["waiting"] == 0


def with_replicas(config: dict[str, Any], service: Any, number: int) -> dict[str, Any]:
    out = copy.deepcopy(config)
    for deployment in out["applications"][0]["deployments"]:
        if deployment["name"] == service.deployment:
            deployment["num_replicas"] = number
    return out
