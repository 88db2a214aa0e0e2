"""What is killed, stopped or lost: replicas are held, it is said, and all goes on by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from e2e.cluster.target import Target, until
from e2e.load import Load, flaws, growing, long_chains
from e2e.model import NAME, START_S, clusters, decided, patch, wanted

from reasonscale.api import constants as c

pytestmark = [pytest.mark.cluster, pytest.mark.machine, pytest.mark.timeout(900)]


def serving_engines(target: Target) -> set[tuple[str, int]]:
    """Return the engine pods that serve, and how often each was started again."""
    return {
        (p["metadata"]["uid"], sum(x["restartCount"] for x in p["status"]["containerStatuses"]))
        for p in target.pods(NAME, "engine")
        if all(x["ready"] for x in p["status"].get("containerStatuses", ()))
    }


def under_chains(target: Target, work: Callable[[], None]) -> None:
    """Do something while long chains run, of which none may fail, and the engines stay the same ones."""
    until(lambda: len(serving_engines(target)) == 1, 180, "one engine serves, and none is on its way out")
    before, engines = clusters(target), serving_engines(target)
    load = Load(target.url(NAME), NAME, long_chains(6))
    try:
        time.sleep(8)
        work()
    finally:
        outcomes = load.end()
    assert not flaws(outcomes)
    assert all(o.reasoning_tokens > 300 for o in outcomes)
    assert clusters(target) == before
    assert engines <= serving_engines(target)


def test_a_stopped_prometheus_holds_replicas_and_says_so_until_it_answers_again(serving: Target) -> None:
    target, machine = serving, serving.machine
    assert machine is not None
    assert machine.prometheus is not None
    patch(target, {"scaling": {"mode": "Auto"}})
    machine.prometheus.stop()
    try:
        said = until(lambda: (x := target.conditions(NAME)["SignalsAvailable"])["reason"] == "PrometheusDown" and x, 60, "it is said")  # fmt: skip
        assert "replicas are held" in said["message"]
        assert wanted(target) == 1
        assert "queuedTokens" not in target.model(NAME)["status"]["demand"]
        # It serves as before, and nobody knows it: that is not the same as not serving.
        ready = target.conditions(NAME)["Ready"]
        assert (ready["status"], ready["reason"]) == ("Unknown", "NotSeen")
        assert target.replicas(NAME)["ready"] == 1
    finally:
        machine.prometheus.start()
    until(lambda: target.conditions(NAME)["SignalsAvailable"]["status"] == "True", 90, "signals are back")
    assert target.ready(NAME)


@pytest.mark.soak
def test_signals_too_old_hold_replicas_and_a_prometheus_at_thirty_seconds_scales_once_it_is_told(
    serving: Target,
) -> None:
    target, machine = serving, serving.machine
    assert machine is not None
    assert machine.prometheus is not None
    patch(target, {"scaling": {"mode": "Auto"}})
    until(lambda: target.conditions(NAME)["ScalingActive"]["reason"] == "Auto", 60, "the mode is taken up")
    load = Load(target.url(NAME), NAME, growing(0.8, 0))
    try:
        machine.prometheus.look_every(90)  # the operator was told 5
        try:
            until(lambda: target.conditions(NAME)["SignalsAvailable"]["reason"] == "Stale", 120, "it is said", 0.5)
            assert "replicas are held" in target.conditions(NAME)["SignalsAvailable"]["message"]
            number = before = wanted(target)
            while True:
                time.sleep(
                    2
                )  # the status follows what is applied: what was asked for is judged by what it says afterwards
                status = target.model(NAME)["status"]
                if next(x for x in status["conditions"] if x["type"] == "SignalsAvailable")["reason"] != "Stale":
                    break
                assert "queuedTokens" not in status["demand"]
                assert number == before
                number = wanted(target)
        finally:
            machine.prometheus.look_every(30)
        target.upgrade("prometheus.scrapeInterval=30")
        until(lambda: target.conditions(NAME)["SignalsAvailable"]["reason"] == "Fresh", 120, "signals are back")
        if wanted(target) == 1:  # a look between two spells of staleness may have scaled already
            until(lambda: wanted(target) == 2, 240, "the operator asks for two replicas", 2)
            print(f"e2e: at 30 s: {decided(target)['message']}")
        for _ in range(20):  # three looks
            assert target.conditions(NAME)["SignalsAvailable"]["reason"] == "Fresh"
            time.sleep(3)
    finally:
        outcomes = load.end()
        machine.prometheus.look_every(5)
        target.upgrade("prometheus.scrapeInterval=5")
    assert not flaws(outcomes)
    patch(target, {"replicas": 1, "scaling": {"mode": "Manual"}})
    until(lambda: wanted(target) == 1, 60, "one replica is asked for")


def test_a_killed_operator_comes_back_and_scales_what_it_was_told_meanwhile(serving: Target) -> None:
    target = serving
    [pod] = target.list("pods", "app.kubernetes.io/name=reasonscale", "reasonscale")
    restarts = pod["status"]["containerStatuses"][0]["restartCount"]

    def killed() -> bool:
        [pod] = target.list("pods", "app.kubernetes.io/name=reasonscale", "reasonscale")
        found = pod["status"]["containerStatuses"][0]
        return bool(found["restartCount"] > restarts and found["ready"])

    def work() -> None:
        patch(target, {"replicas": 1, "scaling": {"mode": "Manual"}})
        until(lambda: target.conditions(NAME)["ScalingActive"]["reason"] == "Manual", 30, "the mode is taken up")
        target.kill_operator()
        target.kubectl("scale", c.SHORT_NAME, NAME, "--replicas=2")
        began = time.monotonic()
        until(killed, 120, "the operator is started again")
        until(lambda: wanted(target) == 2, 60, "it scales")
        print(f"e2e: a killed operator has scaled {time.monotonic() - began:.0f} s later")
        target.kubectl("scale", c.SHORT_NAME, NAME, "--replicas=1")
        until(lambda: wanted(target) == 1, 30, "it scales back")

    under_chains(target, work)


@pytest.mark.soak
def test_a_killed_kuberay_or_api_server_cuts_no_chain(serving: Target) -> None:
    target, machine = serving, serving.machine
    assert machine is not None

    def work() -> None:
        machine.kuberay.kill()
        machine.kuberay.start()
        machine.plane.processes.kill("kube-apiserver")
        time.sleep(5)
        machine.plane.start_again("kube-apiserver")
        machine.plane.wait_ready()
        target.kubectl("annotate", c.PLURAL, NAME, f"{c.ANNOTATION_HOLD}=true", "--overwrite")
        until(
            lambda: target.conditions(NAME)["ScalingActive"]["reason"] == "Held",
            150,
            "the operator hears of changes again",
        )
        target.kubectl("annotate", c.PLURAL, NAME, f"{c.ANNOTATION_HOLD}-")

    under_chains(target, work)


@pytest.mark.soak
def test_a_lost_head_is_made_again_and_the_model_serves_again(serving: Target) -> None:
    target, before = serving, clusters(serving)
    [head] = target.pods(NAME, "head")
    began = time.monotonic()
    target.kubectl("delete", "pod", head["metadata"]["name"], "--grace-period=0", "--force")
    until(lambda: not target.ready(NAME), 120, "it is said that nothing serves")
    until(lambda: target.ready(NAME), 2 * START_S, "the model serves again", 3)
    print(f"e2e: without fault tolerance of the GCS, a lost head took {time.monotonic() - began:.0f} s until the model served again, in {'the same' if clusters(target) == before else 'another'} RayCluster")  # fmt: skip
