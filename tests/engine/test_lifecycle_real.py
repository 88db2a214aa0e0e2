"""Nothing owed is lost: engines are killed, stopped and taken away under running streams, on real replicas."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
from tests.engine.streams import Heard, Load, asked, hear, questions, whole, with_replicas

from reasonscale.serving.pace import ENV as PACE_ENV
from reasonscale.serving.settings import CRASH_ENV

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
POISON = "999+1"  # an engine dies of it
STREAMS = 24


@pytest.fixture(scope="module")
def fleet(start_service: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two replicas of 15 ms a step, so that chains last for seconds, behind two ingress replicas."""
    env = {PACE_ENV: "15", CRASH_ENV: POISON}
    with start_service(
        tmp_path_factory.mktemp("logs") / "access.jsonl", replicas=2, env=env, ingress_replicas=2
    ) as found:
        yield found


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


def engines_of(pid: int) -> list[int]:
    """Return the processes of a replica's engine."""
    return [
        child.pid for child in psutil.Process(pid).children(recursive=True) if "EngineCore" in "".join(child.cmdline())
    ]


def test_engines_killed_beside_their_replicas_cost_their_streams_a_pause_and_no_more(
    fleet: Any, undisturbed: list[Heard]
) -> None:
    for times in range(3):
        fleet.wait_replicas(2)
        load = Load(fleet, [asked(fleet, q) for q in questions(STREAMS)])
        load.wait_events(800 + 800 * times)
        victim, pid = sorted(fleet.pids().items())[0]
        engines = engines_of(pid)
        assert engines
        for engine in engines:
            os.kill(engine, signal.SIGKILL)
        heard = load.end()
        print([(h.errors, h.longest_s) for h in heard])
        whole(heard)
        for got, want in zip(heard, undisturbed, strict=True):
            assert (got.said, got.finishes, got.usages) == (want.said, want.finishes, want.usages)
        fleet.wait_replicas(2, but=frozenset({victim}))
