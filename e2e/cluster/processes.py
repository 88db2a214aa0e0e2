"""Plain processes of a test cluster: each has a log and a note of its pid, so that a later command can end it too."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

STOP_WITHIN_S = 20.0


def stat(pid: int) -> tuple[str, str] | None:
    """Return a process's state and start time; None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19]


def wait_until(holds: Callable[[], object], within_s: float, what: str, every_s: float = 0.2) -> None:
    """Wait until something holds; RuntimeError that says what did not."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {within_s:.0f} s")
        time.sleep(every_s)


class Processes:
    """The processes of one folder: logs in `log/`, a note of pid and start time of each in `pids/`."""

    def __init__(self, folder: Path) -> None:
        self.logs, self._notes = folder / "log", folder / "pids"
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> int:
        """Start a process in a session of its own and return its pid; its log goes on where it was."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self._notes.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [str(x) for x in command], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, env={**os.environ, **(env or {})},
            )  # fmt: skip
        self._children[name] = child
        found = stat(child.pid)
        (self._notes / name).write_text(f"{child.pid} {found[1] if found else ''}")
        return child.pid

    def pid(self, name: str) -> int | None:
        """Return the pid of a process that runs and is ours; None where it has ended."""
        try:
            noted, began = (self._notes / name).read_text().split()
        except (OSError, ValueError):
            return None
        if (child := self._children.get(name)) is not None:
            child.poll()  # one that has ended is no zombie then
        found = stat(int(noted))
        return int(noted) if found is not None and found[1] == began and found[0] != "Z" else None

    def names(self) -> list[str]:
        """Return the processes that were started and not stopped."""
        return sorted(p.name for p in self._notes.iterdir()) if self._notes.is_dir() else []

    def kill(self, name: str) -> None:
        """Kill a process at once."""
        pid = self.pid(name)
        assert pid is not None, f"{name} does not run"
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.pid(name) is None, 10, f"{name} to end")

    def stop(self, name: str) -> None:
        """End a process, by force where it does not end by itself."""
        for sign, within_s in ((signal.SIGTERM, STOP_WITHIN_S), (signal.SIGKILL, 10.0)):
            pid = self.pid(name)
            if pid is None:
                break
            os.kill(pid, sign)
            deadline = time.monotonic() + within_s
            while self.pid(name) is not None and time.monotonic() < deadline:
                time.sleep(0.05)
        self._children.pop(name, None)
        (self._notes / name).unlink(missing_ok=True)

    def ends(self, lines: int = 5) -> str:
        """Return the last lines of every log."""
        return "; ".join(
            f"{f.name}: " + " | ".join(f.read_text(errors="replace").splitlines()[-lines:])
            for f in sorted(self.logs.glob("*.log"))
        )
