"""What is refused before an engine sees it, and in which words."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from reasonscale.serving.budget import BadRequest
from reasonscale.serving.errors import error_body
from reasonscale.serving.proxy import RequestIds
from reasonscale.serving.reading import (
    MAX_CHOICES,
    MAX_PROMPTS,
    govern,
    known_by,
    model_of,
    parse_body,
    read_body,
    request_id,
    sequences_of,
)
from reasonscale.serving.settings import MAX_BODY_BYTES, ModelSettings

PLAIN = ModelSettings(
    model="m", max_model_len=8192, reasons=False, engine_budget=False, always=False, switch="never", template_key=None,
    template_default=True, native_efforts=(), budget_default=1, budget_max=1, answer_reserve=1, efforts={}, hidden=False,
    field_names=("reasoning",), classes=(), max_waiting=64,
)  # fmt: skip


class Body:
    """A client that sends a body in chunks, and remembers how much was taken."""

    def __init__(self, chunk: bytes, chunks: int) -> None:
        self.chunk, self.chunks, self.taken = chunk, chunks, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self.chunks):
            self.taken += 1
            yield self.chunk


@pytest.mark.parametrize("given", ["a", "A-1_b.c", "x" * 128])
def test_a_well_formed_id_is_kept(given: str) -> None:
    assert request_id(given) == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "a\n", "é", "a/b"])
def test_a_malformed_id_is_replaced_by_one_of_its_own(given: str | None) -> None:
    made = request_id(given)
    assert made != given
    assert request_id(made) == made
    assert request_id(given) != made


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "no JSON"),
        (b'{"a": ', "no JSON"),
        (b"[1]", "was a list"),
        (b'"x"', "was a str"),
        (b"\xff\xfe", "no JSON"),
        (b'{"temperature": NaN}', "NaN is no JSON number"),
        (b'{"temperature": -Infinity}', "Infinity is no JSON number"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"n": ' + b"9" * 10_000 + b"}", "no JSON"),
        (b'{"x": "\\ud800"}', "surrogate"),
        (b'{"x": "\\uDC00 and more"}', "surrogate"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused_in_words(raw: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        parse_body(raw)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


async def test_a_body_that_says_it_is_too_large_is_refused_unread() -> None:
    body = Body(b"x" * 1024, 10_000)
    for declared in (str(MAX_BODY_BYTES + 1), "9" * 5000):
        with pytest.raises(BadRequest) as caught:
            await read_body(declared, aiter(body))
        assert caught.value.status == 413
    assert body.taken == 0


@pytest.mark.parametrize("declared", [None, "17", "-1", "many"])
async def test_a_body_that_grows_too_large_is_refused_as_soon_as_it_does(declared: str | None) -> None:
    body = Body(b"x" * 65536, 10_000)
    with pytest.raises(BadRequest) as caught:
        await read_body(declared, aiter(body))
    assert caught.value.status == 413
    assert body.taken == MAX_BODY_BYTES // 65536 + 1


async def test_a_body_of_just_the_limit_is_read() -> None:
    frame = len(json.dumps({"a": ""}))
    raw = json.dumps({"a": "x" * (MAX_BODY_BYTES - frame)}).encode()
    assert len(raw) == MAX_BODY_BYTES
    assert len((await read_body(str(len(raw)), aiter(Body(raw, 1))))[0]["a"]) == MAX_BODY_BYTES - frame


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    models = {"a": PLAIN, "b": PLAIN}
    for name, status in (("c", 404), (None, 400), (7, 404), ({"x": 1}, 404)):
        with pytest.raises(BadRequest, match="there are: a, b") as caught:
            model_of(models, name)
        assert (caught.value.status, caught.value.param) == (status, "model")


def test_what_would_multiply_the_work_is_bounded() -> None:
    with pytest.raises(BadRequest) as caught:
        govern(PLAIN, {"messages": [{}], "n": MAX_CHOICES + 1}, {}, chat=True)
    assert caught.value.param == "n"
    with pytest.raises(BadRequest) as caught:
        govern(PLAIN, {"prompt": ["x"] * (MAX_PROMPTS + 1)}, {}, chat=False)
    assert caught.value.param == "prompt"
    # Token ids are one prompt, however many.
    assert govern(PLAIN, {"prompt": list(range(MAX_PROMPTS + 1))}, {}, chat=False).label == "off"


def test_a_whole_pair_of_surrogates_is_a_letter_like_any_other() -> None:
    assert parse_body(b'{"x": "\\ud83d\\ude00"}') == {"x": "\U0001f600"}


@pytest.mark.parametrize("messages", [None, [], "hello", {"role": "user"}, ["hello"], [{}, None]])
def test_messages_are_a_list_of_at_least_one(messages: object) -> None:
    with pytest.raises(BadRequest) as caught:
        govern(PLAIN, {"messages": messages}, {}, chat=True)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("status", [400, 404, 405, 413, 429, 500, 503])
def test_every_error_has_the_shape_that_openai_clients_read(status: int) -> None:
    body = error_body(status, "words", param="n", code="c")
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"]


@pytest.mark.parametrize(
    "given",
    [[], [b"good-1"], [b"b\xc3d"], [b"one", b"two"], [b"x" * 129]],
    ids=["none", "good", "bytes", "two", "long"],
)
async def test_the_proxy_hands_on_one_well_formed_id(given: list[bytes]) -> None:
    seen: list[bytes] = []

    async def app(scope: dict[str, object], receive: object, send: object) -> None:
        headers = scope["headers"]
        assert isinstance(headers, list)
        seen.extend(value for name, value in headers if name == b"x-request-id")
        assert (b"accept", b"*/*") in headers

    headers = [(b"accept", b"*/*"), *((b"X-Request-ID", value) for value in given)]
    await RequestIds(app)({"type": "http", "headers": headers}, None, None)
    assert len(seen) == 1
    assert request_id(seen[0].decode()) == seen[0].decode()
    assert (seen[0] == b"good-1") == (given == [b"good-1"])


def test_a_request_that_is_sent_again_is_known_and_another_is_not() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "1+1"}], "stream": True}
    assert known_by(body, {}) == known_by(body | {"stream": False, "temperature": 1}, {"x-request-id": "made anew"})
    assert known_by(body, {}) != known_by(body | {"messages": [{"role": "user", "content": "1+2"}]}, {})
    assert known_by({"prompt": "1+1"}, {}) != known_by({"prompt": "1+2"}, {})
    assert known_by(body, {}) != known_by(body | {"user": "other"}, {})


@pytest.mark.parametrize("name", ["seed", "n", "max_tokens", "max_completion_tokens"])
def test_samples_of_one_prompt_that_are_asked_for_differently_are_two(name: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "1+1"}]}
    assert known_by(body | {name: 1}, {}) == known_by(body | {name: 1}, {})
    assert len({known_by(asked, {}) for asked in (body, body | {name: 1}, body | {name: 2})}) == 3


@pytest.mark.parametrize("name", ["authorization", "x-session-id", "idempotency-key"])
def test_two_that_ask_the_same_are_told_apart_by_what_they_say_of_themselves(name: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "1+1"}]}
    assert known_by(body, {name: "a"}) == known_by(body, {name: "a"})
    assert len({known_by(body, headers) for headers in ({name: "a"}, {name: "b"}, {})}) == 3


def test_a_key_is_one_clients_own() -> None:
    body, mine = {"prompt": "1+1"}, {"idempotency-key": "1", "authorization": "Bearer a"}
    assert known_by(body, mine, "few") == known_by({"prompt": "1 + 1"}, mine, "few")
    assert known_by(body, mine, "few") != known_by(body, mine | {"authorization": "Bearer b"}, "few")
    assert known_by(body, mine, "few") != known_by(body, mine, "flood")


@pytest.mark.parametrize(
    ("body", "sequences"),
    [
        ({}, 1),
        ({"n": 4}, 4),
        ({"prompt": ["a", "b"], "n": 2}, 4),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": "a", "n": None}, 1),
    ],
)
def test_a_request_takes_a_seat_for_each_of_its_sequences(body: dict[str, object], sequences: int) -> None:
    assert sequences_of(body) == sequences
