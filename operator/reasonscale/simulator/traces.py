"""Workloads by name: a built-in one, a trace file of one of several kinds, or a folder of ServeGen's."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from reprlib import repr as said
from typing import Final

import numpy as np

from reasonscale.load import rows as trace_rows
from reasonscale.load.rows import BadRow, BadTrace
from reasonscale.simulator import servegen
from reasonscale.simulator.synthetic import BUILT_IN
from reasonscale.simulator.workload import BadWorkload, Workload, make

WANTED: Final = "t, input, reasoning, answer (or Azure's or Mooncake's)"


def load(name: str, *, seed: int = 1) -> Workload:
    """Return a built-in workload by name, or that of a file or folder."""
    if name in BUILT_IN:
        return BUILT_IN[name](seed)
    if not Path(name).exists():
        raise BadWorkload(f"trace {name!r}: no such name, file or folder; there are {', '.join(BUILT_IN)}")
    return read(Path(name), seed=seed)


def read(path: Path, *, seed: int = 1, reason_share: float = 0.7) -> Workload:
    """Return the workload of a trace file or ServeGen folder; the kind is told by its content.

    `reason_share` is the chain's part of an output where the trace doesn't say.
    """
    if path.is_dir():
        return servegen.sample(path, seed=seed)
    if not path.is_file():
        raise BadWorkload(f"{path}: there is no such file or folder")
    good: list[tuple[float, int, int, int, str]] = []
    bad: list[str] = []
    last, began = 0.0, None
    try:
        for number, row in trace_rows.read(path):
            try:
                if isinstance(row, BadRow):
                    raise row
                found = _row(row, reason_share)
                if began is None:
                    began = found[0] if "TIMESTAMP" in row else 0.0
                found = (found[0] - began, *found[1:])
                trace_rows.later(found[0], last)
                last = found[0]
                good.append(found)
            except BadRow as error:
                bad.append(f"{path}: line {number}: {error}; left out")
    except BadTrace as error:
        raise BadWorkload(str(error)) from None
    if not good:
        why = bad[0].removeprefix(f"{path}: ").removesuffix("; left out") if bad else ""
        raise BadWorkload(
            f"{path}: no row could be read; wanted are {WANTED}; {why}" if bad else f"{path}: holds no request"
        )
    t, prompt, reasoning, answer = (np.array(c) for c in zip(*(g[:4] for g in good), strict=True))
    return make(path.name, t, prompt, reasoning, answer, [g[4] or "default" for g in good], tuple(bad))


def _row(row: trace_rows.Row, reason_share: float) -> tuple[float, int, int, int, str]:
    """Return t, prompt, reasoning, answer, class of a row of ours, Azure's or Mooncake's."""
    if "TIMESTAMP" in row:
        day, _, rest = str(row["TIMESTAMP"]).partition(".")
        try:
            at = datetime.fromisoformat(day + "+00:00").timestamp() + float("0." + (rest or "0"))
        except ValueError:
            right = "a time such as 2023-11-16 18:15:46.68"
            raise BadRow(f"TIMESTAMP was {said(row['TIMESTAMP'])}; must be {right}") from None
        return (
            at,
            trace_rows.tokens(row, "ContextTokens"),
            *_split(trace_rows.tokens(row, "GeneratedTokens"), reason_share),
            "",
        )
    if "timestamp" in row:
        at = trace_rows.number(row, "timestamp", "a number of milliseconds") / 1e3
        return (
            at,
            trace_rows.tokens(row, "input_length"),
            *_split(trace_rows.tokens(row, "output_length"), reason_share),
            "",
        )
    return trace_rows.lengths(row)


def _split(output: int, share: float) -> tuple[int, int]:
    reasoning = int(output * share)
    return reasoning, output - reasoning
