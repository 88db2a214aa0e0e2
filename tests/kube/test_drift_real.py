"""What others do to a RayService between two changes of its resource: put right, and said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from e2e.cluster.control_plane import free_ports
from tests.kube.running import CRDS, MERGE, MODELS, SERVICES, Operator, conditions, numbers, resource, until

from reasonscale.api import constants as c

pytestmark = [pytest.mark.kube, pytest.mark.kuberay, pytest.mark.timeout(240)]
NAME = "drifts"


@pytest.fixture(scope="module")
def model(kuberay: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    operator = Operator(kuberay, tmp_path_factory.mktemp("drift"), ports=free_ports(2))
    try:
        spec = {"scaling": {"mode": "Manual", "maxReplicas": 4}, "replicas": 1}
        assert kuberay.http.post(MODELS, json=resource(NAME, **spec)).status_code == 201
        until(lambda: numbers(kuberay, NAME) == 1)
        until(lambda: "UpdateAvailable" in conditions(kuberay, NAME))
        yield kuberay
        assert "Traceback" not in operator.output.read_text()
    finally:
        operator.stop()
        kuberay.http.delete(f"{MODELS}/{NAME}")


def events(cluster: Any, reason: str) -> list[dict[str, Any]]:
    found = cluster.http.get("/api/v1/namespaces/default/events").json()["items"]
    return [x for x in found if x["reason"] == reason and x["involvedObject"]["name"] == NAME]


def edit(cluster: Any, spec: dict[str, Any]) -> None:
    answer = cluster.http.patch(
        f"{SERVICES}/{NAME}", json={"spec": spec}, headers=MERGE, params={"fieldManager": "kubectl-edit"}
    )
    assert answer.status_code == 200, answer.text


def spec_of(cluster: Any) -> dict[str, Any]:
    found: dict[str, Any] = cluster.http.get(f"{SERVICES}/{NAME}").json()["spec"]
    return found


def test_an_edited_field_is_put_right_and_an_event_says_which_and_by_whom(model: Any) -> None:
    edit(model, {"rayClusterDeletionDelaySeconds": 1})
    until(lambda: spec_of(model)["rayClusterDeletionDelaySeconds"] > 1, 20)
    (event,) = until(lambda: events(model, "DriftRepaired"))
    assert "spec.rayClusterDeletionDelaySeconds by kubectl-edit" in event["message"]
    assert "DriftRepaired" in model.plane.kubectl("describe", c.SHORT_NAME, NAME).stdout


def test_the_same_edit_again_is_called_contested_and_not_fought_over(model: Any) -> None:
    edit(model, {"rayClusterDeletionDelaySeconds": 1})
    held = until(lambda: (x := conditions(model, NAME)["Degraded"])["reason"] == "DriftContested" and x, 20)
    assert "it comes back" in held["message"]
    before = model.http.get(f"{SERVICES}/{NAME}").json()["metadata"]["resourceVersion"]
    time.sleep(6)
    assert model.http.get(f"{SERVICES}/{NAME}").json()["metadata"]["resourceVersion"] == before
    # A decision is brought in all the same, and takes the edit away with it.
    model.plane.kubectl("scale", c.SHORT_NAME, NAME, "--replicas=2")
    until(lambda: numbers(model, NAME) == 2)
    assert spec_of(model)["rayClusterDeletionDelaySeconds"] > 1
    until(lambda: conditions(model, NAME)["Degraded"]["status"] == "False")


def test_a_field_that_we_do_not_set_is_taken_away_again(model: Any) -> None:
    edit(model, {"rayClusterConfig": {"headGroupSpec": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}}})
    head = lambda: spec_of(model)["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]  # noqa: E731
    until(lambda: not head().get("nodeSelector"), 20)


def test_a_rayservice_that_was_deleted_is_made_again_with_its_number(model: Any) -> None:
    uid = model.http.get(f"{SERVICES}/{NAME}").json()["metadata"]["uid"]
    assert model.http.delete(f"{SERVICES}/{NAME}").status_code == 200
    made = until(lambda: (x := model.http.get(f"{SERVICES}/{NAME}")).status_code == 200 and x.json(), 20)
    assert made["metadata"]["uid"] != uid
    assert numbers(model, NAME) == 2
    assert until(lambda: events(model, "Created"))


def test_frozen_nothing_is_put_right_and_another_image_restarts_nothing(model: Any, tmp_path: Any) -> None:
    """A second operator, of a later release: another image of ours in every pod. The first one still runs, so it looks on."""
    before = model.http.get(f"{SERVICES}/{NAME}").json()
    frozen = Operator(model, tmp_path, "--freeze", ports=free_ports(2))
    try:
        until(lambda: conditions(model, NAME)["ScalingActive"]["reason"] == "Frozen", 30)
    finally:
        frozen.stop()
    assert model.http.get(f"{SERVICES}/{NAME}").json()["metadata"]["generation"] == before["metadata"]["generation"]


def test_a_definition_of_kuberay_that_is_too_old_is_named_and_tried_again(model: Any) -> None:
    """KubeRay's definition without a field that we set, as an older release has it; then the new one."""
    path = f"{CRDS}/rayservices.ray.io"

    def install(changed: bool) -> None:
        found = model.http.get(path).json()
        for version in found["spec"]["versions"]:
            fields = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
            if changed:
                fields.pop("excludeHeadPodFromServeSvc", None)
            else:
                fields["excludeHeadPodFromServeSvc"] = {"type": "boolean"}
        answer = model.http.put(path, json=found)
        assert answer.status_code == 200, answer.text

    install(True)
    try:
        time.sleep(2)  # the server takes a definition up a moment later
        assert model.http.post(MODELS, json=resource("too-old", scaling={"maxReplicas": 2})).status_code == 201
        held = until(lambda: (x := conditions(model, "too-old").get("Degraded", {})).get("status") == "True" and x)
        assert held["reason"] == "CRDTooOld"
        assert "excludeHeadPodFromServeSvc" in held["message"]
        assert "install the CRDs of KubeRay" in held["message"]
    finally:
        install(False)
    until(lambda: conditions(model, "too-old")["Degraded"]["status"] == "False")
    assert numbers(model, "too-old") == 1
    model.http.delete(f"{MODELS}/too-old")
