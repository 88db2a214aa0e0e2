"""What `up` and `top` show of a model at zero replicas, and of replicas that sleep."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console
from tests.unit.scaling.worlds import POLICY

from reasonscale.api import constants as c
from reasonscale.api.load import parse
from reasonscale.api.resolve import resolve
from reasonscale.autoscaler import Record
from reasonscale.local.app import sleep_problem
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


def test_replicas_that_sleep_are_said_with_what_they_hold() -> None:
    fleet = Fleet(2, 2, emptied=("r0",), asleep=("r0",))
    seen = Observation(1.0, 5.0, Freshness.FRESH, 1.0, fleet)
    policy = replace(POLICY, asleep=1, asleep_bytes=15.2e9)
    record = Record("m", seen, policy, decide(seen, policy, State.new())[0])
    assert plain(model_status(record)).endswith("replicas 1 of 1 (1 asleep, its GPU and 14.2 GiB of host memory held)")
    assert "1 of 1, 1 asleep" in shown(model_status(record))
    unknown = replace(record, policy=replace(policy, asleep_bytes=None))
    assert plain(model_status(unknown)).endswith("(1 asleep, its GPU held)")


def test_up_says_why_no_replica_sleeps_on_a_cpu() -> None:
    document = {"model": {"uri": "hf://Qwen/Qwen3-8B"}, "scaling": {"maxReplicas": 2, "asleep": 1}}
    model = resolve(parse({"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": {"name": "m"}, "spec": document}))
    assert "spec.scaling.asleep is 1, but there is no GPU here" in (sleep_problem([model], 0) or "")
    assert sleep_problem([model], 1) is None
    assert sleep_problem([replace(model, asleep=0)], 0) is None
    assert any("up to 1 asleep, up to 30.5 GiB of host memory each" in line for line in model.as_lines())
