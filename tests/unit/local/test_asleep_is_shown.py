"""What `up` and `top` show of a model at zero replicas."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console
from tests.unit.scaling.worlds import POLICY

from reasonscale.autoscaler import Record
from reasonscale.local.status import model_status, plain, view
from reasonscale.scaling.decide import decide
from reasonscale.scaling.state import State
from reasonscale.scaling.types import Fleet, Freshness, Observation

SLEEPS = replace(POLICY, min_replicas=0, zero_after_s=60.0)


def status(held: float, fleet: Fleet) -> dict[str, object]:
    fresh = Freshness.FRESH if fleet.target == 0 else Freshness.ABSENT
    seen = Observation(1.0, 5.0, fresh, 1.0, fleet, held_requests=held, ingress_requests=held)
    return model_status(Record("m", seen, SLEEPS, decide(seen, SLEEPS, State.new())[0]))


def shown(of: dict[str, object]) -> str:
    console = Console(width=160)
    with console.capture() as found:
        console.print(view([of], "t", []))
    return found.get()


def test_asleep_is_said_in_a_line_and_in_the_table() -> None:
    asleep = status(0.0, Fleet(0, 0))
    assert plain(asleep) == "m: asleep at zero replicas, 0 held"
    assert "asleep" in shown(asleep)
    assert "0: asleep, nothing is held; the first request wakes it" in shown(asleep)


def test_what_is_held_while_it_wakes_is_said() -> None:
    waking = status(3.0, Fleet(target=1, ready=0, starting_s=(9.0,)))
    assert plain(waking).endswith("replicas 0 of 1 (1 starting), 3 held until one is ready")
    assert "0 of 1, 1 starting" in shown(waking)
