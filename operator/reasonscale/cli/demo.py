"""`reasonscale demo`: the whole loop on this machine, unattended."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path

from rich.console import Console


def demo(*, port: int = 8000, out: Path = Path("demo-report"), seconds: float = 440.0, seed: int = 2) -> int:
    """Show a reasoning model on this machine, scaled by its chain of thought, under load at a constant rate.

    Exit code 0 only if nothing failed, at least 90 % of the answers are right, the thought still to come made it scale
    up, and it came back.

    Parameters
    ----------
    port
        Port of the OpenAI endpoint on 127.0.0.1.
    out
        Folder for report.json, report.html and the logs.
    seconds
        How long the load lasts.
    seed
        The same seed sends the same requests.
    """
    console = Console(highlight=False, soft_wrap=True, markup=False)
    err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    from reasonscale.local.ray_node import port_taken

    if not 60 <= seconds < math.inf:
        err.print(f"demo: --seconds was {seconds:g}; at least 60 are needed to see anything")
        return 2
    if not 1 <= port <= 65535:
        err.print(f"demo: --port was {port}; must lie between 1 and 65535")
        return 2
    if port_taken("127.0.0.1", port):
        err.print(f"demo: port {port} is taken already; choose another with --port")
        return 2
    from reasonscale.demo.report import words
    from reasonscale.demo.run import example, run_demo
    from reasonscale.local.app import ServeError, StartFailed

    if not example().is_file():
        err.print(
            f"demo: {example()}: there is no such file; it comes with the sources: let REASONSCALE_EXAMPLES name their folder examples"
        )
        return 2
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        err.print(f"demo: --out was {out}; it can't be written to: {error.strerror}")
        return 2
    started = time.monotonic()
    try:
        report = asyncio.run(run_demo(port, out, lambda text: console.print(text), load_s=seconds, seed=seed))
    except (StartFailed, ServeError) as error:
        err.print(f"demo: {error}")
        return 1
    console.print()
    for line in words(report):
        console.print(line)
    console.print(f"report: {out / 'report.html'}; {time.monotonic() - started:.0f} s in all")
    if report["missing"]:
        err.print("demo: not passed: " + "; ".join(report["missing"]))
        return 1
    console.print("demo: passed")
    return 0
