"""Replicas that sleep instead of being stopped, through the loop: `python -m bench.gpu asleep`.

Two engines of the 7B share the GPU. A load brings the second one up; when it ends, that one falls asleep; the next load
wakes it. Each load fills the seats of one replica, and then as many come again: they wait at the gates, so that the first
token after the decision is the second replica's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml
from bench.gpu import shapes
from bench.gpu.client import Seen, body, play
from bench.gpu.tax import metric, resolved_of, stack

from reasonscale.api import constants as c
from reasonscale.api.resolve import PINNED
from reasonscale.autoscaler import Record
from reasonscale.local.app import LocalApp, StartFailed
from reasonscale.serving.gpus import GIB, visible

FRACTION, SEATS = 45, 16
AGAIN_S = 2.5  # by then every ingress has heard that the seats are taken, and no load was seen twice by the decision
# Of about 7 ms: those that wait must see a decision and a wake before a seat of the first comes free.
FILL_TOKENS, WAKE_TOKENS, LATE_TOKENS = 1500, 3000, 300
SLEEP_LIMIT_S, START_LIMIT_S = 120.0, 300.0


def resource(shape: str, folder: Path, *, asleep: int, rehearse: bool) -> Path:
    """Write a resource of one to two replicas."""
    file = shapes.resource(
        shape, folder, fraction=FRACTION, seats=8 if rehearse else SEATS, tpot="80ms", cpu=rehearse, most=2
    )
    data = yaml.safe_load(file.read_text())
    scaling = data["spec"]["scaling"]
    scaling |= {"asleep": asleep, "rates": {"downStable": "6s", "downInterval": "5s"}}
    scaling["objectives"]["maxQueue"] = "10m"  # who waits for the second replica is not sent away
    file.write_text(yaml.safe_dump(data))
    return file


class Loop:
    """The running product, its records, and what the machine holds."""

    def __init__(self, app: LocalApp, name: str, rehearse: bool) -> None:
        self.app, self.name, self.rehearse = app, name, rehearse
        self.records: list[Record] = []
        for scaler in app.autoscalers.values():
            scaler.listen(self.records.append)

    async def until(self, what: Callable[[Record], bool], since: float, limit_s: float, said: str) -> Record:
        """Return the first record since then of which something holds."""
        deadline = time.time() + limit_s
        while time.time() < deadline:
            for record in self.records:
                if record.decision.time >= since and what(record):
                    return record
            await asyncio.sleep(0.2)
        last = self.records[-1].decision.message if self.records else "no decision"
        raise TimeoutError(f"{said}: not within {limit_s:.0f} s; the last decision: {last}")

    async def held(self) -> dict[str, float]:
        """Return what is free of the GPU and of the host's memory, in GiB."""
        found = {"host_free_gib": round(psutil.virtual_memory().available / GIB, 2)}
        if not self.rehearse:
            found["gpu_free_gib"] = round((await asyncio.to_thread(visible))[0].free / GIB, 2)
        return found

    async def burst(self, tokens: int, late_tokens: int) -> tuple[float, list[Seen]]:
        """Play a load that one replica does not seat; return when the second half of it came, and what was seen."""
        half, tokens, late_tokens = (8, 400, 100) if self.rehearse else (SEATS, tokens, late_tokens)
        start = time.time() + 1.0
        plan = [(start + i / half, body(self.name, tokens)) for i in range(half)]
        again = start + AGAIN_S
        plan += [(again + i / half, body(self.name, late_tokens)) for i in range(half)]
        return again, await play(self.app.url, plan, processes=3)

    async def filled(self) -> dict[str, Any]:
        """Bring up the second replica by load."""
        since = time.time()

        async def load() -> int:
            bursts = 0
            while not any(r.observation.fleet.ready > 1 and r.decision.time >= since for r in self.records):
                await self.burst(FILL_TOKENS, FILL_TOKENS)
                bursts += 1
            return bursts

        loading = asyncio.create_task(load())
        try:
            more = await self.until(lambda r: r.decision.target > 1, since, 60, "two replicas by load")
            ready = await self.until(
                lambda r: r.observation.fleet.ready > 1, more.decision.time, START_LIMIT_S, "the second replica"
            )
            await loading
        finally:
            loading.cancel()
        return {
            "reason": more.decision.reason, "message": more.decision.message,
            "decision_to_a_look_that_found_it_ready_s": round(ready.decision.time - more.decision.time, 2),
        }  # fmt: skip

    async def slept(self, before: dict[str, float], since: float) -> dict[str, Any]:
        """Let the load be over until one replica sleeps."""
        said = await self.until(lambda r: bool(r.decision.asleep), since, SLEEP_LIMIT_S, "one that may sleep")
        deadline = time.time() + SLEEP_LIMIT_S
        while await metric(self.app, c.M_ASLEEP) < 1.0:
            if time.time() > deadline:
                raise TimeoutError(f"nobody fell asleep within {SLEEP_LIMIT_S:.0f} s of {said.decision.message}")
            await asyncio.sleep(0.25)
        at, after = time.time(), await self.held()
        return {
            "replica": said.decision.asleep[0], "message": said.decision.message,
            "load_over_to_decision_s": round(said.decision.time - since, 2),
            "decision_to_asleep_s": round(at - said.decision.time, 2),
            "falling_took_s": round(await metric(self.app, c.M_FALL), 3),
            "before": before, "after": after,
            **{f"{k.replace('_free', '')}_freed": round(after[k] - before[k], 2) for k in after},
        }  # fmt: skip

    async def woken(self, replica: str | None) -> dict[str, Any]:
        """Play a load that needs the second replica, and return how long it took to its first token."""
        since = time.time()
        again, seen = await self.burst(WAKE_TOKENS, LATE_TOKENS)
        more = await self.until(lambda r: r.decision.target > 1, since, 10, "two replicas by load")
        late = [s.first for s in seen if s.first > more.decision.time]
        worked = any(
            r.replica == replica and r.running + r.waiting > 0 for x in self.records for r in x.observation.replicas
            if x.decision.time >= since
        )  # fmt: skip
        return {
            "requests": len(seen), "failed": sum(bool(s.error) for s in seen),
            "errors": sorted({s.error[:200] for s in seen if s.error})[:3],
            "first_that_waits_to_decision_s": round(more.decision.time - again, 2),
            "reason": more.decision.reason, "message": more.decision.message,
            "decision_to_first_token_s": round(min(late) - more.decision.time, 3) if late else None,
            "all_had_a_first_token_after_s": round(max(late) - more.decision.time, 3) if late else None,
            "served_by_it": worked, "waking_took_s": round(await metric(self.app, c.M_WOKE), 3),
            "before_the_decision": len(seen) - len(late),
        }  # fmt: skip


