"""A model asleep at zero replicas, on a real Ray and a real vLLM: who comes is held, wakes it, and is served in order."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from reasonscale.local.serve_api import ServeActuator, ServeApi
from reasonscale.scaling.types import Observation
from reasonscale.serving.numbers import number_of, set_number
from reasonscale.signals.sources import ModelSource, Scrape

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
LIMIT = 100
SEATS = 8


@pytest.fixture(scope="module")
def sleeper(start_service: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The bundled model, deployed asleep: no engine has run yet."""
    hold = {"maxRequests": LIMIT, "max": "5m"}
    with start_service(
        tmp_path_factory.mktemp("logs") / "access.jsonl", replicas=0,
        scaling={"minReplicas": 0, "maxReplicas": 1, "scaleToZero": {"after": "10s", "hold": hold}},
    ) as found:  # fmt: skip
        yield found


def number(service: Any, n: int) -> None:
    """Tell Serve another number, as the actuator does."""
    config = copy.deepcopy(service.config)
    for deployment in config["applications"][0]["deployments"]:
        if deployment["name"] == service.deployment:
            set_number(deployment, n)
    service.put(config)


@dataclass
class Answer:
    sent_s: float
    status: int = 0
    first_s: float = 0.0  # when its first token, or its refusal, came
    retry_after: str | None = None
    error: str | None = None
    text: str = ""


async def ask(client: httpx.AsyncClient, service: Any, i: int, *, stream: bool = True) -> Answer:
    body = {
        "model": service.model, "messages": [{"role": "user", "content": f"{1000 + i}+{2000 + i}"}], "temperature": 0,
        "max_tokens": 12, "stream": stream,
    }  # fmt: skip
    answer = Answer(time.monotonic())
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        answer.status = response.status_code
        answer.retry_after = response.headers.get("retry-after")
        if response.status_code != 200:
            answer.error = json.loads(await response.aread())["error"]["code"]
            answer.first_s = time.monotonic()
            return answer
        async for line in response.aiter_lines():
            answer.first_s = answer.first_s or time.monotonic()
            answer.text += line
    return answer


async def crowd(service: Any, number: int, *, apart_s: float, stream: bool = True) -> list[Answer]:
    """Send so many requests, each from a connection of its own."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=service.url, timeout=300, trust_env=False, limits=limits) as client:
        asking = []
        for i in range(number):
            asking.append(asyncio.create_task(ask(client, service, i, stream=stream)))
            await asyncio.sleep(apart_s)
        return await asyncio.gather(*asking)


async def watch(service: Any, seen: list[Observation]) -> None:
    """See what the scaler sees, twice a second."""
    scrape, api = Scrape(service.node.metrics_urls), ServeApi(service.node.dashboard_url, service.node.token)
    source = ModelSource(scrape, service.model, ServeActuator(api, service.app, service.deployment, 0).fleet)
    try:
        while True:
            seen.append(await source.observe())
            await asyncio.sleep(0.5)
    finally:
        await scrape.close()
        await api.close()


async def watched(service: Any, *, number: int, apart_s: float) -> tuple[list[Answer], list[Observation]]:
    seen: list[Observation] = []
    watching = asyncio.create_task(watch(service, seen))
    answers = await crowd(service, number, apart_s=apart_s)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return answers, seen


def held_of(service: Any, answers: int) -> list[dict[str, Any]]:
    """Return the last lines of the access log."""
    deadline = time.monotonic() + 20
    while len(lines := service.access_log.read_text().splitlines()) < answers:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return [json.loads(line) for line in lines[-answers:]]


def test_fifty_that_come_at_zero_wake_it_and_are_served_in_order(sleeper: Any) -> None:
    """Nobody decides here: Serve itself starts the replica, because one call of the ingress waits for it."""
    assert sleeper.replicas() == set()
    began = time.monotonic()
    answers, seen = asyncio.run(watched(sleeper, number=50, apart_s=0.05))
    number(sleeper, 1)  # the scaler's word, once it has seen who waits; else Serve puts it to sleep when nobody asks
    assert Counter(a.status for a in answers) == {200: 50}
    order = sorted(range(50), key=lambda i: answers[i].first_s)
    late = max(abs(at - i) for at, i in enumerate(order))
    print(
        f"50 held: first token after {min(a.first_s for a in answers) - began:.1f} s, the farthest out of its turn by {late}"
    )
    # Within a batch the engine's own steps decide: all of its seats get their first token at once.
    assert late < SEATS
    asked = next(o.time for o in seen if o.fleet.ready or any(age > 0.0 for age in o.fleet.starting_s))
    held = next(o.time for o in seen if o.held_requests)
    print(f"a replica was on its way {asked - held:.1f} s after the first request was seen to be held")
    assert max(o.held_requests or 0.0 for o in seen) >= 40
    assert asked - held < 5.0
    lines = held_of(sleeper, 50)
    assert all(line["held_s"] > 0 for line in lines)
    # The ledger and the ingress agree that nothing is left.
    sleeper.wait_idle()


def test_it_sleeps_when_told_and_what_is_changed_meanwhile_starts_no_engine(sleeper: Any) -> None:
    sleeper.wait_replicas(1)
    before = sleeper.pids()
    sleeper.settings(budget_default=77)
    assert sleeper.pids() == before
    number(sleeper, 0)
    began = time.monotonic()
    sleeper.wait_replicas(0)
    print(f"asleep {time.monotonic() - began:.1f} s after it was told to")
    sleeper.settings(budget_default=99)
    time.sleep(3.0)
    assert sleeper.pids() == {}
    assert sleeper.state().status == "RUNNING"


def test_of_a_thousand_a_hundred_are_held_and_served_and_the_rest_is_told_when_to_come(sleeper: Any) -> None:
    sleeper.wait_replicas(0)
    answers = asyncio.run(crowd(sleeper, 1000, apart_s=0.0))
    assert Counter((a.status, a.error) for a in answers) == {(200, None): LIMIT, (503, "hold_full"): 1000 - LIMIT}
    told = [int(a.retry_after or 0) for a in answers if a.status == 503]
    served = sorted(a.first_s - a.sent_s for a in answers if a.status == 200)
    refused = sorted(a.first_s - a.sent_s for a in answers if a.status == 503)
    print(
        f"served after {served[0]:.1f} to {served[-1]:.1f} s, refused after {refused[len(refused) // 2]:.1f} s, told to come back in {min(told)} to {max(told)} s"
    )
    # The first start was measured, and this one is like it.
    assert max(told) <= 2 * served[0] + 5
    assert min(told) >= 1
    assert max(refused) < served[0], "who can't be held hears it at once"
    sleeper.wait_idle()


def test_a_whole_answer_that_waits_for_a_replica_outlasts_every_timeout_below(sleeper: Any) -> None:
    """No server between client and engine may give up first; only `hold.max` ends a wait, and says so."""
    number(sleeper, 0)
    sleeper.wait_replicas(0)
    hold = sleeper.config["applications"][0]["deployments"][-1]["user_config"]["models"][sleeper.model]["hold"]
    sleeper.settings(hold=hold | {"wait_s": 2.0})
    [late] = asyncio.run(crowd(sleeper, 1, apart_s=0.0, stream=False))
    assert (late.status, late.error) == (503, "hold_timeout")
    sleeper.settings(hold=hold)
    [answer] = asyncio.run(crowd(sleeper, 1, apart_s=0.0, stream=False))
    assert answer.status == 200
    assert json.loads(answer.text)["usage"]["completion_tokens"] > 0
    number(sleeper, 1)
    assert number_of(sleeper.config["applications"][0]["deployments"][0]) == 1
