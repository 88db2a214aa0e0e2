"""Tells whether a replica that starts is still fetching its weights: the operator sees pods, and a pod that fetches runs like one that loads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from reasonscale.api import constants as c

LOOK_S: Final = 2.0
GREW_WITHIN_S: Final = 15.0  # a slow hub writes in bursts
_WEIGHTS_BYTES: Final = 1 << 20  # what is smaller is no weight: locks, references and tokenizers come and go in between
log = logging.getLogger("ray.serve")


def fetches(folders: Iterable[Path], now: float) -> bool:
    """Tell whether a file of weights in these folders has just grown, by whoever: all fetchers write there."""
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                found = path.lstat()
            except OSError:  # it has been moved to its final name
                continue
            if found.st_size >= _WEIGHTS_BYTES and now - found.st_mtime <= GREW_WITHIN_S:
                return True
    return False


def folders_of(cache: Path, *names: str) -> list[Path]:
    """Return where a hub's cache keeps the models of these names; Serve LLM puts what it copies from s3 and gs there too."""
    return [cache / f"models--{name.replace('/', '--')}" for name in names]


@contextmanager
def told(write: Callable[[float], None], folders: list[Path]) -> Iterator[None]:
    """Write 1 while weights are fetched and 0 while they are not, until the start is over. It never fails a start."""
    over = threading.Event()

    def look() -> None:
        try:
            while not over.is_set():
                write(float(fetches(folders, time.time())))
                over.wait(LOOK_S)
            write(0.0)
        except Exception:
            log.exception("whether weights are fetched is not told")

    # A thread: an engine's start blocks the loop.
    thread = threading.Thread(target=look, name="reasonscale-fetching", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(LOOK_S)


def of_replica(model: str, source: str) -> AbstractContextManager[None]:
    """Return what tells it of this replica in Ray's metrics."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from ray.util.metrics import Gauge

    gauge = Gauge(c.M_FETCHING, description=c.M_FETCHING, tag_keys=(c.LABEL_METRIC_MODEL,))
    return told(
        lambda value: gauge.set(value, tags={c.LABEL_METRIC_MODEL: model}),
        folders_of(Path(HF_HUB_CACHE), model, source),
    )
