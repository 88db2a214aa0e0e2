"""The ledger agrees with what clients are sent: in flight, after the end, after an abort, a cut and a preemption."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from reasonscale.api.constants import PHASE_REASONING, bin_of
from reasonscale.demo.tasks import collatz_task
from reasonscale.scaling.types import Fleet, Freshness
from reasonscale.signals.sources import ModelSource, Scrape

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]
CHAT = "/v1/chat/completions"
LONG = [n for n in range(2, 1000) if len(collatz_task(n).chain) > 850]


def body(question: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "micro-reasoner",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "stream": True,
    } | more


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])


def delta(event: dict[str, Any]) -> tuple[str, str]:
    for choice in event["choices"]:
        return choice["delta"].get("reasoning") or "", choice["delta"].get("content") or ""
    return "", ""


@contextmanager
def streaming(http: httpx.Client, question: str, **more: Any) -> Iterator[Iterator[dict[str, Any]]]:
    with http.stream(
        "POST", CHAT, json=body(question, **more), headers={"x-request-id": f"test-{time.time_ns()}"}
    ) as response:
        assert response.status_code == 200
        yield events(response)


def totals(ledger: dict[str, Any], name: str) -> Any:
    values = [t[name] for t in ledger["totals"].values()]
    return (
        [sum(column) for column in zip(*values, strict=True)] if values and isinstance(values[0], list) else sum(values)
    )


def test_a_row_follows_its_stream_and_the_counters_keep_its_length(service: Any, http: httpx.Client) -> None:
    before = service.wait_idle()
    task = collatz_task(27)
    with streaming(http, task.question, stream_options={"include_usage": True}) as stream:
        seen = 0
        for event in stream:
            seen += len(delta(event)[0])  # one token a character
            if seen >= 150:
                break
        rows = list(service.ledger()["rows"].values())
        assert len(rows) == 1
        assert rows[0]["phase"] == PHASE_REASONING
        assert rows[0]["prompt_tokens"] == 20
        assert seen <= rows[0]["generated"] == rows[0]["reasoning_tokens"] <= len(task.chain)
        usage = [event["usage"] for event in stream if event.get("usage")][-1]
    after = service.wait_idle()
    made = usage["completion_tokens"]
    thought = usage["completion_tokens_details"]["reasoning_tokens"]
    assert totals(after, "reasoning_tokens") - totals(before, "reasoning_tokens") == thought
    assert totals(after, "answer_tokens") - totals(before, "answer_tokens") == made - thought
    reached = [a - b for a, b in zip(totals(after, "reached"), totals(before, "reached") or [0] * 24, strict=True)]
    assert reached == [1] * (bin_of(made) + 1) + [0] * (23 - bin_of(made))
    ended = [a - b for a, b in zip(totals(after, "ended"), totals(before, "ended") or [0] * 24, strict=True)]
    assert ended.index(1) == bin_of(made)
    assert sum(ended) == 1


def test_a_whole_answer_is_followed_too(service: Any, http: httpx.Client) -> None:
    service.wait_idle()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(http.post, CHAT, json=body("collatz 97", stream=False))
        ages = []
        while not answer.done():
            ages += [row["generated"] for row in service.ledger()["rows"].values()]
            time.sleep(0.05)
    usage = answer.result().json()["usage"]
    assert ages == sorted(ages)
    assert 0 < max(ages) <= usage["completion_tokens"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] > 700


def test_a_client_that_goes_away_frees_the_engine_and_is_censored(service: Any, http: httpx.Client) -> None:
    before = service.wait_idle()
    with streaming(http, "collatz 27") as stream:
        for count, _ in enumerate(stream):
            if count > 40:
                break
    after = service.wait_idle(20)
    assert totals(after, "arrivals") == totals(before, "arrivals") + 1
    assert totals(after, "ended") == totals(before, "ended")
    assert after["kv_used_tokens"] < 200


def test_a_chain_cut_by_its_budget_is_counted_and_censored(service: Any, http: httpx.Client) -> None:
    before = service.wait_idle()
    answer = http.post(CHAT, json=body("collatz 27", stream=False, thinking_token_budget=100)).json()
    after = service.wait_idle()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["message"]["content"].strip().isdigit()
    assert totals(after, "budget_exhausted") == totals(before, "budget_exhausted") + 1
    assert totals(after, "ended") == totals(before, "ended")


def test_preempted_chains_all_end_right_and_the_ledger_closes(service: Any) -> None:
    before = service.wait_idle()
    questions = [collatz_task(n) for n in LONG[:12]]  # 12 x 900 tokens against 8 seats and 5,120 tokens of KV cache

    async def ask() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=service.url, timeout=300, trust_env=False) as client:
            answers = await asyncio.gather(*(client.post(CHAT, json=body(q.question, stream=False)) for q in questions))
            return [a.json() for a in answers]

    answers = asyncio.run(ask())
    right = sum(
        a["choices"][0]["message"]["content"].strip() == q.answer for a, q in zip(answers, questions, strict=True)
    )
    after = service.wait_idle()
    assert right >= len(questions) - 1  # the model itself is right 99 times of 100
    assert after["preemptions"] > before["preemptions"]
    made = sum(a["usage"]["completion_tokens"] for a in answers)
    counted = sum(totals(after, k) - totals(before, k) for k in ("reasoning_tokens", "answer_tokens"))
    assert counted == made


def test_the_metrics_carry_the_ledger_within_seconds(service: Any, http: httpx.Client) -> None:
    service.wait_idle()

    async def one() -> Fleet:
        return Fleet(1, 1)

    async def look() -> Any:
        scrape = Scrape(service.node.metrics_urls)
        try:
            return await ModelSource(scrape, service.model, one).observe()
        finally:
            await scrape.close()

    with streaming(http, "collatz 27") as stream:
        next(stream)
        deadline = time.monotonic() + 20
        seen = asyncio.run(look())
        while time.monotonic() < deadline:
            seen = asyncio.run(look())
            if sum(sum(k.reasoning) for k in seen.classes.values()) == 1:
                break
            next(stream, None)
        assert seen.freshness is Freshness.FRESH
        assert seen.age_s is not None
        assert seen.age_s <= 6
        assert sum(sum(k.reasoning) for k in seen.classes.values()) == 1
        assert seen.replicas[0].kv_capacity_tokens == 5120
        for _ in stream:
            pass
    service.wait_idle()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        seen = asyncio.run(look())
        if not any(sum(k.reasoning) + sum(k.answering) + k.waiting for k in seen.classes.values()):
            return
        time.sleep(0.5)
    pytest.fail(f"the metrics never came back to zero: {seen}")


@pytest.mark.usefixtures("put_back")
def test_streams_run_through_a_scale_up_and_down_by_hand(service: Any) -> None:
    service.wait_idle()
    config = copy.deepcopy(service.config)
    [deployment] = [d for d in config["applications"][0]["deployments"] if d["name"] == service.deployment]
    first = service.replicas()
    tasks = [collatz_task(n) for n in LONG]
    results: list[bool] = []

    async def run() -> None:
        stop = asyncio.Event()
        async with httpx.AsyncClient(base_url=service.url, timeout=300, trust_env=False) as client:

            async def worker(k: int) -> None:
                while not stop.is_set():
                    task, text, done = tasks[(k + len(results) * 3) % len(tasks)], "", False
                    async with client.stream("POST", CHAT, json=body(task.question)) as response:
                        async for line in response.aiter_lines():
                            done = done or line == "data: [DONE]"
                            if line.startswith("data: {"):
                                text += delta(json.loads(line[6:]))[1]
                    results.append(done and text.strip().isdigit())

            workers = [asyncio.create_task(worker(k)) for k in range(3)]
            for wanted in (2, 1):
                deployment["num_replicas"] = wanted
                await asyncio.to_thread(service.put, copy.deepcopy(config))
                deadline = time.monotonic() + 200
                while len(await asyncio.to_thread(service.replicas)) != wanted:
                    assert time.monotonic() < deadline, f"no {wanted} replicas: {service.state()}"
                    await asyncio.sleep(1)
            stop.set()
            await asyncio.gather(*workers)

    asyncio.run(run())
    assert results
    assert all(results)
    assert len(service.replicas()) == 1
    assert first
