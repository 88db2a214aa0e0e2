"""Nothing owed is lost: engines are killed, stopped and taken away under running streams, on real replicas."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from tests.engine.streams import (
    Flow,
    Heard,
    Load,
    asked,
    busiest,
    engines_of,
    hear,
    in_words,
    pauses_of,
    questions,
    share_of,
    whole,
    with_emptied,
    with_replicas,
)
from tests.engine.watching import watching

from reasonscale.scaling.victims import Standing, victims
from reasonscale.serving.config import INGRESS
from reasonscale.serving.pace import ENV as PACE_ENV
from reasonscale.serving.settings import CRASH_ENV

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
POISON = "999+1"  # an engine dies of it
STREAMS = 24


@pytest.fixture(scope="module")
def fleet(start_service: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two replicas of 30 ms a step behind two ingress replicas; one alone has a seat for each stream, so that none waits at the gate."""
    env = {PACE_ENV: "30", CRASH_ENV: POISON}
    args = {"max_num_seqs": "32", "num_gpu_blocks_override": "800"}
    with start_service(
        tmp_path_factory.mktemp("logs") / "access.jsonl", replicas=2, env=env, ingress_replicas=2, args=args
    ) as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(fleet: Any) -> list[Heard]:
    """The same requests with nothing happening to them."""
    heard = Load(fleet, [asked(fleet, q) for q in questions(STREAMS)]).end()
    whole(heard)
    return heard


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(("engine", "replica", "engine"), id="three"),
        pytest.param(("replica",) * 3, id="replicas", marks=pytest.mark.soak),
        pytest.param(("engine",) * 3, id="engine-processes", marks=pytest.mark.soak),
    ],
)
def test_three_kills_in_a_row_cost_the_streams_a_pause_and_no_more(
    fleet: Any, undisturbed: list[Heard], killed: tuple[str, ...]
) -> None:
    pauses: list[float] = []
    for times, what in enumerate(killed):
        fleet.wait_replicas(2)
        load = Load(fleet, [asked(fleet, q) for q in questions(STREAMS)])
        load.wait_characters(share_of(undisturbed, 0.1 + 0.2 * times))  # early in chains, then where some answer
        victim, pid = busiest(fleet)
        processes = [pid] if what == "replica" else engines_of(pid)
        assert processes
        for process in processes:
            os.kill(process, signal.SIGKILL)
        heard = load.end()
        whole(heard)
        for got, want in zip(heard, undisturbed, strict=True):
            assert (got.said, got.finishes, got.usages) == (want.said, want.finishes, want.usages)
        resumed = pauses_of(fleet, heard)
        assert resumed, "nothing ran on what was killed: it shows nothing"
        fleet.wait_all_idle()
        pauses += resumed
        fleet.wait_replicas(2, but=frozenset({victim}))
    print(f"kill -9 of {', '.join(killed)}: {in_words(sorted(pauses))}")


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
    held.wait_characters(1)
    load = Load(fleet, bodies)
    wholes = ThreadPoolExecutor(2)
    body = asked(fleet, long) | {"stream": False}
    del body["stream_options"]
    answers = [wholes.submit(httpx.post, f"{fleet.url}/v1/chat/completions", json=body, timeout=300) for _ in range(2)]
    load.wait_characters(share_of(want, 0.2))
    victim, pid = busiest(fleet)
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
    fleet.wait_all_idle()


def test_a_prompt_that_kills_its_engine_kills_two_at_most_and_everyone_elses_stream_goes_on(
    fleet: Any, undisturbed: list[Heard]
) -> None:
    fleet.wait_replicas(2)
    before = set(fleet.pids())
    load = Load(fleet, [asked(fleet, q) for q in questions(STREAMS)])
    load.wait_characters(share_of(undisturbed, 0.1))
    poison = Heard()
    hear(fleet.url, asked(fleet, POISON), poison)
    assert (poison.status, [e["code"] for e in poison.errors]) == (500, ["engine_crash_suspect"])
    heard = load.end()
    whole(heard)
    assert [h.said for h in heard] == [h.said for h in undisturbed]
    fleet.wait_replicas(2)
    assert len(before - set(fleet.pids())) <= 2
    fleet.wait_all_idle()


