"""When a replica goes: Serve has told it to, or its engine is lost. Runs under Ray."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

log = logging.getLogger("ray.serve")
LOOK_S: Final = 0.5


def told_to_go() -> bool:
    """Tell whether Serve has told this replica to finish what it has and go; it has no word for that of its own."""
    import ray

    actor = ray._private.worker.global_worker.actors.get(ray.get_runtime_context().get_actor_id())
    if actor is None:  # keyed by the id itself, and not by its text
        actor = next(iter(ray._private.worker.global_worker.actors.values()), None)
    return bool(getattr(getattr(actor, "_replica_impl", None), "_shutting_down", False))


def leave() -> None:
    """End this process, and the engine with it."""
    import psutil  # type: ignore[import-untyped]  # comes with vLLM

    for child in psutil.Process().children(recursive=True):  # an engine that hangs hears nothing, and holds its memory
        child.kill()
    os._exit(1)


@contextmanager
def at_once_if_told(
    told: Callable[[], bool] = told_to_go, go: Callable[[], None] = leave, look_s: float = LOOK_S
) -> Iterator[None]:
    """Leave as soon as Serve says so, meanwhile: of an engine that starts.

    Serve waits for the start's end first, and the start blocks the loop: a replica that was taken back held its GPU's start
    lock, and the GPU's memory, for the 40 s of its start.
    """
    started = threading.Event()

    def watch() -> None:
        while not started.wait(look_s):
            if told():
                log.warning("told to go while its engine starts: it goes at once")
                go()
                return

    threading.Thread(target=watch, name="reasonscale-leaving", daemon=True).start()
    try:
        yield
    finally:
        started.set()
