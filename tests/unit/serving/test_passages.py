"""Each request that was handed on and given up counts, by what its client was told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from reasonscale.serving import passage
from reasonscale.serving.access_log import Entry
from reasonscale.serving.passage import Call, Passages


class Counted:
    """A metric of Ray's that keeps what it was told."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        self.told: list[dict[str, str]] = []

    def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        self.told.append(tags or {})


@pytest.mark.parametrize(
    ("resumed", "moved", "given_up", "code", "counts"),
    [
        (2, 0, True, "engine_crash_suspect", ["engine_crash_suspect"]),  # a second death while resuming
        (1, 0, True, "engine_lost", ["engine_lost"]),  # no other replica, or a context that is shorter
        (0, 1, True, "engine_lost", ["engine_lost"]),  # its replica was about to be stopped, and the next refused it
        (1, 0, False, None, []),
        (0, 0, True, "engine_error", []),
    ],
)
def test_a_request_that_was_handed_on_and_given_up_is_counted_by_what_its_client_was_told(
    resumed: int, moved: int, given_up: bool, code: str | None, counts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passage, "Counter", Counted)
    monkeypatch.setattr(passage, "Histogram", Counted)
    passages = Passages({}, "me")
    call = Call(Entry(time=0.0, id="q", endpoint="chat", started_s=0.0, model="m", error=code), {})
    call.takeover = SimpleNamespace(times=resumed, moves=moved)  # type: ignore[assignment]
    passages.over(call, given_up=given_up)
    told: Any = passages._resumes
    assert told.told == [{"model": "m", "outcome": outcome} for outcome in counts]
    assert (call.entry.resumed, call.entry.moved) == (resumed, moved)