@pytest.mark.soak
def test_a_stopped_replicas_streams_go_on_elsewhere(fleet: Any, undisturbed: list[Heard]) -> None:
    fleet.wait_replicas(2)
    fleet.settings(hang_s=8.0)  # a minute, scaled down
    load = Load(fleet, [asked(fleet, q) for q in questions(STREAMS)])
    load.wait_characters(share_of(undisturbed, 0.1))
    victim, pid = busiest(fleet)
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
    fleet.wait_all_idle()


def test_three_become_one_under_running_streams_in_the_time_that_was_forecast_and_none_is_cut(
    fleet: Any, undisturbed: list[Heard]
) -> None:
    fleet.put(with_replicas(fleet.config, fleet, 3))
    fleet.wait_replicas(3)
    with watching(fleet) as watch:
        Load(fleet, [asked(fleet, q) for q in questions(STREAMS)]).end()  # lengths and step times are learnt
        load = Load(fleet, [asked(fleet, q) for q in questions(STREAMS)])
        load.wait_characters(share_of(undisturbed, 0.1))
        fleet.put(with_replicas(fleet.config, fleet, 1))
        heard = load.end()
        whole(heard)
        assert [h.said for h in heard] == [h.said for h in undisturbed]
        fleet.wait_replicas(1, 60.0)
        deadline = time.monotonic() + 60
        while any(word == "STOPPING" for _, word, _ in fleet.state().replicas[fleet.deployment]):
            assert time.monotonic() < deadline, "a replica with nothing to do is still there"
            time.sleep(0.2)
        time.sleep(2)
    drains = watch.drains()
    began_s, expected_s = next((at, left) for at, going, left in drains if going and left is not None)
    over_s = next(at for at, going, _ in reversed(drains) if going)
    print(f"3 -> 1 under {STREAMS} streams: {over_s - began_s:.1f} s, forecast {expected_s:.1f} s")
    # Serve looks once a second whether a replica has nothing left, and so do we whether it is gone.
    assert over_s - began_s <= 1.5 * expected_s + 3.0
    fleet.wait_all_idle()


@pytest.mark.soak
def test_the_replica_that_serve_will_stop_is_emptied_first_may_be_had_back_and_goes_with_nothing(
    fleet: Any, undisturbed: list[Heard]
) -> None:
    fleet.put(with_replicas(fleet.config, fleet, 2))
    fleet.wait_replicas(2)
    order = [rid for rid, word, _ in fleet.state().replicas[fleet.deployment] if word == "RUNNING"]
    [victim] = victims([Standing(rid, "engine", "here") for rid in order], "engine", 1, head="here")
    flow = Flow(fleet, [asked(fleet, q) for q in questions(STREAMS)], at_once=8)

    def wait_rows(any_there: bool) -> float:
        began = time.monotonic()
        while bool(rows := next(led["rows"] for led in fleet.ledgers() if led["replica"] == victim)) is not any_there:
            assert time.monotonic() < began + 120, rows
            time.sleep(0.2)
        return time.monotonic() - began

    wait_rows(True)
    fleet.put(with_emptied(fleet.config, fleet, victim))
    emptied_s = wait_rows(False)
    time.sleep(3)  # and it stays so, while the others are asked on
    assert [bool(led["rows"]) for led in fleet.ledgers() if led["replica"] == victim] == [False]
    assert sum(len(led["rows"]) for led in fleet.ledgers()) > 4
    fleet.put(with_emptied(fleet.config, fleet))
    back_s = wait_rows(True)
    fleet.put(with_emptied(fleet.config, fleet, victim))
    wait_rows(False)
    began = time.monotonic()
    fleet.put(with_replicas(fleet.config, fleet, 1))
    while any(rid == victim for rid, _, _ in fleet.state().replicas[fleet.deployment]):
        assert time.monotonic() < began + 60, "it has nothing, and is still there"
        time.sleep(0.2)
    gone_s = time.monotonic() - began
    assert fleet.replicas() == set(order) - {victim}
    heard = flow.end()
    whole([h for _, h in heard])
    for which, h in heard:
        assert h.said == undisturbed[which].said
    print(
        f"emptied in {emptied_s:.1f} s under {len(heard)} streams, longest silence {max(h.longest_s for _, h in heard):.2f} s; "
        f"had back in {back_s:.1f} s; gone {gone_s:.1f} s after the number was lowered"
    )
    fleet.put(with_emptied(fleet.config, fleet))
    fleet.wait_all_idle()


