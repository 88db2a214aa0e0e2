"""Bad input, case by case: OpenAI's error object, words that help, no trace of our inside, the engine untouched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from reasonscale.api import constants as c

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "1+1"}]


def check(response: httpx.Response, status: int, param: str | None) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    assert error["message"]
    for inside in ("Traceback", "site-packages", "/work", "ray.", "vllm.", "object at 0x"):
        assert inside not in response.text
    assert len(response.headers.get_list(c.HEADER_REQUEST_ID)) == 1
    return str(error["message"])


def arrivals(service: Any) -> int:
    return sum(totals["arrivals"] for totals in service.ledger()["totals"].values())


FIELDS: list[tuple[dict[str, Any], str | None]] = [
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": "two"}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 100_000}, "max_tokens"),
    ({"max_completion_tokens": -5}, "max_completion_tokens"),
    ({"thinking_token_budget": -2}, "thinking_token_budget"),
    ({"thinking_token_budget": "all"}, "thinking_token_budget"),
    ({"reasoning_effort": "extreme"}, "reasoning_effort"),
    ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"content": "no role"}]}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"logit_bias": {"a": "b"}}, "logit_bias"),
    ({"stop": 7}, "stop"),
    ({"tools": "hammer"}, "tools"),
    ({"response_format": 3}, "response_format"),
    ({"stream_options": {"include_usage": True}}, "stream"),
    ({"stream": "perhaps"}, "stream"),
    ({"model": "gpt-5"}, "model"),
    ({"model": None}, "model"),
]


@pytest.mark.parametrize(("wrong", "param"), FIELDS, ids=[json.dumps(wrong)[:40] for wrong, _ in FIELDS])
def test_a_wrong_field_is_named(service: Any, http: httpx.Client, wrong: dict[str, Any], param: str) -> None:
    before = arrivals(service)
    body = {"model": service.model, "messages": HI} | wrong
    response = http.post(CHAT, json=body)
    message = check(response, 404 if wrong.get("model") else 400, response.json()["error"]["param"])
    found = response.json()["error"]["param"] or ""
    assert found.split(".")[0] == param or param in message
    assert arrivals(service) == before


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe\x00", 400),
        (b"[" * 100_000, 400),
        (b'{"model": "micro-reasoner", "messages": [], "temperature": NaN}', 400),
        (b'{"x": "' + b"y" * (4 * 1024 * 1024) + b'"}', 413),
    ],
    ids=["empty", "cut", "list", "bytes", "deep", "nan", "large"],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_body_that_is_no_request_is_refused(
    service: Any, http: httpx.Client, path: str, raw: bytes, status: int
) -> None:
    check(http.post(path, content=raw, headers={"content-type": "application/json"}), status, None)


def test_a_chunked_body_without_a_length_is_bounded_too(service: Any, http: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"x": "'
        for _ in range(80):
            yield b"y" * 65536

    check(http.post(CHAT, content=chunks()), 413, None)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_over_the_context_says_how_long_it_may_be(service: Any, http: httpx.Client, streamed: bool) -> None:
    before = arrivals(service)
    long = [{"role": "user", "content": "1" * 5000}]
    response = http.post(CHAT, json={"model": service.model, "messages": long, "stream": streamed})
    message = check(response, 400, response.json()["error"]["param"])
    assert str(service.resolved.max_model_len) in message
    assert response.headers["content-type"] == "application/json"
    assert arrivals(service) == before


def test_too_many_prompts_at_once_are_refused(service: Any, http: httpx.Client) -> None:
    check(http.post(TEXT, json={"model": service.model, "prompt": ["1"] * 65}), 400, "prompt")
    response = http.post(TEXT, json={"model": service.model})
    check(response, 400, response.json()["error"]["param"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("PUT", TEXT, 405),
        ("OPTIONS", CHAT, 405),
        ("POST", "/v1/models", 405),
        ("GET", "/", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/docs", 404),
        ("GET", "/v1/models/nothing", 404),
    ],
)
def test_what_is_not_served_says_what_is(service: Any, http: httpx.Client, method: str, path: str, status: int) -> None:
    response = http.request(method, path, headers={"origin": "http://evil.example"})
    assert response.status_code == status
    assert "there are" in response.json()["error"]["message"]
    assert not any(name.startswith("access-control-") for name in response.headers)


def test_more_logprobs_than_the_engine_makes_are_refused_in_its_words(service: Any, http: httpx.Client) -> None:
    body = {"model": service.model, "messages": HI, "logprobs": True, "top_logprobs": 10_000}
    assert "logprobs" in check(http.post(CHAT, json=body), 400, "logprobs")


def test_a_lone_surrogate_is_the_clients_error_not_ours(service: Any, http: httpx.Client) -> None:
    raw = b'{"model": "%s", "messages": [{"role": "user", "content": "\\ud800"}]}' % service.model.encode()
    response = http.post(CHAT, content=raw)
    check(response, 400, response.json()["error"]["param"])


def test_after_all_of_it_the_engine_still_answers(service: Any, http: httpx.Client) -> None:
    response = http.post(CHAT, json={"model": service.model, "messages": HI, "temperature": 0})
    assert response.status_code == 200
    assert "2" in response.json()["choices"][0]["message"]["content"]
