"""Sends planned requests to an OpenAI endpoint at their times, whether or not earlier ones are answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import httpx

from reasonscale.load.trace import Planned


@dataclass(slots=True)
class Outcome:
    """What came of one request. Times in seconds from when it was due."""

    t: float
    cls: str
    status: int = 0
    error: str | None = None
    ttft_s: float | None = None
    ttfat_s: float | None = None
    e2e_s: float | None = None
    prompt_tokens: int = 0
    reasoning_tokens: int = 0
    answer_tokens: int = 0
    correct: bool | None = None
    late_s: float = 0.0  # how late it was sent: the load's own fault

    @property
    def failed(self) -> bool:
        return self.error is not None

    @property
    def cut(self) -> bool:
        """Whether it had begun and did not come to its end, however that showed."""
        return self.failed and self.status == 200

    @property
    def tpot_s(self) -> float | None:
        """Return the time per output token after the first; None for outputs of one token or none."""
        tokens = self.reasoning_tokens + self.answer_tokens
        if self.ttft_s is None or self.e2e_s is None or tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (tokens - 1)


async def _one(http: httpx.AsyncClient, model: str, plan: Planned, due: float) -> Outcome:
    out = Outcome(plan.t, plan.cls, late_s=max(0.0, time.monotonic() - due))
    body = {
        "model": model, "messages": [{"role": "user", "content": plan.question}], "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    if plan.max_tokens is not None:
        body |= {"max_tokens": plan.max_tokens}
    if plan.effort is not None:
        body |= {"reasoning_effort": plan.effort}
    text, finished = [], False
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            out.status = response.status_code
            if response.status_code != 200:
                out.error = (await response.aread()).decode(errors="replace")[:300]
                return out
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    finished = True
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    out.error = str(event["error"].get("message"))
                    continue
                passed = time.monotonic() - due
                for choice in event.get("choices", []):
                    delta = choice.get("delta", {})
                    answer = delta.get("content")
                    if (answer or delta.get("reasoning") or delta.get("reasoning_content")) and out.ttft_s is None:
                        out.ttft_s = passed
                    if answer:
                        out.ttfat_s = passed if out.ttfat_s is None else out.ttfat_s
                        text.append(answer)
                usage = event.get("usage")
                if usage:
                    out.prompt_tokens = usage.get("prompt_tokens", 0)
                    out.reasoning_tokens = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
                    out.answer_tokens = usage.get("completion_tokens", 0) - out.reasoning_tokens
        out.e2e_s = time.monotonic() - due
        if not finished and out.error is None:
            out.error = "the stream ended before [DONE]"
        if plan.answer is not None and out.error is None:
            out.correct = "".join(text).strip() == plan.answer
    except (httpx.HTTPError, ValueError, TypeError, AttributeError) as error:  # or an answer of another shape
        out.error = f"{type(error).__name__}: {error}".strip(": ")
    return out


async def send(
    url: str, model: str, plans: Sequence[Planned], *, on_done: Callable[[Outcome], None] = lambda outcome: None,
    timeout_s: float = 1800.0, stop: asyncio.Event | None = None,
) -> list[Outcome]:  # fmt: skip
    """Send all plans at their times and return their outcomes in that order; `stop` ends the sending early.

    Arrivals are open-loop: nothing waits for an answer. Raises nothing: what fails is an outcome with its error.
    """
    stop = stop or asyncio.Event()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    timeout = httpx.Timeout(timeout_s, connect=30)
    started = time.monotonic()
    tasks: list[asyncio.Task[Outcome]] = []

    def finished(task: asyncio.Task[Outcome]) -> None:
        if not task.cancelled():
            on_done(task.result())

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout, trust_env=False) as http:
        for plan in plans:
            due = started + plan.t
            wait = due - time.monotonic()
            if wait > 0:
                try:
                    await asyncio.wait_for(stop.wait(), wait)
                except TimeoutError:
                    pass
            if stop.is_set():
                break
            task = asyncio.create_task(_one(http, model, plan, due))
            task.add_done_callback(finished)
            tasks.append(task)
        return list(await asyncio.gather(*tasks))


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return a percentile by linear interpolation between closest ranks; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def _both(values: Sequence[float], scale: float = 1.0) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        value = percentile(values, share)
        out[name] = None if value is None else round(value * scale, 3)
    return out


def summarize(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Return a report: counts, failures by kind, tokens, and percentiles of the requests that did not fail."""
    good = [o for o in outcomes if not o.failed]
    kinds: dict[str, int] = {}
    for o in outcomes:
        if o.failed:
            key = f"{o.status or 'connection'}: {(o.error or '')[:120]}"
            kinds[key] = kinds.get(key, 0) + 1
    return {
        "requests": len(outcomes),
        "failed": len(outcomes) - len(good),
        "failures": kinds,
        "checked": sum(1 for o in good if o.correct is not None),
        "correct": sum(1 for o in good if o.correct),
        "prompt_tokens": sum(o.prompt_tokens for o in good),
        "reasoning_tokens": sum(o.reasoning_tokens for o in good),
        "answer_tokens": sum(o.answer_tokens for o in good),
        "ttft_s": _both([o.ttft_s for o in good if o.ttft_s is not None]),
        "ttfat_s": _both([o.ttfat_s for o in good if o.ttfat_s is not None]),
        "tpot_ms": _both([o.tpot_s for o in good if o.tpot_s is not None], 1000),
        "e2e_s": _both([o.e2e_s for o in good if o.e2e_s is not None]),
        "sent_late_s": _both([o.late_s for o in outcomes]),
    }


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """Return the outcomes as plain rows."""
    return [asdict(o) for o in outcomes]
