"""What a machine can't run is deselected by its marker, with one printed line for each; nothing is skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import pytest

Needs = Mapping[str, tuple[Callable[[], bool], str]]  # marker -> (is it there?, what is missing)


def deselect(config: pytest.Config, items: list[pytest.Item], needs: Needs) -> None:
    """Take away the tests that lack something, and say how many lack what."""
    missing = {marker: why for marker, (there, why) in needs.items() if not there()}
    if "soak" not in (config.option.markexpr or ""):
        missing["soak"] = "soak tests run under `make soak`"
    kept, dropped, counts = [], [], Counter[str]()
    for item in items:
        lacking = next((marker for marker in missing if item.get_closest_marker(marker)), None)
        if lacking is None:
            kept.append(item)
        else:
            dropped.append(item)
            counts[lacking] += 1
    if dropped:
        items[:] = kept
        config.hook.pytest_deselected(items=dropped)
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        for marker, count in counts.items():
            if reporter is not None:
                reporter.write_line(f"deselected {count} tests marked `{marker}`: {missing[marker]}")


def nothing_is_no_failure(session: pytest.Session, exitstatus: int) -> None:
    """Let a folder pass of which this machine can run nothing: a line has said what is missing."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.option.markexpr != "soak":
        session.exitstatus = pytest.ExitCode.OK
