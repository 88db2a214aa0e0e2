"""Rows of a trace or an access log: JSON lines or CSV, `.gz` or not, and what a field of one may be."""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as said
from typing import Any, Final

MOST_TOKENS: Final = 10_000_000
MOST_NAMED: Final = 12  # columns that a message lists

Row = dict[str, Any]


class BadTrace(ValueError):
    """A file that can't be read, or a row of it; the message names the file and the line."""


class BadRow(ValueError):
    """A row that can't be; the message names the field, what it was and what would be right."""


def read(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    """Yield each row with its line number; BadTrace where the file itself can't be read."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            if plain.suffix == ".csv":
                table = csv.DictReader(file)
                for row in table:
                    yield table.line_num, _fits(row)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _parsed(line)
    except FileNotFoundError:
        raise BadTrace(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise BadTrace(f"{path}: can't be read: it is not UTF-8: {error.reason}") from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise BadTrace(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from None


def _fits(row: Row) -> Row | BadRow:
    more = row.get(None)  # type: ignore[call-overload]
    return row if more is None else BadRow(f"has {len(row) - 1 + len(more)} columns; the header has {len(row) - 1}")


def _parsed(line: str) -> Row | BadRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    return row if isinstance(row, dict) else BadRow("is no JSON object")


def number(row: Row, field: str, right: str) -> float:
    """Return a finite number; `right` says what it has to be."""
    value = row.get(field)
    if value is None or value == "":
        near = difflib.get_close_matches(field, [k for k in row if isinstance(k, str)], n=1)
        hint = f"; did you mean {field} by {near[0]}?" if near and field not in row else ""
        raise BadRow(f"{field} is missing; there are {', '.join(list(row)[:MOST_NAMED]) or 'no fields'}{hint}")
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise BadRow(f"{field} was {said(value)}; must be {right}")
    return found


def tokens(row: Row, field: str) -> int:
    """Return a number of tokens."""
    right = f"a whole number from 0 to {MOST_TOKENS:,}"
    found = number(row, field, right)
    if not (0 <= found <= MOST_TOKENS and found.is_integer()):
        raise BadRow(f"{field} was {said(row[field])}; must be {right}")
    return int(found)


def lengths(row: Row) -> tuple[float, int, int, int, str]:
    """Return t (s), input, reasoning, answer (tokens) and cls of a row of our own format."""
    t = number(row, "t", "a number of seconds")
    return t, tokens(row, "input"), tokens(row, "reasoning"), tokens(row, "answer"), str(row.get("cls") or "")


def later(t: float, last: float) -> None:
    """Refuse a time that goes back."""
    if t < last:
        raise BadRow(f"t goes back from {last:g} to {t:g}")
