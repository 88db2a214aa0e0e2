"""The model that most tests share, and what they ask of it."""

from __future__ import annotations

import json
from typing import Any

import yaml
from e2e.cluster.target import ROOT, Target

from reasonscale.api import constants as c
from reasonscale.render.marks import app_of

NAME = "micro"
START_S = 300.0  # allowed for a start on two cores


def resource(**scaling: Any) -> dict[str, Any]:
    """Return the bundled model with engines held to 40 ms a step: unpaced, so small a model fills a core before its batch."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "micro-reasoner.yaml").read_text())
    found["metadata"]["name"] = NAME
    found["spec"]["pod"]["env"] = [{"name": "REASONSCALE_PACE_MS", "value": "40"}]
    found["spec"]["drain"] = {"max": "2m"}  # the longest chain takes 72 s
    found["spec"]["scaling"] |= {"maxReplicas": 2} | scaling
    return found


def wanted(target: Target) -> int:
    """Return the number of replicas in the RayService."""
    service = target.get("rayservice", NAME)
    assert service is not None
    return int(app_of(service)["deployments"][0]["num_replicas"])


def version(target: Target) -> str:
    """Return the RayService's spec: another one after every write of it."""
    service = target.get("rayservice", NAME)
    assert service is not None
    return json.dumps(service["spec"], sort_keys=True)


def clusters(target: Target) -> list[str]:
    """Return the uids of the model's RayClusters."""
    return [x["metadata"]["uid"] for x in target.list("raycluster", f"ray.io/originated-from-cr-name={NAME}")]


def decided(target: Target) -> dict[str, Any]:
    """Return the last decision in the status."""
    found: dict[str, Any] = (target.model(NAME).get("status") or {}).get("lastDecision") or {}
    return found


def patch(target: Target, spec: dict[str, Any]) -> None:
    """Change the resource's spec."""
    target.kubectl("patch", c.PLURAL, NAME, "--type=merge", "-p", json.dumps({"spec": spec}))
