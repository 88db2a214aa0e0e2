"""The OpenAI API on a real engine, through the client that users have."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from reasonscale.api import constants as c

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
SUM = [{"role": "user", "content": "347+85"}]
LONG = [{"role": "user", "content": "collatz 27"}]  # 111 steps: about a thousand tokens of chain


@pytest.fixture
def client(service: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=120) as found:
        yield found


def asked(service: Any, messages: list[dict[str, str]] = SUM, **more: Any) -> dict[str, Any]:
    return {"model": service.model, "messages": messages, "temperature": 0, **more}


def thought(usage: Any) -> int:
    return int(usage.completion_tokens_details.reasoning_tokens)


def test_an_unmodified_client_gets_the_answer_the_chain_in_both_fields_and_true_counts(
    service: Any, client: Any
) -> None:
    raw = client.chat.completions.with_raw_response.create(**asked(service))
    answer = raw.parse()
    message = answer.choices[0].message
    assert "432" in message.content
    assert message.reasoning
    assert message.reasoning == message.reasoning_content
    assert answer.choices[0].finish_reason == "stop"
    assert raw.headers[c.HEADER_BUDGET] == str(service.resolved.reasoning.budget_default)
    assert raw.headers[c.HEADER_CLASS] == c.CLASS_MEDIUM
    usage = answer.usage
    # One token a character, so that a chain's length is its count; the mark that opens it belongs to it.
    assert abs(thought(usage) - len(message.reasoning)) <= 3
    assert thought(usage) < usage.completion_tokens
    line = service.log_line(raw.headers[c.HEADER_REQUEST_ID])
    assert (line["status"], line["streamed"], line["cls"]) == (200, False, c.CLASS_MEDIUM)
    assert line["prompt_tokens"] == usage.prompt_tokens
    assert line["reasoning_tokens"] == thought(usage)
    assert line["reasoning_tokens"] + line["answer_tokens"] == usage.completion_tokens
    assert "347" not in json.dumps(line)


def test_a_stream_says_the_same_as_a_whole_answer(service: Any, client: Any) -> None:
    whole = client.chat.completions.create(**asked(service))
    rid = f"stream-{time.time_ns()}"
    stream = client.chat.completions.create(
        **asked(service, stream=True, stream_options={"include_usage": True}), extra_headers={c.HEADER_REQUEST_ID: rid}
    )
    chain, old_chain, content, usage = "", "", "", None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            chain += getattr(choice.delta, "reasoning", None) or ""
            old_chain += getattr(choice.delta, "reasoning_content", None) or ""
            content += choice.delta.content or ""
    message = whole.choices[0].message
    assert (chain, content) == (message.reasoning, message.content)
    assert old_chain == chain
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert thought(usage) == thought(whole.usage)
    line = service.log_line(rid)
    assert line["streamed"]
    assert 0 < line["ttft_s"] < line["ttfat_s"] <= line["e2e_s"]


def test_a_stream_ends_with_done_and_every_event_is_whole(service: Any, http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", json=asked(service, stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = response.text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    for part in parts[:-2]:
        assert json.loads(part.removeprefix("data: "))["object"] == "chat.completion.chunk"


@pytest.mark.parametrize(
    ("more", "header", "cls", "most"),
    [
        ({"reasoning_effort": "low"}, "128", c.CLASS_LOW, 128),
        ({"extra_body": {"thinking_token_budget": 40}}, "40", c.CLASS_LOW, 40),
        ({"extra_body": {"thinking_token_budget": 1_000_000}}, "1792", c.CLASS_HIGH, 1792),
        ({"reasoning_effort": "high"}, "1792", c.CLASS_HIGH, 1792),
        ({"max_tokens": 200}, "168", c.CLASS_MEDIUM, 168),
    ],
)
def test_a_budget_is_applied_told_and_kept(
    service: Any, client: Any, more: dict[str, Any], header: str, cls: str, most: int
) -> None:
    raw = client.chat.completions.with_raw_response.create(**asked(service, LONG, **more))
    answer = raw.parse()
    assert (raw.headers[c.HEADER_BUDGET], raw.headers[c.HEADER_CLASS]) == (header, cls)
    assert 0 < thought(answer.usage) <= most
    assert answer.choices[0].message.content, "a chain that is cut still gets its answer"
    cut = thought(answer.usage) >= most - 1  # the mark that closes a chain is the budget's last token
    line = service.log_line(raw.headers[c.HEADER_REQUEST_ID])
    assert line["budget"] == header
    assert line["budget_exhausted"] == cut
    assert cut == (most < 1000)


def test_no_effort_means_no_chain(service: Any, client: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(**asked(service, reasoning_effort="none"))
    answer = raw.parse()
    assert (raw.headers[c.HEADER_BUDGET], raw.headers[c.HEADER_CLASS]) == ("off", c.CLASS_OFF)
    assert not getattr(answer.choices[0].message, "reasoning", None)
    assert thought(answer.usage) == 0
    assert answer.choices[0].message.content


def test_several_choices_are_made_at_once_and_counted_together(service: Any, client: Any) -> None:
    answer = client.chat.completions.create(**asked(service, n=2) | {"temperature": 1.0})
    assert len(answer.choices) == 2
    chains = sum(len(choice.message.reasoning) for choice in answer.choices)
    assert abs(thought(answer.usage) - chains) <= 6
    service.wait_idle()


def test_text_completions_and_several_prompts_are_answered(service: Any, client: Any) -> None:
    answer = client.completions.create(model=service.model, prompt=["12+3", "4+5"], max_tokens=8, temperature=0)
    assert len(answer.choices) == 2
    stream = client.completions.create(model=service.model, prompt="12+3", max_tokens=8, temperature=0, stream=True)
    text = "".join(chunk.choices[0].text for chunk in stream if chunk.choices)
    assert text == answer.choices[0].text
    service.wait_idle()


def test_models_are_listed(service: Any, client: Any) -> None:
    assert [model.id for model in client.models.list()] == [service.model]
    assert client.models.retrieve(service.model).id == service.model
    with pytest.raises(openai.NotFoundError, match=service.model):
        client.models.retrieve("no-such-model")


@pytest.mark.parametrize("given", [None, "mine-1.2_3", "has blanks", "x" * 129])
def test_every_answer_has_one_well_formed_id(service: Any, http: httpx.Client, given: str | None) -> None:
    headers = {} if given is None else {c.HEADER_REQUEST_ID: given}
    response = http.post("/v1/chat/completions", json=asked(service, max_tokens=4), headers=headers)
    ids = response.headers.get_list(c.HEADER_REQUEST_ID)
    assert len(ids) == 1
    assert ids[0].replace("-", "").replace("_", "").replace(".", "").isalnum()
    assert (ids[0] == given) == (given == "mine-1.2_3")
    assert service.log_line(ids[0])["status"] == 200


def test_the_same_id_twice_at_once_is_two_requests(service: Any, client: Any) -> None:
    before = service.wait_idle()["totals"]

    def one(_: int) -> Any:
        return client.chat.completions.create(**asked(service), extra_headers={c.HEADER_REQUEST_ID: "twice"})

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(one, range(4)))
    assert {answer.choices[0].message.content for answer in answers} == {answers[0].choices[0].message.content}
    assert len({thought(answer.usage) for answer in answers}) == 1
    after = service.wait_idle()["totals"]
    medium = c.CLASS_MEDIUM
    assert after[medium]["arrivals"] - before[medium]["arrivals"] == 4
    assert sum(after[medium]["ended"]) - sum(before[medium]["ended"]) == 4


@pytest.mark.usefixtures("put_back")
def test_a_hidden_chain_is_counted_and_never_sent_and_no_engine_restarts_for_it(
    service: Any, client: Any, http: httpx.Client
) -> None:
    replicas = service.replicas()
    shown = client.chat.completions.create(**asked(service))
    service.settings(hidden=True, classes=[["batch", "x-tenant", ["etl"]]])
    raw = client.chat.completions.with_raw_response.create(**asked(service), extra_headers={"x-tenant": "etl"})
    hidden = raw.parse()
    assert raw.headers[c.HEADER_CLASS] == "batch"
    assert hidden.choices[0].message.content == shown.choices[0].message.content
    assert thought(hidden.usage) == thought(shown.usage)
    chain = shown.choices[0].message.reasoning
    assert chain not in raw.text
    assert "reasoning_content" not in raw.text
    text = http.post("/v1/chat/completions", json=asked(service, stream=True)).text
    deltas = [json.loads(part[6:]) for part in text.split("\n\n") if part.startswith("data: {")]
    assert all(set(choice["delta"]) <= {"role", "content"} for delta in deltas for choice in delta["choices"])
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        client.chat.completions.create(**asked(service, logprobs=True))
    with pytest.raises(openai.BadRequestError, match="chat/completions"):
        client.completions.create(model=service.model, prompt="1+1")
    assert service.replicas() == replicas


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize("limit", [{"max_in_flight": 2}, {"max_waiting": 0}], ids=["ingress", "engine"])
def test_overload_is_answered_with_429_and_when_to_come_back(service: Any, http: httpx.Client, limit: Any) -> None:
    service.wait_idle()
    service.settings(**limit)

    def one(_: int) -> httpx.Response:
        return http.post("/v1/chat/completions", json=asked(service, LONG, max_tokens=300))

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(one, range(6)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) == (4 if "max_in_flight" in limit else 6)
    assert all(answer.status_code == 200 for answer in answers if answer not in refused)
    for answer in refused:
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert service.log_line(answer.headers[c.HEADER_REQUEST_ID])["status"] == 429


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_frees_the_engine(service: Any, http: httpx.Client, streamed: bool) -> None:
    before = service.wait_idle()["totals"]
    rid = f"gone-{time.time_ns()}"
    headers, body = {c.HEADER_REQUEST_ID: rid}, asked(service, LONG, stream=streamed)
    if streamed:
        with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            seen = 0
            for line in response.iter_lines():
                seen += "reasoning" in line
                if seen > 5:
                    break
    else:
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/chat/completions", json=body, headers=headers, timeout=httpx.Timeout(10, read=0.5))
    after = service.wait_idle(within_s=20)["totals"]
    medium = c.CLASS_MEDIUM
    assert after[medium]["arrivals"] - before[medium]["arrivals"] == 1
    # It reached, and never ended: censored. A chain of a thousand tokens takes seconds, so it was cut.
    assert after[medium]["ended"] == before[medium]["ended"]
    line = service.log_line(rid)
    assert line["status"] == 499


@pytest.mark.usefixtures("put_back")
def test_an_engine_that_cannot_count_a_chain_is_counted_by_the_ingress(service: Any, http: httpx.Client) -> None:
    service.settings(engine_budget=False, switch="never", template_key=None)
    body = {"model": service.model, "messages": [{"role": "user", "content": "collatz 27"}], "temperature": 0}
    answer = http.post("/v1/chat/completions", json=body | {"thinking_token_budget": 40})
    assert answer.status_code == 200, answer.text
    assert answer.headers[c.HEADER_BUDGET] == "counted:40"
    assert answer.json()["usage"]["completion_tokens"] == 40 + service.resolved.reasoning.answer_reserve
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    shorter = http.post("/v1/chat/completions", json=body | {"thinking_token_budget": 40, "max_tokens": 7})
    assert shorter.json()["usage"]["completion_tokens"] == 7
    service.wait_idle()


def test_times_of_answers_come_out_as_histograms(service: Any, client: Any) -> None:
    def counted() -> dict[str, float]:
        page = httpx.get(service.node.metrics_urls[0], timeout=10, trust_env=False).text
        found: dict[str, float] = {}
        for line in page.splitlines():
            for name in (c.M_TTFT, c.M_TTFAT, c.M_TPOT, c.M_E2E):
                if line.startswith(f"ray_{name}_count{{"):
                    assert f'model="{service.model}"' in line
                    found[name] = found.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
        return found

    before = counted()
    stream = client.chat.completions.create(
        model=service.model, messages=[{"role": "user", "content": "12+34"}], temperature=0, stream=True
    )
    assert list(stream)
    deadline = time.monotonic() + 30
    while True:
        after = counted()
        if len(after) == 4 and all(after[name] > before.get(name, 0.0) for name in after):
            break
        assert time.monotonic() < deadline, (before, after)
        time.sleep(0.5)
