"""A replica that is told to go while its engine starts."""

from __future__ import annotations

import threading

from reasonscale.serving.leaving import at_once_if_told


def test_it_goes_at_once_where_it_is_told_while_it_starts() -> None:
    told, gone = threading.Event(), threading.Event()
    with at_once_if_told(told.is_set, gone.set, look_s=0.001):
        assert not gone.wait(0.02)
        told.set()
        assert gone.wait(5.0)


def test_it_goes_as_serve_says_where_it_is_told_after_its_start() -> None:
    told, gone, looked = threading.Event(), threading.Event(), threading.Event()

    def look() -> bool:
        looked.set()
        return told.is_set()

    with at_once_if_told(look, gone.set, look_s=0.001):
        assert looked.wait(5.0)
    told.set()
    assert not gone.wait(0.05)
