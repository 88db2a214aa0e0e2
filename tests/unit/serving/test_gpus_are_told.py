"""GPUs: who holds them is said in numbers, and a place is free when its memory is."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench.gpu.loop import used

from reasonscale.serving import gpus as g
from reasonscale.serving import place

ROW = "0, GPU-1, NVIDIA H100 80GB HBM3, 81559, {free}, 580.159.04, Disabled\n"


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
    with pytest.raises(g.NoGpuError, match="lists none"):
        g.gpus(lambda args: "")


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(g.NoGpuError, match="no NVIDIA driver is installed"):
        g.gpus()


def test_a_driver_that_does_not_fit_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(g.NoGpuError, match="Driver/library version mismatch"):
        g.gpus()


TWO = (
    "0, GPU-8f2a1c, NVIDIA H100 80GB HBM3, 81559, 81000, 580.1, Disabled\n"
    "1, GPU-97b3d0, NVIDIA H100 80GB HBM3, 81559, 500, 580.1, Disabled\n"
)
LISTS = g.gpus
PARTS = "0, GPU-8f2a1c, NVIDIA H100 80GB HBM3, [Insufficient Permissions], [Insufficient Permissions], 580.1, Enabled\n"


@pytest.mark.parametrize("name", ["1", "GPU-97b3d0", "GPU-97"])
def test_a_gpu_is_known_by_its_index_by_its_uuid_and_by_the_beginning_of_that(name: str) -> None:
    found = g.gpus(lambda args: TWO)
    gpu = g.named(name, found)
    assert gpu is not None
    assert gpu.index == 1
    assert [x.index for x in g.visible(lambda args: TWO, f"{name}, 0")] == [1, 0]


def test_all_are_visible_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [x.index for x in g.visible(lambda args: TWO)] == [0, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-97b3d0")
    assert [x.index for x in g.visible(lambda args: TWO)] == [1]


@pytest.mark.parametrize("empty", ["", " "])
def test_none_is_visible_where_the_variable_is_empty_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, empty: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", empty)
    with pytest.raises(g.NoGpuError, match="CUDA_VISIBLE_DEVICES is empty, which hides all 2; unset it"):
        g.visible(lambda args: TWO)


def test_the_bench_reads_the_memory_of_gpus_that_are_named_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-97b3d0")
    monkeypatch.setattr(g, "gpus", lambda run: LISTS(lambda args: TWO))
    assert used() == [pytest.approx((81559 - 500) / 1024, abs=1e-3)]


@pytest.mark.parametrize(("name", "which"), [("7", "none"), ("GPU-x", "none"), ("GPU-", "several")])
def test_a_name_that_is_no_gpu_s_is_said_with_those_that_there_are(name: str, which: str) -> None:
    with pytest.raises(g.NoGpuError, match=rf"names '{name}', which is {which} of the GPUs here: 0 \(GPU-8f2a1c\), 1"):
        g.visible(lambda args: TWO, name)


@pytest.mark.parametrize("name", ["0", "GPU-8f2a1c", "MIG-3eb8", "MIG-GPU-8f2a1c/1/0"])
def test_of_a_part_that_the_driver_made_no_memory_is_told_and_that_is_said(name: str) -> None:
    assert g.named(name, g.gpus(lambda args: PARTS)) is None
    with pytest.raises(g.NoGpuError, match=r"divided by the driver \(MIG\).*spec\.accelerator\.fraction"):
        g.visible(lambda args: PARTS, name)


def _replica(monkeypatch: pytest.MonkeyPatch, wanted: float, given: list[str], smi: str) -> Any:
    """Return a replica's configuration, whose bundle wants so many GPUs and was given these."""

    async def told() -> list[str]:
        return given

    task = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=told))
    monkeypatch.setattr("ray.remote", lambda _: task)
    groups, strategies = (import_module(f"ray.util.{name}") for name in ("placement_group", "scheduling_strategies"))
    monkeypatch.setattr(groups, "get_current_placement_group", lambda: object())
    monkeypatch.setattr(strategies, "PlacementGroupSchedulingStrategy", lambda **_: None)
    listed = LISTS(lambda args: smi)
    monkeypatch.setattr(g, "gpus", lambda: listed)
    config = SimpleNamespace(placement_bundles=[{"GPU": wanted}], num_devices=1)
    return SimpleNamespace(get_engine_config=lambda: config)


async def test_a_replica_that_is_given_a_gpu_by_its_uuid_finds_it_and_keeps_that_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    replica = _replica(monkeypatch, 0.45, ["GPU-97b3d0"], TWO)
    assert await place.gpu_of(replica) == 1
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-97b3d0"


async def test_a_replica_that_is_given_a_part_that_the_driver_made_shares_it_with_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert await place.gpu_of(_replica(monkeypatch, 1, ["MIG-3eb8"], PARTS)) is None
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "Ray's own worker shows it"
    with pytest.raises(g.NoGpuError, match="divided by the driver"):
        await place.gpu_of(_replica(monkeypatch, 0.45, ["MIG-3eb8"], PARTS))


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
    with pytest.raises(
        g.NoGpuError, match=r"not free after 120 s: end what holds it, or lower spec\.accelerator\.fraction"
    ):
        g.wait_for_room(0, 0.9, run=Smi(1000), sleep=lambda s: None, clock=lambda: next(now))


def test_the_lock_is_one_for_all_users_of_a_machine(tmp_path: Path) -> None:
    with g.starting(0, tmp_path):
        pass
    (path,) = tmp_path.iterdir()
    for part in (tmp_path, *tmp_path.parents):
        if part.stat().st_uid == os.geteuid() and part != Path("/"):
            part.chmod(part.stat().st_mode | 0o055)
    path.chmod(0o444)
    pid = os.fork()
    if not pid:  # another user, where we may become one
        code = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            with g.starting(0, tmp_path):
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


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
