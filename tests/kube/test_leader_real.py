"""Two operators before a real API server and one Lease: one acts, and the other takes over in time."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.cluster.control_plane import free_ports
from tests.kube.running import MERGE, MODELS, Operator, numbers, resource, until

from reasonscale.controller.kube import Kube
from reasonscale.controller.leader import Leader

pytestmark = [pytest.mark.kube, pytest.mark.kuberay, pytest.mark.timeout(240)]
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
FLAGS = ("--leader-election", "--operator-namespace", "default", "--lease-name")


@pytest.fixture
def two(kuberay: Any, tmp_path: Path) -> Iterator[list[Operator]]:
    """Start two operators with the Lease's own times."""
    found = [Operator(kuberay, tmp_path, *FLAGS, "two", ports=free_ports(2)) for _ in range(2)]
    try:
        yield found
    finally:
        for operator in found:
            operator.stop()
        kuberay.http.delete(f"{MODELS}/led")


def leading(operators: list[Operator]) -> Operator | None:
    found = [o for o in operators if o.process.poll() is None and '"event": "leading"' in o.output.read_text()]
    return found[-1] if found else None


def test_one_of_two_acts_and_the_other_takes_over_within_20_s_of_kill_9(kuberay: Any, two: list[Operator]) -> None:
    first = until(lambda: leading(two))
    made = kuberay.http.post(MODELS, json=resource("led", scaling={"mode": "Manual", "maxReplicas": 4}, replicas=1))
    assert made.status_code == 201, made.text
    until(lambda: numbers(kuberay, "led") == 1)
    time.sleep(3)
    (other,) = [o for o in two if o is not first]
    assert "decision" in first.output.read_text()
    assert '"leading"' not in other.output.read_text()
    assert "decision" not in other.output.read_text()
    first.process.kill()
    first.process.wait(10)
    killed = time.monotonic()
    kuberay.http.patch(f"{MODELS}/led", json={"spec": {"replicas": 3}}, headers=MERGE)
    until(lambda: numbers(kuberay, "led") == 3, 30)
    took = time.monotonic() - killed
    print(f"the other acted {took:.1f} s after kill -9")
    assert took <= 20
    # One that stops in order gives the Lease back at once.
    other.stop()
    assert kuberay.http.get(f"{LEASES}/two").json()["spec"].get("holderIdentity", "") == ""


def test_an_operator_that_stood_still_beyond_its_lease_writes_nothing_more(kuberay: Any, tmp_path: Path) -> None:
    flags = (*FLAGS, "still", "--lease-seconds", "6")
    first = Operator(kuberay, tmp_path, *flags, ports=free_ports(2))
    second: Operator | None = None
    try:
        until(lambda: leading([first]))
        second = Operator(kuberay, tmp_path, *flags, ports=free_ports(2))
        time.sleep(3)
        os.kill(first.process.pid, signal.SIGSTOP)
        until(lambda: leading([second]), 20)
        os.kill(first.process.pid, signal.SIGCONT)
        until(lambda: "not leading" in first.output.read_text(), 20)
        holder = kuberay.http.get(f"{LEASES}/still").json()["spec"]["holderIdentity"]
        time.sleep(2)
        assert kuberay.http.get(f"{LEASES}/still").json()["spec"]["holderIdentity"] == holder
        assert '"event": "not leading"' not in second.output.read_text()
    finally:
        first.stop()
        if second is not None:
            second.stop()


async def test_a_lost_lease_stops_the_work_at_once_and_writes_are_refused(cluster: Any) -> None:
    kube = await Kube.connect(cluster.plane.kubeconfig)
    leader = Leader(kube.api, "lost", "default", "a", 5)
    kube.may_act = leader.may_act
    events: list[str] = []

    async def work() -> None:
        events.append("began")
        try:
            await asyncio.sleep(600)
        finally:
            events.append("ended")

    task = asyncio.create_task(leader.run(work))
    try:
        for _ in range(400):
            if leader.may_act() and events:
                break
            await asyncio.sleep(0.05)
        assert leader.may_act()
        # Somebody else has it: by hand here.
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
        taken = {"spec": {"holderIdentity": "b", "renewTime": now, "leaseDurationSeconds": 60}}
        assert cluster.http.patch(f"{LEASES}/lost", json=taken, headers=MERGE).status_code == 200
        began = time.monotonic()
        while "ended" not in events:
            await asyncio.sleep(0.05)
            assert time.monotonic() - began < 5
        assert not leader.may_act()
        with pytest.raises(RuntimeError, match="the lease is not ours"):
            await kube.patch_status("default", "none", {})
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await kube.close()
