"""GPUs: who holds them is said in numbers, and a place is free when its memory is."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from reasonscale.serving import gpus as g

ROW = "0, GPU-1, NVIDIA H100 80GB HBM3, 81559, {free}, 580.159.04\n"


class Smi:
    """Answers as nvidia-smi does; the free memory of each look comes from a list, the last one stays."""

    def __init__(self, *free_mib: int, apps: str = "") -> None:
        self.free, self.apps, self.looks = list(free_mib), apps, 0

    def __call__(self, args: Sequence[str]) -> str:
        if any("compute-apps" in a for a in args):
            return self.apps
        self.looks += 1
        return ROW.format(free=self.free.pop(0) if len(self.free) > 1 else self.free[0])


def test_a_gpu_is_read_from_what_the_driver_says() -> None:
    (gpu,) = g.gpus(Smi(81000))
    assert (gpu.index, gpu.name, gpu.driver) == (0, "NVIDIA H100 80GB HBM3", "580.159.04")
    assert gpu.total == 81559 * g.MIB
    assert gpu.free == 81000 * g.MIB


def test_a_driver_that_lists_no_gpu_is_no_gpu() -> None:
    with pytest.raises(g.NoGpu, match="lists none"):
        g.gpus(lambda args: "")


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(g.NoGpu, match="no NVIDIA driver is installed"):
        g.gpus()


def test_a_driver_that_does_not_fit_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(g.NoGpu, match="Driver/library version mismatch"):
        g.gpus()


def test_a_gpu_that_another_fills_is_said_with_its_holder() -> None:
    smi = Smi(10240, apps="4242, 70000\n")
    (gpu,) = g.gpus(smi)
    lack = g.shortage(gpu, 0.92, smi)
    assert lack is not None
    assert "wants 73.9 of 79.6 GiB, 10.0 are free" in lack
    assert "process 4242 holds 68.4" in lack


def test_room_is_waited_for_until_it_is_really_free() -> None:
    smi, slept = Smi(1000, 1000, 80000), list[float]()
    gpu = g.wait_for_room(0, 0.3, run=smi, sleep=slept.append, clock=lambda: 0.0)
    assert gpu.free == 80000 * g.MIB
    assert len(slept) == 2


def test_room_that_does_not_come_is_an_error_in_numbers() -> None:
    now = iter([0.0, 60.0, 121.0])
    with pytest.raises(g.NoGpu, match=r"not free after 120 s: end what holds it, or lower spec\.accelerator\.fraction"):
        g.wait_for_room(0, 0.9, run=Smi(1000), sleep=lambda s: None, clock=lambda: next(now))


def test_engines_on_one_gpu_start_one_after_another(tmp_path: Path) -> None:
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait(5)
        with g.starting(0, tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with g.starting(0, tmp_path):
        inside.set()
        thread.join(0.2)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]
