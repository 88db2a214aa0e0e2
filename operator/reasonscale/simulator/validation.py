"""The engine model against measured replays: how far its times are from those of the same requests on a real GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from reasonscale.profiles.profile import BadProfile, Profile
from reasonscale.simulator.engine import Floats, Replay, replay

FIELDS = ("t", "inp", "out", "first", "last", "n")


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of one load, model against measurement, over the requests that finished in both."""

    requests: int
    finished: int
    e2e_mean_err: float
    e2e_p95_err: float
    ttft_mean_err: float
    ttft_p95_err: float
    tpot_mean_err: float
    tpot_p95_err: float


def loads(data: dict[str, Any]) -> list[str]:
    """Return the names of the replays in a measurement file."""
    return [key for key in data if key.startswith("load@")]


def _columns(load: Any, where: str) -> dict[str, Floats]:
    rows = load.get("requests") if isinstance(load, dict) else None
    if not isinstance(rows, list) or not rows:
        raise BadProfile(f"{where}: requests is missing; it must be a list of objects with {', '.join(FIELDS)}")
    columns: dict[str, Floats] = {name: np.full(len(rows), np.nan) for name in FIELDS}
    for i, row in enumerate(rows):
        for name in FIELDS:
            value = row.get(name) if isinstance(row, dict) else None
            if value is None and name in ("first", "last"):
                continue  # cut off before its first token
            if not isinstance(value, int | float) or not np.isfinite(value) or value < 0:
                raise BadProfile(f"{where}: requests[{i}].{name} was {value!r}; it must be a number, 0 or more")
            columns[name][i] = value
        if columns["inp"][i] < 1 or columns["out"][i] < 1:
            raise BadProfile(
                f"{where}: requests[{i}] has inp {row['inp']!r} and out {row['out']!r}; both must be 1 or more"
            )
    order = np.argsort(columns["t"], kind="stable")
    return {name: values[order] for name, values in columns.items()}


def _times(arrival: Floats, first: Floats, last: Floats, tokens: Floats) -> dict[str, Floats]:
    return {"e2e": last - arrival, "ttft": first - arrival, "tpot": (last - first) / np.maximum(1.0, tokens - 1.0)}


def compare(load: Any, profile: Profile, where: str = "load") -> tuple[Errors, Replay]:
    """Replay a measured load through the model and return the errors, and the replay itself."""
    seen = _columns(load, where)
    wall = load.get("wall")
    until = float(wall) if isinstance(wall, int | float) else np.inf
    run = replay(profile, seen["t"], seen["inp"].astype(np.int64), seen["out"].astype(np.int64), until_s=until)
    both = (seen["n"] >= seen["out"]) & np.isfinite(seen["last"]) & np.isfinite(run.last_s)
    if not both.any():
        raise BadProfile(f"{where}: no request finished both in the measurement and in the model")
    arrival, out = seen["t"][both], seen["out"][both]
    real = _times(arrival, seen["first"][both], seen["last"][both], out)
    model = _times(arrival, run.first_s[both], run.last_s[both], out)
    errors: dict[str, float] = {}
    for name in ("e2e", "ttft", "tpot"):
        errors[f"{name}_mean_err"] = round(float(model[name].mean() / real[name].mean() - 1.0), 5)
        p95 = float(np.percentile(model[name], 95) / np.percentile(real[name], 95) - 1.0)
        errors[f"{name}_p95_err"] = round(p95, 5)
    return Errors(requests=len(both), finished=int(both.sum()), **errors), run
