"""A pace holds a step that ran the model to its least time, and leaves an idle one alone."""

from __future__ import annotations

import pytest

from reasonscale.serving import pace


class Clock:
    def __init__(self) -> None:
        self.now, self.slept = 0.0, 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, s: float) -> None:
        self.slept += s
        self.now += s


@pytest.mark.parametrize(
    ("takes_s", "ran", "sleeps_s"),
    [(0.01, True, 0.03), (0.06, True, 0.0), (0.0, False, 0.0)],
    ids=["a quick step waits", "a slow one does not", "an idle one does not"],
)
def test_a_step_takes_its_least_time(
    monkeypatch: pytest.MonkeyPatch, takes_s: float, ran: bool, sleeps_s: float
) -> None:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)

    def plain(self: object) -> tuple[str, bool]:
        clock.now += takes_s
        return "outputs", ran

    assert pace._paced(plain, 0.04)(object()) == ("outputs", ran)
    assert clock.slept == pytest.approx(sleeps_s)


def test_without_the_environments_word_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(pace.ENV, raising=False)
    monkeypatch.setattr(pace, "_paced", lambda *_: pytest.fail("an engine was paced that nobody asked to be"))
    pace.register()
