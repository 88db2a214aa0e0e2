"""`reasonscale load`: open-loop load on an OpenAI endpoint."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from reasonscale.cli.checks import endpoint, number, one_of, output

if TYPE_CHECKING:
    from rich.table import Table

    from reasonscale.load.client import Outcome

MAX_REQUESTS = 1_000_000


def load(
    *, url: str = "http://127.0.0.1:8000", model: str | None = None, workload: str = "mixed", trace: Path | None = None,
    rate: float = 0.5, duration: float = 60.0, seed: int = 1, report: Path | None = None,
) -> int:  # fmt: skip
    """Send requests at their times, whether or not earlier ones are answered, and report what came of them.

    Parameters
    ----------
    url
        The endpoint, such as http://127.0.0.1:8000.
    model
        The model's name; the endpoint's only one when absent.
    workload
        sums, collatz, mixed or cot-shift; questions for the bundled model, whose answers are checked.
    trace
        A trace file instead: rows of t, input, reasoning, answer, cls.
    rate
        Requests per second.
    duration
        Seconds.
    seed
        The same seed sends the same requests.
    report
        Write the report and every outcome to this JSON file.
    """
    return asyncio.run(_load(url, model, workload, trace, rate, duration, seed, report))


async def _model(url: str, model: str | None, err: Console) -> str | None:
    import httpx

    try:
        async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as http:
            names = [m["id"] for m in (await http.get("/v1/models")).json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        err.print(
            f"load: no OpenAI endpoint answers at {url} ({type(error).__name__}); start one with: reasonscale up FILE"
        )
        return None
    if model is None and len(names) == 1:
        return str(names[0])
    if model not in names:
        err.print(f"load: --model was {model!r}; the endpoint has {', '.join(names)}")
        return None
    return model


async def _progress(out: Console, done: Sequence[Outcome], due: Sequence[float], started: float) -> None:
    """Show how far the load is until cancelled: a live table on a terminal, else a line every five seconds."""
    from rich.live import Live

    if not out.is_terminal:
        while True:
            await asyncio.sleep(5)
            failed = sum(o.failed for o in done)
            out.print(f"  {time.monotonic() - started:5.0f} s  {len(done)} of {len(due)} answered, {failed} failed")
    with Live(console=out, refresh_per_second=4, transient=True) as screen:
        while True:
            screen.update(progress_table(done, due, time.monotonic() - started))
            await asyncio.sleep(0.25)


def progress_table(done: Sequence[Outcome], due: Sequence[float], passed: float) -> Table:
    """Return what a terminal shows of a load under way; `due` are the times at which requests are sent, in seconds."""
    from rich.table import Table

    from reasonscale.load.client import percentile

    sent = sum(t <= passed for t in due)
    good = [o for o in done if not o.failed]
    ttft = percentile([o.ttft_s for o in good if o.ttft_s is not None], 0.5)
    tpot = percentile([o.tpot_s for o in good if o.tpot_s is not None], 0.5)
    table = Table(box=None, pad_edge=False)
    row = {
        "s": f"{passed:.0f}",
        "sent": f"{sent}/{len(due)}",
        "in flight": str(max(0, sent - len(done))),
        "answered": str(len(good)),
        "failed": str(len(done) - len(good)),
        "thought": f"{sum(o.reasoning_tokens for o in good)} tokens",
        "TTFT p50": "-" if ttft is None else f"{ttft:.2f} s",
        "TPOT p50": "-" if tpot is None else f"{1000 * tpot:.0f} ms",
    }
    for name in row:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(*row.values())
    return table


async def _load(
    url: str,
    model: str | None,
    workload: str,
    trace: Path | None,
    rate: float,
    duration: float,
    seed: int,
    report: Path | None,
) -> int:
    from reasonscale.load.client import rows, send, summarize
    from reasonscale.load.rows import BadTrace
    from reasonscale.load.trace import WORKLOADS, from_trace
    from reasonscale.load.trace import workload as make

    out = Console(highlight=False, soft_wrap=True, markup=False)
    err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    url = endpoint("--url", url)
    number("--rate", rate, 0, above=True)
    number("--duration", duration, 0, above=True)
    one_of("--workload", workload, WORKLOADS)
    output("--report", report, *([trace] if trace else []))
    if rate * duration > MAX_REQUESTS:
        err.print(f"load: --rate times --duration is {rate * duration:g} requests; at most {MAX_REQUESTS:,}")
        return 2
    try:
        plans = from_trace(trace) if trace is not None else make(workload, rate, duration, seed)
    except BadTrace as error:
        err.print(f"load: {error}")
        return 2
    name = await _model(url, model, err)
    if name is None:
        return 1
    what = str(trace) if trace is not None else f"{workload}, {rate:g}/s for {duration:g} s, seed {seed}"
    out.print(f"load: {len(plans)} requests to {name} at {url} ({what})")
    stop, started = asyncio.Event(), time.monotonic()
    done: list[Outcome] = []
    sending = asyncio.create_task(send(url, name, plans, on_done=done.append, stop=stop))
    ticker = asyncio.create_task(_progress(out, done, [p.t for p in plans], started))
    cut = False

    def interrupt() -> None:
        nonlocal cut
        if stop.is_set():
            cut = True
            sending.cancel()
        else:
            out.print("load: no more are sent; waiting for what runs (again Ctrl-C: at once)")
            stop.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
    try:
        outcomes = await sending
    except asyncio.CancelledError:
        if not cut:
            raise
        outcomes = sorted(done, key=lambda o: o.t)
    finally:
        ticker.cancel()
        await asyncio.gather(ticker, return_exceptions=True)  # the live table leaves the terminal as it found it
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
    summary = summarize(outcomes)
    if stop.is_set():
        left = "what still ran was cut off and does not count" if cut else "what ran is kept"
        out.print(f"load: interrupted after {len(outcomes)} of {len(plans)} requests; {left}")
    for key, value in summary.items():
        if value not in ({}, None):
            out.print(f"  {key:<17} {json.dumps(value) if isinstance(value, dict) else value}", markup=False)
    if report is not None:
        data = {"command": " ".join(sys.argv), "url": url, "model": name, **summary, "outcomes": rows(outcomes)}
        try:
            report.write_text(json.dumps(data, indent=1))
        except OSError as error:
            err.print(f"load: {report}: can't be written: {error.strerror}")
            return 1
        out.print(f"  written to {report}")
    if cut:
        return 130
    return 1 if summary["failed"] else 0
