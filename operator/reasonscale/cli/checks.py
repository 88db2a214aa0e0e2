"""Checks that several commands make of their options before any work: numbers, addresses, files to write."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from pathlib import Path


class BadOption(ValueError):
    """An option that can't be; the message names it, what it was and what would be right. `run` makes it exit code 2."""


def number(flag: str, value: float, least: float, most: float = math.inf, *, above: bool = False) -> None:
    """Refuse what is not a finite number from `least` (`above`: beyond it) to `most`."""
    if math.isfinite(value) and least <= value <= most and not (above and value == least):
        return
    low = f"greater than {least:g}" if above else f"{least:g} or more"
    right = low if most == math.inf else f"{low} and at most {most:g}" if above else f"from {least:g} to {most:g}"
    raise BadOption(f"{flag} was {value:g}; it must be {right}")


def one_of(flag: str, value: str, names: Iterable[str]) -> None:
    """Refuse a name that is not among `names`."""
    known = list(names)
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BadOption(f"{flag} was {value!r}; {hint}there are {', '.join(known)}")


def endpoint(flag: str, url: str) -> str:
    """Return the address without a slash at its end; refuse what is no http://host[:port] or https://."""
    import httpx

    try:
        found = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        found = httpx.URL()
    if found.scheme not in ("http", "https") or not found.host:
        raise BadOption(f"{flag} was {url!r}; it must be http://host:port or https://host:port")
    return url.rstrip("/")


def label(flag: str, name: str) -> None:
    """Refuse what no namespace can be called."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise BadOption(f"{flag} was {name!r}; it must be at most 63 of a-z, 0-9 and -, such as default")


def output(flag: str, path: Path | None, *inputs: Path, ends: tuple[str, ...] = ()) -> None:
    """Refuse a file that can't be written, that is one of the inputs, or that ends otherwise than it may."""
    if path is None:
        return
    if ends and path.suffix.lower() not in ends:
        raise BadOption(f"{flag} was {path}; it must end with {' or '.join(ends)}")
    if path.is_dir():
        raise BadOption(f"{flag} was {path}; it is a folder and must be a file")
    if not path.absolute().parent.is_dir():
        raise BadOption(f"{flag} was {path}; there is no folder {path.parent}")
    for given in inputs:
        if path.exists() and given.exists() and path.samefile(given):
            raise BadOption(f"{flag} was {path}; it is what is read, {given}: name another file")
    new = not path.exists()
    if not (new or path.is_file()):
        return  # a pipe or a device: opening it may wait for a reader
    try:
        path.open("ab").close()  # asks the system itself: permissions, read-only mounts, and the folders of /proc
        if new:
            path.unlink()
    except OSError as error:
        raise BadOption(f"{flag} was {path}; it can't be written: {error.strerror}") from None
