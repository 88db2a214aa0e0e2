"""`reasonscale record`: a trace without content from an access log."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

_WANTED = ("time", "prompt_tokens", "reasoning_tokens", "answer_tokens", "status")


def record(*, log: Path, output: Annotated[Path, Parameter(name=["--output", "-o"])]) -> int:
    """Make a trace (t, input, reasoning, answer, cls) from the ingress' access log, for the simulator or `load`.

    Parameters
    ----------
    log
        The access log: one JSON object a line.
    output
        The trace to write; `.gz` compresses it.
    """
    out = Console(highlight=False, soft_wrap=True, markup=False)
    err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        err.print(f"record: {log}: can't be read: {error.strerror}")
        return 2
    except UnicodeDecodeError as error:
        err.print(f"record: {log}: can't be read: it is not UTF-8: {error.reason} at byte {error.start}")
        return 2
    rows, bad, left = [], 0, 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            values = {k: float(row[k]) for k in _WANTED}
            if not all(map(math.isfinite, values.values())):
                raise ValueError("not a finite number")
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            bad += 1
            err.print(f"record: {log}: line {number}: left out: {type(error).__name__} {error}")
            continue
        if values["status"] != 200:
            left += 1
            continue
        rows.append(
            (
                values["time"],
                int(values["prompt_tokens"]),
                int(values["reasoning_tokens"]),
                int(values["answer_tokens"]),
                str(row.get("cls", "")),
            )
        )
    if not rows:
        err.print(f"record: {log}: holds no answered request")
        return 1
    rows.sort()
    start = rows[0][0]
    opener: Any = gzip.open if output.suffix == ".gz" else open
    try:
        with opener(output, "wt", encoding="utf-8") as file:
            for t, inp, reasoning, answer, cls in rows:
                file.write(
                    json.dumps(
                        {"t": round(t - start, 3), "input": inp, "reasoning": reasoning, "answer": answer, "cls": cls}
                    )
                    + "\n"
                )
    except OSError as error:
        err.print(f"record: {output}: can't be written: {error.strerror}")
        return 2
    out.print(
        f"{len(rows)} requests over {rows[-1][0] - start:.0f} s written to {output}; left out: {left} not answered, {bad} unreadable"
    )
    return 1 if bad else 0
