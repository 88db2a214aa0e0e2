"""A hundred scale-downs and ten rollouts in a row under load, and no stream is cut. Hours: `make soak`.

REASONSCALE_SOAK_DOWNS and REASONSCALE_SOAK_ROLLOUTS set other numbers; what was run is printed.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.engine.streams import Flow, Load, asked, questions, whole, with_replicas

from reasonscale.serving.pace import ENV as PACE_ENV

DOWNS = int(os.environ.get("REASONSCALE_SOAK_DOWNS", "100"))
ROLLOUTS = int(os.environ.get("REASONSCALE_SOAK_ROLLOUTS", "10"))
REPLICAS = 4  # they start together and go one by one: a start is what takes long
STREAMS = 24
pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(600 * (DOWNS + ROLLOUTS) + 1200)]


@pytest.fixture(scope="module")
def fleet(start_service: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Replicas of 15 ms a step behind two ingress replicas."""
    log = tmp_path_factory.mktemp("logs") / "access.jsonl"
    with start_service(log, replicas=REPLICAS, env={PACE_ENV: "15"}, ingress_replicas=2) as found:
        yield found


def rolled_out(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config whose engines have one seat more or less."""
    out = copy.deepcopy(config)
    for model in out["applications"][0]["args"]["models"]:
        seats = model["engine_kwargs"]["max_num_seqs"]
        model["engine_kwargs"]["max_num_seqs"] = seats - 1 if seats % 2 == 0 else seats + 1
    return out


def gone(fleet: Any, within_s: float = 240.0) -> None:
    """Wait until no replica stops any more."""
    deadline = time.monotonic() + within_s
    while any(word == "STOPPING" for _, word, _ in fleet.state().replicas[fleet.deployment]):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_scale_downs_and_rollouts_in_a_row_under_load_cut_no_stream(fleet: Any) -> None:
    bodies = [asked(fleet, q) for q in questions(STREAMS)]
    undisturbed = Load(fleet, bodies).end()
    whole(undisturbed)
    began, streams, longest, downs, rollouts = time.monotonic(), 0, 0.0, 0, 0
    while downs < DOWNS or rollouts < ROLLOUTS:
        fleet.put(with_replicas(fleet.config, fleet, REPLICAS))
        fleet.wait_replicas(REPLICAS)
        flow = Flow(fleet, bodies, at_once=8)
        time.sleep(2)
        for left in range(REPLICAS - 1, 0, -1):
            fleet.put(with_replicas(fleet.config, fleet, left))
            gone(fleet)
            downs += 1
            if left == 2 and rollouts < ROLLOUTS:
                before = frozenset(fleet.pids())
                fleet.put(rolled_out(fleet.config))
                fleet.wait_replicas(2, but=before)
                gone(fleet)
                rollouts += 1
        heard = flow.end(300)
        whole([h for _, h in heard])
        for which, h in heard:
            assert h.said == undisturbed[which].said
        fleet.wait_all_idle()
        streams, longest = streams + len(heard), max(longest, *(h.longest_s for _, h in heard))
        print(
            f"{downs} scale-downs, {rollouts} rollouts, {streams} streams, 0 cut, longest silence {longest:.1f} s, "
            f"{time.monotonic() - began:.0f} s", flush=True,
        )  # fmt: skip
