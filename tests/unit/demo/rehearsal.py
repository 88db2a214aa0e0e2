"""The demo in virtual time: its load, engines of batch steps with a KV cache, the real ledger, the real decisions."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reasonscale.api.load import load_models
from reasonscale.api.resolve import resolve
from reasonscale.autoscaler import Record
from reasonscale.demo import tasks
from reasonscale.demo.report import Run
from reasonscale.load.client import Outcome
from reasonscale.load.trace import Planned
from reasonscale.scaling.decide import decide
from reasonscale.scaling.policy import policy_of
from reasonscale.scaling.state import State
from reasonscale.scaling.types import ClassCounts, Fleet, Freshness, Observation, Policy, ReplicaCounts
from reasonscale.serving.ledger import ClassTotals, Ledger

EXAMPLE = Path(__file__).parents[3] / "examples" / "micro-reasoner.yaml"
STEP_S, TICK_S, BLOCK = 0.042, 5.0, 32
CLS = "medium"


@dataclass(slots=True)
class Chain:
    """One request on an engine."""

    outcome: Outcome
    prompt: int
    thought: int
    total: int
    made: int = 0

    def blocks(self) -> int:
        return -(-(self.prompt + self.made + 1) // BLOCK)


@dataclass(slots=True)
class Engine:
    """A replica: all that runs takes a step together; what finds no seat or no KV block waits, the newest gives way."""

    id: str
    seats: int
    room: int  # KV blocks
    ledger: Ledger = field(default_factory=Ledger)
    waiting: deque[Chain] = field(default_factory=deque)
    running: list[Chain] = field(default_factory=list)
    rids: dict[int, str] = field(default_factory=dict)
    steps: int = 0
    batch: int = 0
    kv: int = 0
    preemptions: int = 0

    def used(self) -> int:
        return sum(c.blocks() for c in self.running)

    def load(self) -> int:
        return len(self.waiting) + len(self.running)

    def take(self, chain: Chain, now: float) -> None:
        rid = str(id(chain))
        self.rids[id(chain)] = rid
        self.ledger.start(rid, CLS, now, thinks=True)
        self.ledger.prompt(rid, chain.prompt)
        self.waiting.append(chain)

    def step(self, now: float) -> None:
        while self.waiting and len(self.running) < self.seats and self.used() + self.waiting[0].blocks() <= self.room:
            self.running.append(self.waiting.popleft())
        if not self.running:
            return
        while self.used() > self.room:
            self.waiting.appendleft(self.running.pop())
            self.preemptions += 1
        self.steps, self.batch, self.kv = self.steps + 1, self.batch + len(self.running), self.kv + self.used() * BLOCK
        for chain in list(self.running):
            chain.made += 1
            out, rid = chain.outcome, self.rids[id(chain)]
            out.ttft_s = now - out.t if out.ttft_s is None else out.ttft_s
            answering = chain.made > chain.thought
            if answering and out.ttfat_s is None:
                out.ttfat_s = now - out.t
            self.ledger.progress(rid, chain.made, min(chain.made, chain.thought), answering)
            if chain.made >= chain.total:
                self.ledger.finish(rid, now, ended=True)
                self.running.remove(chain)
                out.e2e_s, out.correct, out.status = now - out.t, True, 200
                out.reasoning_tokens, out.answer_tokens = chain.thought, chain.total - chain.thought


def _length(question: str) -> tuple[int, int]:
    """Return (tokens of thought, tokens in all): one a character, and the markers."""
    if question.startswith("collatz "):
        task = tasks.collatz_task(int(question.removeprefix("collatz ")))
    else:
        left, _, right = question.partition("+")
        task = tasks.sum_task(int(left), int(right))
    thought = len(task.chain) + 1
    return thought, thought + len(task.answer) + 4


@dataclass(slots=True)
class Stage:
    """Everything between the load and the decision."""

    policy: Policy
    start_s: float
    room: int
    engines: list[Engine] = field(default_factory=list)
    gone: list[Engine] = field(default_factory=list)
    orders: list[float] = field(default_factory=list)
    target: int = 1
    count: int = 0
    records: list[Record] = field(default_factory=list)
    state: State = field(default_factory=State.new)
    before: dict[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)

    def add(self) -> None:
        self.count += 1
        self.engines.append(Engine(str(self.count), self.policy.max_num_seqs, self.room))

    def _gained(self, engine: Engine, cls: str, totals: ClassTotals) -> tuple[float, ...]:
        now = (
            *totals.reached,
            *totals.ended,
            totals.arrivals,
            totals.prompt_tokens,
            totals.reasoning_tokens,
            totals.answer_tokens,
        )
        last = self.before.get((engine.id, cls), (0,) * len(now))
        self.before[engine.id, cls] = now
        return tuple(float(a - b) for a, b in zip(now, last, strict=True))

    def observe(self, now: float) -> Observation:
        bins = len(ClassCounts().reached)
        sums = [0.0] * (2 * bins + 4)
        waiting = prompt = 0.0
        reasoning, answering, inflight = [0.0] * bins, [0.0] * bins, [0.0] * bins
        for engine in [*self.engines, *self.gone]:
            for cls, totals in engine.ledger.totals.items():
                sums = [a + b for a, b in zip(sums, self._gained(engine, cls, totals), strict=True)]
            for row in engine.ledger.now().values():
                waiting, prompt = waiting + row.waiting, prompt + row.waiting_prompt_tokens
                reasoning = [a + b for a, b in zip(reasoning, row.reasoning, strict=True)]
                answering = [a + b for a, b in zip(answering, row.answering, strict=True)]
                inflight = [a + b for a, b in zip(inflight, row.inflight_prompt_tokens, strict=True)]
        if not self.records:  # as `signals` does: of what was before the first look, only the lengths are known
            sums[2 * bins :] = [0.0] * 4
        counts = ClassCounts(
            waiting,
            prompt,
            tuple(reasoning),
            tuple(answering),
            tuple(inflight),
            tuple(sums[:bins]),
            tuple(sums[bins : 2 * bins]),
            *sums[2 * bins :],
        )
        replicas = []
        for e in [*self.engines, *self.gone]:
            total = (float(e.steps), e.steps * STEP_S, float(e.batch), float(e.kv), float(e.preemptions))
            last = self.before.get((e.id, ""), (0.0,) * 5)
            self.before[e.id, ""] = total
            steps, seconds, batch, kv, preempted = (a - b for a, b in zip(total, last, strict=True))
            replicas.append(ReplicaCounts(
                e.id, self.room * BLOCK, e.used() * BLOCK, len(e.running), len(e.waiting), preempted, steps, seconds, batch, kv, 0.0,
            ))  # fmt: skip
        fleet = Fleet(self.target, len(self.engines), tuple(now - t for t in self.orders), len(self.gone))
        return Observation(now, TICK_S, Freshness.FRESH, 1.0, fleet, {CLS: counts}, tuple(replicas))

    def tick(self, now: float) -> None:
        seen = self.observe(now)
        decision, self.state = decide(seen, self.policy, self.state)
        self.records.append(Record("micro-reasoner", seen, self.policy, decision))
        if not decision.act:
            return
        more, self.target = decision.target - self.target, decision.target
        self.orders += [now] * max(0, more)
        for _ in range(-min(0, more)):
            if self.orders:
                self.orders.pop()
            else:
                self.gone.append(self.engines.pop())

    def advance(self, now: float) -> None:
        for at in [t for t in self.orders if now - t >= self.start_s]:
            self.orders.remove(at)
            self.add()
        for engine in [*self.engines, *self.gone]:
            engine.step(now)
        self.gone = [e for e in self.gone if e.load()]


def rehearse(plans: Sequence[Planned], load_s: float, start_s: float, warm: Sequence[Planned] = ()) -> Run:
    """Play the plans until all is answered and calm, at most 300 s past the load's end."""
    model = resolve(load_models(EXAMPLE)[0], EXAMPLE.parent)
    policy = policy_of(model, start_prior_s=45.0)
    stage = Stage(policy, start_s, int((policy.kv_capacity_tokens or 0) // BLOCK))
    stage.add()
    now, due, outcomes = -60.0 if warm else 0.0, deque(plans), []
    for plan in warm:
        stage.engines[0].take(Chain(Outcome(now, CLS), 20, *_length(plan.question)), now)
    next_tick = 0.0
    while now < load_s + 300.0:
        now += STEP_S
        while due and due[0].t <= now:
            plan = due.popleft()
            outcomes.append(Outcome(plan.t, plan.cls))
            min(stage.engines, key=Engine.load).take(
                Chain(outcomes[-1], len(plan.question) + 9, *_length(plan.question)), now
            )
        stage.advance(now)
        if now >= next_tick:
            next_tick += TICK_S
            stage.tick(now)
            if (
                not due
                and now > load_s
                and len(stage.engines) == 1 == stage.target
                and not stage.gone
                and not stage.engines[0].load()
            ):
                break
    return Run(0.0, load_s, stage.records, outcomes, (), 40.0, len(stage.engines), model.min_replicas)
