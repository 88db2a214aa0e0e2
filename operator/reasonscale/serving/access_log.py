"""One JSON line a request: id, counts and times, never content."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

ENV = "REASONSCALE_ACCESS_LOG"
log = logging.getLogger("reasonscale.access")


@dataclass(slots=True)
class Entry:
    """A request as the access log has it. Times: unix seconds and durations in seconds; None: it never came to that."""

    time: float
    id: str
    model: str = ""
    cls: str = ""
    endpoint: str = ""
    streamed: bool = False
    status: int = 0
    budget: str = ""
    prompt_tokens: int = 0
    reasoning_tokens: int = 0
    answer_tokens: int = 0
    budget_exhausted: bool = False
    ttft_s: float | None = None
    ttfat_s: float | None = None
    e2e_s: float | None = None
    held_s: float = 0.0  # until a replica was ready, of a model that slept
    resumed: int = 0  # engines that were lost under it
    moved: int = 0  # replicas that handed it on before they were stopped
    error: str | None = None  # a code, and the field where one is at fault; never what a client wrote
    started_s: float = field(default=0.0, repr=False)  # by the monotonic clock; not logged

    def first(self, is_answer: bool, now: float) -> None:
        """Note the first token and the first token of the answer."""
        passed = round(now - self.started_s, 4)
        if self.ttft_s is None:
            self.ttft_s = passed
        if is_answer and self.ttfat_s is None:
            self.ttfat_s = passed

    def line(self) -> str:
        """Return the entry as one line of JSON."""
        values = asdict(self)
        del values["started_s"]
        return json.dumps(values, separators=(",", ":"))


class AccessLog:
    """Appends to the file that REASONSCALE_ACCESS_LOG names, and to the logger `reasonscale.access`."""

    def __init__(self, env: Mapping[str, str] = os.environ) -> None:
        self._file: IO[str] | None = None
        path = env.get(ENV)
        if path:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
            except OSError as error:  # serving goes on: a log is not worth an outage
                log.error("%s names %s, which cannot be written: %s", ENV, path, error)

    def write(self, entry: Entry) -> None:
        """Write one request; a full disk costs its line, never the request."""
        line = entry.line()
        if self._file is not None:
            try:
                self._file.write(line + "\n")
            except OSError as error:
                log.error("the access log cannot be written: %s", error)
        log.info(line)
