"""Writes a replica's ledger to Ray's metrics once a second. Runs under Ray.

Every gauge is written each time, changed or not: Ray forgets one that is silent for about 20 s. Only bins that a class
has touched are written, and no more series than `MAX_SERIES_PER_REPLICA`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ray.util.metrics import Counter, Gauge

from reasonscale.api import constants as c
from reasonscale.serving.asleep import ASLEEP, HELD, Sleeper
from reasonscale.serving.ledger import ClassTotals, Ledger
from reasonscale.serving.steps import StepSums

_MODEL, _CLS, _BIN, _PHASE = c.LABEL_METRIC_MODEL, c.LABEL_METRIC_CLASS, c.LABEL_METRIC_BIN, c.LABEL_METRIC_PHASE
_EDGES: Final = tuple(str(edge) for edge in c.TOKEN_BINS)
# What has no bin always has room: 7 series of each class, 14 of the replica.
_MAX_BIN_SERIES: Final = c.MAX_SERIES_PER_REPLICA - 7 * c.MAX_CLASSES - 14
log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Here:
    """Who a replica is to Serve, on which of Ray's nodes, and since when it serves: by that it is known who goes next."""

    replica: str
    node: str
    since_s: float


class Exporter:
    """Turns totals into increments of Ray's counters, and what is now into gauges."""

    def __init__(self, model: str) -> None:
        self._model = {_MODEL: model}
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._written: dict[tuple[str, tuple[str, ...]], float] = {}
        self._bins: set[tuple[str, tuple[str, ...]]] = set()  # series with a bin; the others are few by construction
        self._warned = False

    def _room(self, name: str, *tags: str) -> bool:
        if (name, tags) in self._bins:
            return True
        if len(self._bins) >= _MAX_BIN_SERIES:
            if not self._warned:
                self._warned = True
                log.warning("more than %d series: some bins of lengths are folded into lower ones", _MAX_BIN_SERIES)
            return False
        self._bins.add((name, tags))
        return True

    def _gauge(self, name: str, value: float, **tags: str) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description=name, tag_keys=(_MODEL, *tags))
        self._gauges[name].set(value, tags=self._model | tags)

    def _count(self, name: str, total: float, **tags: str) -> None:
        if name not in self._counters:
            self._counters[name] = Counter(name, description=name, tag_keys=(_MODEL, *tags))
        key = (name, tuple(tags.values()))
        before = self._written.get(key, 0.0)
        if total > before:  # Ray refuses an increment of 0
            self._counters[name].inc(total - before, tags=self._model | tags)
            self._written[key] = total

    def _by_bin(self, name: str, values: Sequence[float], **tags: str) -> None:
        """Write a gauge for each bin that was ever touched; what finds no room counts in the next lower bin."""
        out: dict[str, float] = {}
        for edge, value in zip(_EDGES, values, strict=True):
            if (name, (*tags.values(), edge)) in self._bins or (value and self._room(name, *tags.values(), edge)):
                out[edge] = value
            elif value and out:
                out[next(reversed(out))] += value
        for edge, value in out.items():
            self._gauge(name, value, **tags, **{_BIN: edge})

    def _lengths(self, totals: ClassTotals, cls: str) -> None:
        for j, edge in enumerate(_EDGES):
            # Both or neither: a bin that is ended in and never reached would make a hazard of its own.
            if totals.reached[j] and self._room(c.M_REACHED, cls, edge) and self._room(c.M_ENDED, cls, edge):
                self._count(c.M_REACHED, totals.reached[j], **{_CLS: cls, _BIN: edge})
                self._count(c.M_ENDED, totals.ended[j], **{_CLS: cls, _BIN: edge})

    def write(
        self, ledger: Ledger, sums: StepSums, capacity_tokens: float, now: float, *, draining: bool = False,
        here: Here | None = None, sleeper: Sleeper | None = None,
    ) -> None:  # fmt: skip
        """Write everything once. `here`: who this replica is."""
        for cls, current in ledger.now().items():
            totals = ledger.totals[cls]
            tags = {_CLS: cls}
            self._gauge(c.M_WAITING, current.waiting, **tags)
            self._gauge(c.M_WAITING_PROMPT, current.waiting_prompt_tokens, **tags)
            self._by_bin(c.M_INFLIGHT, current.reasoning, **tags, **{_PHASE: c.PHASE_REASONING})
            self._by_bin(c.M_INFLIGHT, current.answering, **tags, **{_PHASE: c.PHASE_ANSWERING})
            self._by_bin(c.M_INFLIGHT_PROMPT, current.inflight_prompt_tokens, **tags)
            self._lengths(totals, cls)
            self._count(c.M_ARRIVALS, totals.arrivals, **tags)
            self._count(c.M_PROMPT_TOKENS, totals.prompt_tokens, **tags)
            self._count(c.M_REASONING_TOKENS, totals.reasoning_tokens, **tags)
            self._count(c.M_ANSWER_TOKENS, totals.answer_tokens, **tags)
            self._count(c.M_BUDGET_EXHAUSTED, totals.budget_exhausted, **tags)
        self._gauge(c.M_DRAINING, float(draining))
        if sleeper is not None and sleeper.engine is not None:
            self._gauge(c.M_ASLEEP, float(sleeper.stage in (ASLEEP, HELD)))
            for name, took_s in ((c.M_FALL, sleeper.fell_s), (c.M_WOKE, sleeper.woke_s)):
                if took_s is not None:
                    self._gauge(name, took_s)
        if here is not None:
            tags = {c.LABEL_METRIC_REPLICA: here.replica, c.LABEL_METRIC_NODE: here.node}
            self._gauge(c.M_REPLICA, here.since_s, **tags)
        self._gauge(c.M_KV_CAPACITY, capacity_tokens)
        self._gauge(c.M_KV_USED, sums.kv_usage * capacity_tokens)
        self._count(c.M_PREEMPTIONS, sums.preemptions)
        self._count(c.M_STEPS, sums.steps)
        self._count(c.M_STEP_SECONDS, sums.seconds)
        self._count(c.M_STEP_BATCH, sums.batch)
        self._count(c.M_STEP_KV, sums.kv_tokens)
        self._count(c.M_STEP_PREFILL, sums.prefill_tokens)
        self._gauge(c.M_LEDGER_TIME, now)  # last: who reads it fresh reads the rest fresh


def describe(ledger: Ledger, sums: StepSums, capacity_tokens: float) -> dict[str, Any]:
    """Return the ledger as plain values, for tests and for a look inside."""
    return {
        "rows": {
            rid: {
                "cls": row.cls, "prompt_tokens": row.prompt_tokens, "generated": row.generated,
                "reasoning_tokens": row.reasoning_tokens, "phase": _phase(row.generated, row.answering),
            }
            for rid, row in ledger.rows.items()
        },
        "totals": {
            cls: {
                "reached": list(t.reached), "ended": list(t.ended), "arrivals": t.arrivals, "prompt_tokens": t.prompt_tokens,
                "reasoning_tokens": t.reasoning_tokens, "answer_tokens": t.answer_tokens, "budget_exhausted": t.budget_exhausted,
            }
            for cls, t in ledger.totals.items()
        },
        "waiting": ledger.waiting, "kv_capacity_tokens": capacity_tokens, "kv_used_tokens": sums.kv_usage * capacity_tokens,
        "preemptions": sums.preemptions, "steps": sums.steps, "step_seconds": sums.seconds,
    }  # fmt: skip


def _phase(generated: int, answering: bool) -> str:
    return "waiting" if generated == 0 else c.PHASE_ANSWERING if answering else c.PHASE_REASONING