async def refused(folder: Path) -> str:
    """Return in which words `up` refuses replicas that sleep where there is no GPU."""
    app = LocalApp([resolved_of(resource("tiny", folder, asleep=1, rehearse=True))], "127.0.0.1", 0, folder / "logs")
    try:
        await app.start()
    except StartFailed as error:
        return str(error)
    finally:
        await app.stop()
    raise AssertionError("replicas that sleep were not refused on a CPU")


async def measure(folder: Path, keep: Callable[[Any], None], *, rehearse: bool) -> dict[str, Any]:
    """Run it and keep what was found so far after each step.

    On a CPU no engine sleeps: the rehearsal says how it is refused, and plays the same loads with replicas that are stopped.
    """
    shape = "tiny" if rehearse else "qwen2-7b"
    found: dict[str, Any] = {"shape": shape, "fraction": FRACTION, "streams": 2 * SEATS, "seats": SEATS}
    if rehearse:
        found["refused"] = await refused(folder)
        keep(found)
    resolved = resolved_of(resource(shape, folder, asleep=0 if rehearse else 1, rehearse=rehearse))
    found["weights_gib"] = round(resolved.asleep_bytes / PINNED / GIB, 2) if resolved.asleep_bytes else None
    began = time.monotonic()
    async with stack(resolved, folder / "logs") as app:
        found["ready_s"] = round(time.monotonic() - began, 1)
        loop = Loop(app, resolved.served_name, rehearse)
        found["started"] = await loop.filled()
        keep(found)
        rounds: list[dict[str, Any]] = []
        found["rounds"] = rounds
        for _ in range(1 if rehearse else 2):
            since, before, one = time.time(), await loop.held(), {}
            if rehearse:
                await loop.until(lambda r: r.observation.fleet.ready == 1, since, SLEEP_LIMIT_S, "one replica")
            else:
                one["sleep"] = await loop.slept(before, since)
            rounds.append(one)
            keep(found)
            if not rehearse:
                one["wake"] = await loop.woken(one["sleep"]["replica"])
            keep(found)
        found["decisions"] = [
            {"time": round(r.decision.time, 2), "message": r.decision.message, "reason": r.decision.reason}
            for r in loop.records
            if r.decision.act or r.decision.asleep != r.observation.fleet.asleep
        ]
    found["in_all_s"] = round(time.monotonic() - began, 1)
    keep(found)
    return found