@pytest.mark.soak
@pytest.mark.parametrize("told", ["to-go", "to-be-emptied"])
def test_what_still_runs_shortly_before_the_cap_goes_on_in_another_replica(
    fleet: Any, undisturbed: list[Heard], told: str
) -> None:
    before = fleet.config
    fleet.put(with_replicas(fleet.config, fleet, 2))
    fleet.wait_replicas(2)
    capped = copy.deepcopy(fleet.config)
    for deployment in capped["applications"][0]["deployments"]:
        if deployment["name"] == fleet.deployment:
            deployment["graceful_shutdown_timeout_s"] = 8.0
        else:
            deployment["user_config"]["models"][fleet.model]["hand_over_s"] = 2.0
    fleet.put(capped)
    load = Load(fleet, [asked(fleet, q) for q in questions(STREAMS)])
    load.wait_characters(share_of(undisturbed, 0.1))
    victim, _ = busiest(fleet)
    fleet.put(with_replicas(capped, fleet, 1) if told == "to-go" else with_emptied(capped, fleet, victim))
    heard = load.end()
    whole(heard)
    assert [h.said for h in heard] == [h.said for h in undisturbed]
    lines = [json.loads(line) for line in fleet.access_log.read_text().splitlines()][-STREAMS:]
    assert any(entry["moved"] for entry in lines), "all had ended before the cap: it shows nothing"
    assert not any(entry["resumed"] for entry in lines), "some were cut and not handed on"
    if told == "to-go":
        fleet.wait_replicas(1)
    fleet.wait_all_idle()
    fleet.put(with_replicas(before, fleet, 1))


@pytest.mark.soak
def test_an_ingress_that_goes_finishes_its_streams(fleet: Any, undisturbed: list[Heard]) -> None:
    fleet.wait_replicas_of(INGRESS, 2)
    load = Load(fleet, [asked(fleet, q) for q in questions(STREAMS)])
    load.wait_characters(share_of(undisturbed, 0.1))
    fleet.put(with_replicas(fleet.config, fleet, 1, INGRESS))
    heard = load.end()
    whole(heard)
    assert [h.said for h in heard] == [h.said for h in undisturbed]
    fleet.put(with_replicas(fleet.config, fleet, 2, INGRESS))
    fleet.wait_replicas_of(INGRESS, 2)
    fleet.wait_all_idle()


def test_a_killed_ingress_ends_its_own_streams_alone_and_they_may_be_sent_again(
    fleet: Any, undisturbed: list[Heard]
) -> None:
    fleet.wait_replicas_of(INGRESS, 2)
    load = Load(fleet, [asked(fleet, q) for q in questions(STREAMS)])
    load.wait_characters(share_of(undisturbed, 0.1))
    _, pid = sorted(fleet.pids_of(INGRESS).items())[0]
    os.kill(pid, signal.SIGKILL)
    heard = load.end()
    cut = [h for h in heard if h.errors]
    assert 0 < len(cut) < STREAMS
    for h in cut:
        assert [e["code"] for e in h.errors] == ["ingress_lost"]
        assert h.dones == 1 or h.status == 503
    whole([h for h in heard if not h.errors])
    for got, want in zip(heard, undisturbed, strict=True):
        assert got.errors or got.said == want.said
    again = [q for q, h in zip(questions(STREAMS), heard, strict=True) if h.errors]
    whole(Load(fleet, [asked(fleet, q) for q in again]).end())
    fleet.wait_all_idle()  # the engines have let go of what nobody listens to
    fleet.wait_replicas_of(INGRESS, 2)


@pytest.mark.soak
def test_an_engine_argument_changes_under_load_and_no_request_fails(fleet: Any, undisturbed: list[Heard]) -> None:
    fleet.put(with_replicas(fleet.config, fleet, 2))
    fleet.wait_replicas(2)
    before = set(fleet.pids())
    config = copy.deepcopy(fleet.config)
    for model in config["applications"][0]["args"]["models"]:
        model["engine_kwargs"]["max_num_seqs"] -= 1
    flow = Flow(fleet, [asked(fleet, q) for q in questions(STREAMS)], at_once=6)
    fleet.put(config)  # returns when all replicas are new ones
    fleet.wait_replicas(2, but=frozenset(before))
    heard = flow.end()
    print(f"{len(heard)} streams during a rollout")
    whole([h for _, h in heard])
    for which, h in heard:
        assert h.said == undisturbed[which].said
    fleet.wait_all_idle()
