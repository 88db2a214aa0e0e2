"""Draws what a run did over time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reasonscale.profiles.profile import BadProfile
from reasonscale.simulator.run import Outcome


def draw(outcome: Outcome, path: Path) -> None:
    """Write a PNG: replicas over time, requests in flight, and the share of requests that met their objectives."""
    try:
        import matplotlib
    except ImportError:
        raise BadProfile("--plot needs matplotlib, which is not installed: pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    t, target, ready, alive, inflight, _ = np.array(outcome.fleet, dtype=np.float64).T
    unit, seconds = ("hours", 3600.0) if t[-1] >= 7200.0 else ("minutes", 60.0)
    t = t / seconds
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(10, 5.6), sharex=True, height_ratios=(3, 2))
    top.fill_between(t, alive, step="post", color="#d7e3f4", label="paid for: starting, serving, draining")
    top.step(t, ready, where="post", color="#1f5aa6", label="serving")
    top.step(t, target, where="post", color="#d9822b", lw=0.8, label="asked for")
    top.set_ylabel("replicas")
    top.set_ylim(bottom=0)
    # Below the curves: within the axes it lies over those of a short trace.
    figure.legend(*top.get_legend_handles_labels(), loc="lower center", ncols=3, fontsize=8, frameon=False)
    top.set_title(
        f"{outcome.workload} under {outcome.policy}: {outcome.attainment:.2%} met every objective,"
        f" {outcome.gpu_hours:,.1f} GPU-hours",
        fontsize=10, loc="left",
    )  # fmt: skip
    bottom.plot(t, inflight, color="#4a7a3a", lw=0.8)
    bottom.set_ylabel("requests in flight")
    bottom.set_xlabel(unit)
    bottom.set_ylim(bottom=0)
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
