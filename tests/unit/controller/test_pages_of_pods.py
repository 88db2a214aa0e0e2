"""Without a Prometheus the operator reads the pods that know something: those with engines and those with gates."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from reasonscale.api import constants as c
from reasonscale.controller.operator import Watches
from reasonscale.render.context import ROLE_ENGINE, ROLE_HEAD, ROLE_INGRESS


def pod(role: str, ip: str | None, **more: Any) -> dict[str, Any]:
    labels = {c.LABEL_MODEL: "m", c.LABEL_ROLE: role}
    return {"metadata": {"namespace": "n", "labels": labels} | more, "status": {"podIP": ip}}


def test_engines_and_ingresses_are_read_and_no_head_and_none_that_is_going() -> None:
    pods = [
        pod(ROLE_ENGINE, "10.0.0.1"), pod(ROLE_INGRESS, "10.0.0.2"), pod(ROLE_HEAD, "10.0.0.3"), pod(ROLE_INGRESS, None),
        pod(ROLE_INGRESS, "fd00::1"), pod(ROLE_ENGINE, "10.0.0.4", deletionTimestamp="now"),
    ]  # fmt: skip
    watches = Watches.__new__(Watches)
    watches.model_pods = SimpleNamespace(all=lambda: pods)  # type: ignore[assignment]
    assert [t.url for t in watches.targets()] == [
        f"http://{host}:8080/metrics" for host in ("10.0.0.1", "10.0.0.2", "[fd00::1]")
    ]
    assert watches.targets()[0].labels == {c.LABEL_METRIC_NAMESPACE: "n", c.LABEL_METRIC_RESOURCE: "m"}
