"""The README's quick start, command by command: from nothing to an answer, and back to nothing."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from e2e.cluster.control_plane import free_ports
from e2e.cluster.target import ROOT, Target, until
from e2e.readme import commands
from openai import OpenAI

from reasonscale.api import constants as c

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
NAME = "micro-reasoner"


@contextmanager
def forwarded(target: Target, command: str) -> Iterator[int]:
    """Run the README's port-forward, on a port that is free here."""
    (port,) = free_ports(1)
    line = command.replace(" 8000", f" {port}:8000")
    assert line != command
    process = subprocess.Popen(["bash", "-c", f"exec {line}"], cwd=ROOT, env=target.env, stdout=subprocess.DEVNULL)

    def listens() -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(listens, 30, "kubectl forwards a port")
        yield port
    finally:
        process.terminate()
        process.wait(20)


def operator_pod(target: Target) -> dict[str, str]:
    """Return the phase and the readiness of the operator's pod."""
    [pod] = target.list("pods", "app.kubernetes.io/name=reasonscale", "reasonscale")
    ready = next((x["status"] for x in pod["status"].get("conditions", ()) if x["type"] == "Ready"), "False")
    return {"phase": pod["status"]["phase"], "ready": ready, "restarts": str(sum(x["restartCount"] for x in pod["status"].get("containerStatuses", ())))}  # fmt: skip


def test_the_operator_runs_and_is_not_ready_until_its_definition_is_there(target: Target) -> None:
    crds, operator = commands("charts")
    target.sh(operator)
    until(lambda: operator_pod(target)["phase"] == "Running", 120, "the operator's pod runs")
    until(lambda: "install the chart reasonscale-crds" in target.kubectl("-n", "reasonscale", "logs", "deploy/reasonscale"), 60, "it says what is missing")  # fmt: skip
    assert operator_pod(target)["ready"] == "False"
    target.sh(crds)
    until(lambda: operator_pod(target)["ready"] == "True", 60, "the operator is ready")
    assert operator_pod(target)["restarts"] == "0"


def test_the_quick_start_gives_an_answer_with_its_chain_apart(installed: Target) -> None:
    target, began = installed, time.monotonic()
    apply, wait, *looks = commands("model")
    try:
        target.sh(apply)
        target.sh(wait, 900)
        print(f"e2e: the quick start's model serves after {time.monotonic() - began:.0f} s")
        for look in looks:
            print(target.sh(look))
        [forward] = commands("ask")
        with forwarded(target, forward) as port:
            client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120)
            answer = client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "collatz 27"}])
        message = answer.choices[0].message
        assert (message.content or "").strip() == "111"
        assert message.reasoning.startswith("0:72\n1:28")  # type: ignore[attr-defined]
        assert answer.usage is not None
        assert answer.usage.completion_tokens_details.reasoning_tokens > 500  # type: ignore[union-attr, operator]
        until(
            lambda: target.conditions(NAME)["SignalsAvailable"]["status"] == "True",
            60,
            "Prometheus has the engine's ledger",
        )
        assert all(p["status"]["phase"] == "Running" for p in target.pods(NAME))
        assert {p["metadata"]["labels"][c.LABEL_ROLE] for p in target.pods(NAME)} == {"head", "ingress", "engine"}
        assert not target.model(NAME)["metadata"].get("finalizers")
    except BaseException:
        print(target.story(NAME))
        raise


def test_a_deleted_model_is_gone_with_everything_it_made_within_a_minute(installed: Target) -> None:
    target, began = installed, time.monotonic()
    target.kubectl("delete", c.PLURAL, NAME)
    until(lambda: not target.left(NAME), 60, f"everything is gone; there is {target.left(NAME)}")
    print(f"e2e: everything is gone after {time.monotonic() - began:.0f} s")
