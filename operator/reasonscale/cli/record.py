"""`reasonscale record`: a trace without content from an access log."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from reasonscale.cli.checks import BadOption, one_of, output


def record(
    *, log: Path, output_: Annotated[Path, Parameter(name=["--output", "-o"])], model: str | None = None
) -> int:  # fmt: skip
    """Make a trace (t, input, reasoning, answer, cls) from the ingress' access log, for the simulator or `load`.

    Parameters
    ----------
    log
        The access log: one JSON object a line.
    output_
        The trace to write; `.gz` compresses it.
    model
        Only requests to this model; required where the log has several.
    """
    from reasonscale.load.rows import BadRow, BadTrace, number, read, tokens

    output("--output", output_, log)
    out = Console(highlight=False, soft_wrap=True, markup=False)
    err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    rows, bad, left = [], 0, 0
    models: Counter[str] = Counter()
    try:
        for line, row in read(log):
            try:
                if isinstance(row, BadRow):
                    raise row
                if number(row, "status", "an HTTP status, such as 200") != 200:
                    left += 1
                    continue
                found = (
                    number(row, "time", "seconds since 1970"), tokens(row, "prompt_tokens"),
                    tokens(row, "reasoning_tokens"), tokens(row, "answer_tokens"), str(row.get("cls") or ""),
                )  # fmt: skip
            except BadRow as error:
                bad += 1
                err.print(f"record: {log}: line {line}: {error}; left out")
                continue
            name = str(row.get("model") or "")
            models[name] += 1
            if model in (None, name):
                rows.append(found)
    except BadTrace as error:
        err.print(f"record: {error}")
        return 2
    if not models:
        err.print(f"record: {log}: holds no answered request")
        return 1
    if model is not None:
        one_of("--model", model, models)
    elif len(models) > 1:
        there = ", ".join(f"{name or '(none)'} ({count})" for name, count in models.most_common())
        raise BadOption(f"--model is missing; the log has requests to {there}: one trace is of one model")
    rows.sort()
    start = rows[0][0]
    opener: Any = gzip.open if output_.suffix == ".gz" else open
    try:
        with opener(output_, "wt", encoding="utf-8") as file:
            for t, inp, reasoning, answer, cls in rows:
                made = {"t": round(t - start, 3), "input": inp, "reasoning": reasoning, "answer": answer, "cls": cls}
                file.write(json.dumps(made) + "\n")
    except OSError as error:
        err.print(f"record: {output_}: can't be written: {error.strerror}")
        return 1
    others = f", {models.total() - len(rows)} of other models" if model is not None else ""
    out.print(
        f"{len(rows)} requests over {rows[-1][0] - start:.0f} s written to {output_}; left out: {left} not answered,"
        f" {bad} unreadable{others}"
    )
    return 1 if bad else 0
