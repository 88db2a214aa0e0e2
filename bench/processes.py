"""The processes on a token's way, and their CPU time."""

from __future__ import annotations

import psutil  # type: ignore[import-untyped]

# By what a process calls itself; the first that fits.
ROLES = {
    "engine": ("VLLM::EngineCore",),
    "ingress": ("ServeReplica", "Ingress"),
    "replica": ("ServeReplica",),
    "proxy": ("ProxyActor",),
    "server": ("vllm.entrypoints",),
}


def role(process: psutil.Process) -> str | None:
    """Return what a process is for, or None where it is not on a token's way."""
    words = " ".join(process.cmdline()) or process.name()
    return next((name for name, marks in ROLES.items() if all(mark in words for mark in marks)), None)


def cpu() -> dict[int, tuple[str, float]]:
    """Return the CPU seconds of every process on the way, by its id."""
    found = {}
    for process in psutil.process_iter():
        try:
            if (name := role(process)) is not None:
                times = process.cpu_times()
                found[process.pid] = (name, times.user + times.system)
        except psutil.Error:
            continue
    return found
