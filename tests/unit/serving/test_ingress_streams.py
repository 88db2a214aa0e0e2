"""A stream's way to its client: framing, times, ends of every kind. The engine is played; its truth is in tests/engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from reasonscale.serving import events
from reasonscale.serving.access_log import ENV, AccessLog, Entry
from reasonscale.serving.stream import KEEP_ALIVE, KEEP_ALIVE_S, Batch, error_of, flatten, relay

COUNTS = {"prompt_tokens": 3, "reasoning_tokens": 2, "answer_tokens": 1, "budget_exhausted": False}


class Engine:
    """Plays a server's stream: pieces, in the batches that Serve makes of them, or a failure."""

    def __init__(self, *items: Any, fails: Exception | None = None) -> None:
        self.items, self.fails, self.cancelled, self.taken = items, fails, False, 0

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self.items:
            self.taken += 1
            yield item
        if self.fails is not None:
            raise self.fails

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Played:
    """One played request."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.entry = engine, Entry(time=0.0, id="r1")
        self.settled: list[tuple[int, dict[str, Any]]] = []
        self.failures: list[Exception] = []

    def _failed(self, error: Exception) -> tuple[int, str, str]:
        self.failures.append(error)
        return 503, "lost", "engine_error"

    async def open(self, clock: Any = None) -> Any:
        batch = Batch()
        pieces = flatten(self.engine, batch)
        first = await anext(pieces)
        return relay(
            first, pieces, self.entry, lambda s, c: self.settled.append((s, c)), self._failed,
            more=lambda: batch.left > 0, clock=clock or Clock(),
        )  # fmt: skip

    async def text(self, clock: Any = None) -> str:
        return "".join([piece async for piece in await self.open(clock)])


def piece(kind: str, word: str) -> tuple[str, str]:
    return kind, f'data: {{"w":"{word}"}}\n\n'


R, A = piece(events.REASONING, "r"), piece(events.ANSWER, "a")
DONE = (events.OTHER, events.DONE)
END = (events.COUNTS, COUNTS)


async def test_batches_of_any_size_come_out_as_the_same_events() -> None:
    flat = [R, R, A, A, DONE, END]
    want = R[1] * 2 + A[1] * 2 + events.DONE
    for size in range(1, 7):
        batches = [flat[i : i + size] for i in range(0, len(flat), size)]
        played = Played(Engine(*batches))
        assert await played.text() == want
        assert played.settled == [(200, COUNTS)]


async def test_events_that_came_in_one_message_leave_in_one() -> None:
    played = Played(Engine([R], [R, R, A], [A, A, DONE, END]))
    sent = [text async for text in await played.open()]
    assert sent == [R[1], R[1] * 2 + A[1], A[1] * 2, events.DONE]


async def test_what_came_before_a_failure_in_its_message_is_sent_before_it() -> None:
    played = Played(Engine([R, A, (events.ERROR, 'data: {"error":{"message":"bad","code":400}}\n\n')]))
    sent = [text async for text in await played.open()]
    assert sent[0].startswith(R[1] + A[1])
    assert '"error"' in sent[0]
    assert sent[1] == events.DONE
    assert played.settled[0][0] == 400


async def test_done_comes_last_and_once_whether_the_engine_says_it_or_not() -> None:
    for tail in ([DONE, END], [END, DONE], [END], []):
        text = await Played(Engine(R, A, *tail)).text()
        assert text.count("[DONE]") == 1
        assert text.endswith(events.DONE)


async def test_the_first_token_and_the_first_answer_token_are_timed_apart() -> None:
    played = Played(Engine((events.OTHER, "data: {}\n\n"), R, R, A, A, END))
    await played.text(Clock())
    assert played.entry.ttft_s is not None
    assert played.entry.ttfat_s is not None
    assert 0 < played.entry.ttft_s < played.entry.ttfat_s


async def test_a_hidden_chain_keeps_its_connection_alive_with_comments() -> None:
    hidden = (events.REASONING, "")
    seconds = Clock()
    text = await Played(Engine(*[hidden] * 100, A, END)).text(seconds)
    beats = text.count(KEEP_ALIVE)
    assert seconds.now / KEEP_ALIVE_S * 0.5 <= beats <= seconds.now / KEEP_ALIVE_S
    # What a client of server-sent events reads: comments are none of it.
    assert [line for line in text.splitlines() if line.startswith("data:")] == [A[1].strip(), "data: [DONE]"]


async def test_a_failure_after_the_first_event_ends_the_stream_with_an_error_and_is_no_200() -> None:
    played = Played(Engine(R, fails=RuntimeError("Traceback: secret path")))
    text = await played.text()
    assert "secret" not in text
    assert json.loads(text.split("\n\n")[1][6:])["error"]["message"] == "lost (request r1)"
    assert text.endswith(events.DONE)
    assert [status for status, _ in played.settled] == [503]
    assert played.entry.error == "engine_error"
    assert len(played.failures) == 1


async def test_an_error_event_of_the_engine_is_settled_as_one_and_its_inside_is_not_shown() -> None:
    error = (events.ERROR, 'data: {"error": {"message": "CUDA at 0xdead", "code": 500}}\n\n')
    played = Played(Engine(R, error, DONE, END))
    text = await played.text()
    assert "CUDA" not in text
    assert json.loads(text.split("\n\n")[1][6:])["error"]["code"] == "engine_error"
    assert played.settled == [(500, COUNTS)]


async def test_a_client_that_goes_away_lets_the_engine_go() -> None:
    played = Played(Engine(R, R, A, END))
    stream = await played.open()
    assert await anext(stream) == R[1]
    await stream.aclose()
    assert played.engine.cancelled
    assert [status for status, _ in played.settled] == [499]
    assert played.engine.taken < 4


async def test_a_stream_that_came_to_its_end_is_not_cancelled() -> None:
    played = Played(Engine(R, A, END))
    await played.text()
    assert not played.engine.cancelled


def test_an_error_that_is_no_error_object_is_still_an_error() -> None:
    assert error_of('data: {"error": {"message": "too long", "code": 400}}\n\n') == (400, "too long")
    for broken in ("", "data: x", "data: []", 'data: {"error": null}', 'data: {"error": {"code": 200}}'):
        assert error_of(broken)[0] == 500


def test_a_line_of_the_access_log_is_json_of_counts_and_times(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "access.jsonl"
    log = AccessLog({ENV: str(path)})
    log.write(Entry(time=1.0, id="r1", model="m", cls="low", status=200, reasoning_tokens=5, started_s=77.0))
    log.write(Entry(time=2.0, id="r2"))
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["reasoning_tokens"] == 5
    assert second["ttft_s"] is None
    assert set(first) == {
        "time", "id", "model", "cls", "endpoint", "streamed", "status", "budget", "prompt_tokens", "reasoning_tokens",
        "answer_tokens", "budget_exhausted", "ttft_s", "ttfat_s", "e2e_s", "held_s", "resumed", "moved", "error",
    }  # fmt: skip


def test_a_log_that_cannot_be_written_does_not_stop_the_serving(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    AccessLog({ENV: str(tmp_path / "file" / "under" / "access.jsonl")}).write(Entry(time=1.0, id="r1"))
