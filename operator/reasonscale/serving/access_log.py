"""One JSON line a request: id, counts and times, never content."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from typing import IO

ENV = "REASONSCALE_ACCESS_LOG"
log = logging.getLogger("reasonscale.access")


@dataclass(slots=True)
class Entry:
    """A request as the access log has it. Times: unix seconds and durations in seconds."""

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
    error: str | None = None

    def first(self, kind_is_answer: bool, started: float) -> None:
        """Note the first token and the first token of the answer."""
        passed = round(time.monotonic() - started, 4)
        if self.ttft_s is None:
            self.ttft_s = passed
        if kind_is_answer and self.ttfat_s is None:
            self.ttfat_s = passed


class AccessLog:
    """Appends to the file that REASONSCALE_ACCESS_LOG names, and to the logger `reasonscale.access`."""

    def __init__(self) -> None:
        path = os.environ.get(ENV)
        self._file: IO[str] | None = open(path, "a", buffering=1) if path else None  # noqa: SIM115

    def write(self, entry: Entry) -> None:
        """Write one request."""
        line = json.dumps(asdict(entry), separators=(",", ":"))
        if self._file is not None:
            self._file.write(line + "\n")
        log.info(line)
