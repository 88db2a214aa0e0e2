"""Runs the demo: the whole loop on the bundled model, under load whose rate is constant and whose chains are not."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reasonscale.api.load import load_models
from reasonscale.api.resolve import Resolved, resolve
from reasonscale.autoscaler import Record
from reasonscale.demo.report import Run, build, page
from reasonscale.load.client import Outcome, send
from reasonscale.load.trace import SHIFT_BACK, SHIFT_FROM, warm_up, workload
from reasonscale.local.app import LocalApp
from reasonscale.local.status import model_status, plain

RATE, LOAD_S, SEED, PACE_MS = 0.7, 440.0, 2, 40.0
CALM_S = 240.0  # at most, until the replicas are back at the minimum


def example() -> Path:
    """Return the bundled model's resource: beside the sources, or where the environment says."""
    named = os.environ.get("REASONSCALE_EXAMPLES")
    root = Path(named) if named else Path(__file__).parents[3] / "examples"
    return root / "micro-reasoner.yaml"


def _cpu() -> tuple[float, float]:
    """Return (busy, all) jiffies of this machine since it started."""
    values = [float(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(values) - values[3] - values[4], sum(values)


class Watch:
    """Collects what the report needs while the load runs, and says what happens."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.records: list[Record] = []
        self.cpu: list[tuple[float, float]] = []
        self.done: list[Outcome] = []
        self.started = 0.0
        self.planned = 0

    def record(self, record: Record) -> None:
        """Take one turn of the loop."""
        self.records.append(record)
        d = record.decision
        passed = d.time - self.started if self.started else 0.0
        if d.act and d.target != d.current:
            self.say(f"{passed:5.0f} s  {d.reason}: {d.message}")
        elif len(self.records) % 3 == 0:
            failed = sum(o.failed for o in self.done)
            self.say(
                f"{passed:5.0f} s  {plain(model_status(record))}; {len(self.done)} of {self.planned} answered, {failed} failed"
            )

    async def watch_cpu(self) -> None:
        """Sample the processor every 5 s."""
        before = _cpu()
        while True:
            await asyncio.sleep(5)
            now = _cpu()
            self.cpu.append((time.time() - self.started, 100 * (now[0] - before[0]) / max(1.0, now[1] - before[1])))
            before = now


async def run_demo(
    port: int, out: Path, say: Callable[[str], None], *, rate: float = RATE, load_s: float = LOAD_S, seed: int = SEED
) -> dict[str, Any]:
    """Run the demo and return its report; StartFailed or ServeError where it could not even start."""
    resource = example()
    model: Resolved = resolve(load_models(resource)[0], resource.parent)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("access.jsonl", "decisions.jsonl", "decisions.jsonl.1", "report.json", "report.html"):
        (out / name).unlink(missing_ok=True)
    app = LocalApp([model], "127.0.0.1", port, out, say=say, env={"REASONSCALE_PACE_MS": f"{PACE_MS:g}"})
    watch = Watch(say)
    try:
        began = time.monotonic()
        await app.start()
        say(
            f"ready after {time.monotonic() - began:.0f} s: OpenAI API at {app.url}/v1, engines held to {PACE_MS:g} ms a step (only in this demo)"
        )
        await send(app.url, model.served_name, warm_up(seed))
        say("warmed up by 12 short sums, which are not counted; the loop starts")
        scaler = app.autoscalers[model.name]
        scaler.listen(watch.record)
        plans = workload("cot-shift", rate, load_s, seed)
        watch.planned, watch.started = len(plans), time.time()
        app.run_loops()
        cpu = asyncio.create_task(watch.watch_cpu())
        say(
            f"load: {len(plans)} requests in {load_s:.0f} s, {rate:g} a second throughout; chains get longer after {load_s * SHIFT_FROM:.0f} s and shorter after {load_s * SHIFT_BACK:.0f} s"
        )
        outcomes = await send(app.url, model.served_name, plans, on_done=watch.done.append)
        say("load: all answered; waiting for the replicas to go back")
        final = await _calm(watch, model.min_replicas)
        cpu.cancel()
    finally:
        await app.stop()
    run = Run(watch.started, load_s, watch.records, outcomes, watch.cpu, PACE_MS, final, model.min_replicas)
    report = build(run)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "report.html").write_text(page(run, report))
    return report


async def _calm(watch: Watch, least: int) -> int:
    """Wait until the replicas are back at the minimum, at most CALM_S; return their number."""
    deadline = time.monotonic() + CALM_S
    ready = watch.records[-1].observation.fleet.ready if watch.records else 0
    while time.monotonic() < deadline:
        await asyncio.sleep(2)
        if not watch.records:
            continue
        fleet = watch.records[-1].observation.fleet
        ready = fleet.ready
        if ready == least and fleet.target == least and not fleet.draining and not fleet.starting_s:
            break
    return ready
