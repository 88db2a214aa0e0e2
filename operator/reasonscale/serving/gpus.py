"""What GPUs this machine has, who holds their memory, and whether an engine would find room. Standard library alone."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MIB: Final = 2**20
GIB: Final = 2**30
CONTEXT_BYTES: Final = 640 * MIB  # what CUDA takes of a GPU for each process, beside what the engine asks for
WORKING_BYTES: Final = 2 * GIB  # activations and graphs, beside weights and KV cache
_FIELDS: Final = "index,uuid,name,memory.total,memory.free,driver_version,mig.mode.current"
DIVIDED: Final = (
    "the GPU is divided by the driver (MIG), and nvidia-smi does not tell what memory a part has free: switch MIG off and share it by "
    "spec.accelerator.fraction, or give each replica a part of its own, in a cluster (spec.accelerator.resourceName)"
)
Run = Callable[[Sequence[str]], str]
VISIBLE_ENV: Final = "CUDA_VISIBLE_DEVICES"


class NoGpuError(RuntimeError):
    """No GPU can be used here; the message says why and what would be right. A name that Serve's status is searched for."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as the driver sees it; sizes in bytes."""

    index: int
    uuid: str
    name: str
    total: int
    free: int
    driver: str
    mig: bool = False  # divided by the driver, which then does not tell what memory its parts have free

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name})"


def _smi(args: Sequence[str]) -> str:
    try:
        done = subprocess.run(["nvidia-smi", *args], capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        raise NoGpuError("no GPU here: there is no nvidia-smi, so no NVIDIA driver is installed") from None
    except subprocess.TimeoutExpired:
        raise NoGpuError("the NVIDIA driver did not answer for 30 s: nvidia-smi hangs") from None
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise NoGpuError(
            f"the NVIDIA driver can't be used: {said[0] if said else f'nvidia-smi ended with {done.returncode}'}"
        )
    return done.stdout


def gpus(run: Run = _smi) -> list[Gpu]:
    """Return this machine's GPUs; NoGpuError where there is none or the driver does not answer."""
    found = []
    for line in run([f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]).splitlines():
        parts = [p.strip() for p in line.split(",")]
        # Of a GPU that is divided a container may not know the memory.
        total, free = (int(n) * MIB if n.isdigit() else 0 for n in parts[3:5]) if len(parts) == 7 else (0, 0)
        if len(parts) == 7 and (total or parts[6] == "Enabled"):
            found.append(Gpu(int(parts[0]), parts[1], parts[2], total, free, parts[5], parts[6] == "Enabled"))
    if not found:
        raise NoGpuError("no GPU here: nvidia-smi lists none")
    return found


def named(name: str, found: Sequence[Gpu]) -> Gpu | None:
    """Return the GPU that CUDA knows by a name: its index, or the beginning of its UUID; None for a part that the driver made (MIG)."""
    if name.startswith("MIG-"):
        return None
    matches = [g for g in found if (name == str(g.index) if name.isdigit() else g.uuid.startswith(name))]
    if len(matches) != 1:
        there = ", ".join(f"{g.index} ({g.uuid})" for g in found)
        raise NoGpuError(
            f"{VISIBLE_ENV} names {name!r}, which is {'several' if matches else 'none'} of the GPUs here: {there}"
        )
    return None if matches[0].mig else matches[0]


def visible(run: Run = _smi, names: str | None = None) -> list[Gpu]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves, all where it is not set; NoGpuError where it is empty or one is divided (MIG)."""
    found = gpus(run)
    names = os.environ.get(VISIBLE_ENV) if names is None else names
    if names is not None and not names.strip():
        raise NoGpuError(f"no GPU here: {VISIBLE_ENV} is empty, which hides all {len(found)}; unset it, or name some")
    chosen = found if names is None else [named(n.strip(), found) for n in names.split(",")]
    whole = [gpu for gpu in chosen if gpu is not None and not gpu.mig]
    if len(whole) < len(chosen):
        raise NoGpuError(DIVIDED)
    return whole


def holders(gpu: Gpu, run: Run = _smi) -> list[tuple[int, int]]:
    """Return (process id, bytes) of what holds a GPU's memory, the largest first; empty where the driver does not say."""
    out = []
    try:
        text = run(["-i", str(gpu.index), "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"])
    except NoGpuError:
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
    """Wait until `share` of a GPU is really free, and return the GPU; NoGpuError in words where it does not become so.

    An engine that was stopped a moment ago may still hold its memory: its place is free when its memory is.
    """
    deadline = clock() + timeout_s
    while True:
        gpu = _at(index, run)
        if gpu is None:
            raise NoGpuError(f"no GPU {index} here any more")
        lack = shortage(gpu, share, run)
        if lack is None:
            return gpu
        if clock() >= deadline:
            raise NoGpuError(
                f"{lack}; not free after {timeout_s:.0f} s: end what holds it, or lower spec.accelerator.fraction"
            )
        sleep(0.5)


@contextmanager
def _locked(gpu_index: int, folder: Path | None, how: int) -> Iterator[None]:
    # The kernel lets go of it when its process ends, however that ends.
    path = (folder or Path(tempfile.gettempdir())) / f"reasonscale-gpu-{gpu_index}.lock"
    with open(path, opener=_opened) as file:
        fcntl.flock(file, how)
        yield


def _opened(path: str, _: int) -> int:
    """Open a file to be locked, made where there is none: in /tmp nobody may write, or create anew, what is another user's."""
    while True:
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            with suppress(FileExistsError):
                return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644)


def starting(gpu_index: int, folder: Path | None = None) -> AbstractContextManager[None]:
    """Hold a GPU's start lock: an engine measures its free memory while it starts, and takes all that goes for its own."""
    return _locked(gpu_index, folder, fcntl.LOCK_EX)


def none_starts(gpu_index: int, folder: Path | None = None) -> AbstractContextManager[None]:
    """Hold the start lock with others that fall asleep or wake, who measure nothing; BlockingIOError where an engine starts."""
    return _locked(gpu_index, folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
