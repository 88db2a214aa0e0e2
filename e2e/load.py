"""Open-loop load beside a test: a constant rate of requests whose chains get longer."""

from __future__ import annotations

import asyncio
import random
import threading

from reasonscale.demo import tasks
from reasonscale.load.client import Outcome, send
from reasonscale.load.trace import Planned

MOST_S = 900.0


def growing(rate: float, short_s: float, seed: int = 2) -> list[Planned]:
    """Return requests at a constant rate: sums of about 60 tokens, then Collatz counts of about 450 and up to 1,500."""
    rng = random.Random(seed)
    out = []
    for n in range(round(rate * MOST_S)):
        t = (n + rng.random()) / rate
        task = (
            tasks.random_sum(rng, 4, held_out=False) if t < short_s else tasks.collatz_task(rng.randint(2, tasks.MAX_N))
        )
        out.append(Planned(t, task.question, task.answer, task.skill))
    return out


def long_chains(every_s: float, seed: int = 3) -> list[Planned]:
    """Return long chains, one after another at even times: some always run."""
    rng = random.Random(seed)
    long = [n for n in range(2, tasks.MAX_N) if len(tasks.collatz_task(n).chain) > 700]
    picked = [tasks.collatz_task(rng.choice(long)) for _ in range(round(MOST_S / every_s))]
    return [Planned(n * every_s, task.question, task.answer, task.skill) for n, task in enumerate(picked)]


class Load:
    """Sends plans from a thread until it is told to end."""

    def __init__(self, url: str, model: str, plans: list[Planned]) -> None:
        self._url, self._model, self._plans = url, model, plans
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self.done: list[Outcome] = []
        self.sent: list[Outcome] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        work = send(self._url, self._model, self._plans, on_done=self.done.append, timeout_s=600, stop=self._stop)
        self.sent = self._loop.run_until_complete(work)

    def end(self) -> list[Outcome]:
        """Send no more, wait for what is under way, and return everything that came of it."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(600)
        assert not self._thread.is_alive(), "requests without an answer after 600 s"
        return self.sent


def flaws(outcomes: list[Outcome]) -> list[str]:
    """Return what went wrong with requests, in words; none where each was answered, and rightly."""
    return [f"{o.cls} at {o.t:.0f} s: {o.status} {o.error}" for o in outcomes if o.failed][:10]
