"""The README's pictures, from a demo's own files.

    python -m bench.pictures [demo-report]

Writes docs/img/top.svg (the live view at the demo's busiest decision) and, where chromium is there, docs/img/report.png.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME

from reasonscale.autoscaler import Record, read_records
from reasonscale.local.status import model_status, view

OUT = Path("docs/img")


def live_view(records: list[Record]) -> str:
    """Return the live view as SVG, at the moment when most tokens were owed."""
    at = max(range(len(records)), key=lambda i: records[i].decision.numbers.owed_tokens)
    changes = [r for r in records[: at + 1] if r.decision.act and r.decision.target != r.decision.current]
    events = [f"{r.decision.reason}: {r.decision.message}" for r in changes[-3:]]
    console = Console(record=True, width=132, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(view([model_status(records[at])], "reasonscale  http://127.0.0.1:8000/v1", events))
    return console.export_svg(title="reasonscale top", theme=DEFAULT_TERMINAL_THEME)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo-report"))
    folder = parser.parse_args().folder
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "top.svg").write_text(live_view(read_records(folder / "decisions.jsonl")))
    print(f"written: {OUT / 'top.svg'}")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        print("no chromium here: docs/img/report.png is left as it was")
        return
    with tempfile.TemporaryDirectory() as profile:
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]
        page = (folder / "report.html").resolve().as_uri()
        subprocess.run(
            [
                browser,
                *flags,
                f"--user-data-dir={profile}",
                "--window-size=940,2080",
                f"--screenshot={OUT / 'report.png'}",
                page,
            ],
            check=True,
            capture_output=True,
        )
    print(f"written: {OUT / 'report.png'}")


if __name__ == "__main__":
    main()
