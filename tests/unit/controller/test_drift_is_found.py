"""Drift is what we set and is not there, and what others set beside it; what the server fills in is none."""

from __future__ import annotations

from typing import Any

from reasonscale.controller.drift import differences, editors, foreign, removal
from reasonscale.controller.watched import of_service

WANTED: dict[str, Any] = {"spec": {"a": 1, "list": [{"n": "x"}], "empty": {}}}


def managed(manager: str, fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"manager": manager, "fieldsV1": {"f:spec": fields}} | more


def test_defaults_that_the_server_fills_in_are_no_drift() -> None:
    found = {"spec": {"a": 1, "list": [{"n": "x", "protocol": "TCP"}], "other": 2}}
    assert list(differences(WANTED, found)) == []


def test_each_edit_is_named_by_its_path() -> None:
    found = {"spec": {"a": 2, "list": [{"n": "y"}]}}
    assert list(differences(WANTED, found)) == ["spec.a", "spec.list[0].n"]
    assert list(differences(WANTED, {"spec": {"a": 1, "list": []}})) == ["spec.list"]


def test_fields_of_others_are_found_by_who_manages_them() -> None:
    live = {
        "metadata": {"managedFields": [
            managed("kubectl-edit", {"f:a": {}, "f:suspend": {}, "f:list": {'k:{"n":"x"}': {"f:m": {}}}}),
            managed("reasonscale", {"f:a": {}}),
            {"manager": "kuberay", "subresource": "status", "fieldsV1": {"f:status": {}}},
        ]},
        "spec": {"a": 1, "suspend": True, "list": [{"n": "x"}]},
    }  # fmt: skip
    extra = foreign(live, WANTED)
    assert extra == {("spec", "suspend"): "kubectl-edit"}
    assert removal(extra) == {"spec": {"suspend": None}}
    assert editors(live) == ["kubectl-edit"]
    kept = of_service(live)
    assert len(kept["metadata"]["managedFields"]) == 1
    assert (foreign(kept, WANTED), editors(kept)) == (extra, ["kubectl-edit"])


def test_what_is_gone_already_is_no_drift() -> None:
    live = {"metadata": {"managedFields": [managed("x", {"f:gone": {}})]}, "spec": {"a": 1}}
    assert foreign(live, WANTED) == {}
