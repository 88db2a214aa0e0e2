"""What GPUs this machine has, who holds their memory, and whether an engine would find room. Standard library alone."""

from __future__ import annotations

import fcntl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MIB: Final = 2**20
GIB: Final = 2**30
CONTEXT_BYTES: Final = 640 * MIB  # what CUDA takes of a GPU for each process, beside what the engine asks for
WORKING_BYTES: Final = 2 * GIB  # activations and graphs, beside weights and KV cache
_FIELDS: Final = "index,uuid,name,memory.total,memory.free,driver_version"
Run = Callable[[Sequence[str]], str]


class NoGpu(RuntimeError):
    """No GPU can be used here; the message says why and what would be right."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as the driver sees it; sizes in bytes."""

    index: int
    uuid: str
    name: str
    total: int
    free: int
    driver: str

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name})"


def _smi(args: Sequence[str]) -> str:
    try:
        done = subprocess.run(["nvidia-smi", *args], capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        raise NoGpu("no GPU here: there is no nvidia-smi, so no NVIDIA driver is installed") from None
    except subprocess.TimeoutExpired:
        raise NoGpu("the NVIDIA driver did not answer for 30 s: nvidia-smi hangs") from None
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise NoGpu(
            f"the NVIDIA driver can't be used: {said[0] if said else f'nvidia-smi ended with {done.returncode}'}"
        )
    return done.stdout


def gpus(run: Run = _smi) -> list[Gpu]:
    """Return this machine's GPUs; NoGpu where there is none or the driver does not answer."""
    found = []
    for line in run([f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]).splitlines():
        parts = [p.strip() for p in line.split(",")]
        if len(parts) == 6 and parts[3].isdigit() and parts[4].isdigit():
            found.append(Gpu(int(parts[0]), parts[1], parts[2], int(parts[3]) * MIB, int(parts[4]) * MIB, parts[5]))
    if not found:
        raise NoGpu("no GPU here: nvidia-smi lists none")
    return found


def holders(gpu: Gpu, run: Run = _smi) -> list[tuple[int, int]]:
    """Return (process id, bytes) of what holds a GPU's memory, the largest first; empty where the driver does not say."""
    out = []
    try:
        text = run(["-i", str(gpu.index), "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"])
    except NoGpu:
        return []
    for line in text.splitlines():
        pid, _, used = line.partition(",")
        if pid.strip().isdigit() and used.strip().isdigit():
            out.append((int(pid), int(used) * MIB))
    return sorted(out, key=lambda row: -row[1])


def shortage(gpu: Gpu, share: float, run: Run = _smi) -> str | None:
    """Return in words what an engine that takes `share` of the GPU's memory lacks; None where it finds room."""
    wanted = share * gpu.total + CONTEXT_BYTES
    if gpu.free >= wanted:
        return None
    told = ", ".join(f"process {pid} holds {used / GIB:.1f}" for pid, used in holders(gpu, run)[:3])
    return f"{gpu}: an engine wants {wanted / GIB:.1f} of {gpu.total / GIB:.1f} GiB, {gpu.free / GIB:.1f} are free" + (
        f" ({told})" if told else ""
    )


def _at(index: int, run: Run) -> Gpu | None:
    return next((g for g in gpus(run) if g.index == index), None)


def has_room(index: int, share: float, run: Run = _smi) -> bool:
    """Tell whether an engine that takes `share` of a GPU's memory finds it free now."""
    gpu = _at(index, run)
    return gpu is not None and shortage(gpu, share, run) is None


def wait_for_room(
    index: int, share: float, *, timeout_s: float = 120.0, run: Run = _smi, sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Gpu:  # fmt: skip
    """Wait until `share` of a GPU is really free, and return the GPU; NoGpu in words where it does not become so.

    An engine that was stopped a moment ago may still hold its memory: its place is free when its memory is.
    """
    deadline = clock() + timeout_s
    while True:
        gpu = _at(index, run)
        if gpu is None:
            raise NoGpu(f"no GPU {index} here any more")
        lack = shortage(gpu, share, run)
        if lack is None:
            return gpu
        if clock() >= deadline:
            raise NoGpu(
                f"{lack}; not free after {timeout_s:.0f} s: end what holds it, or lower spec.accelerator.fraction"
            )
        sleep(0.5)


@contextmanager
def _locked(gpu_index: int, folder: Path | None, how: int) -> Iterator[None]:
    # The kernel lets go of it when its process ends, however that ends.
    path = (folder or Path(tempfile.gettempdir())) / f"reasonscale-gpu-{gpu_index}.lock"
    with path.open("w") as file:
        fcntl.flock(file, how)
        yield


def starting(gpu_index: int, folder: Path | None = None) -> AbstractContextManager[None]:
    """Hold a GPU's start lock: an engine measures its free memory while it starts, and takes all that goes for its own."""
    return _locked(gpu_index, folder, fcntl.LOCK_EX)


def none_starts(gpu_index: int, folder: Path | None = None) -> AbstractContextManager[None]:
    """Hold the start lock with others that fall asleep or wake, who measure nothing; BlockingIOError where an engine starts."""
    return _locked(gpu_index, folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
