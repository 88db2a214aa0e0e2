"""What restarts what, by Ray Serve's own code: its version of an application and of a deployment, of what is rendered before and after each change."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from tests.unit.render.test_what_restarts_what import BASE, CHANGES, changed, service

from reasonscale.api.effects import Effect, effect_of

pytestmark = pytest.mark.engine
EFFECTS = {path: effect_of(path) for path in CHANGES}


def versions(spec: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the application's code version, and each deployment's version, as Serve's controller computes them."""
    from ray.serve._private.config import DeploymentConfig
    from ray.serve._private.deploy_utils import get_app_code_version
    from ray.serve._private.version import DeploymentVersion
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(service(spec)[0]["spec"]["serveConfigV2"]))
    [app] = config.applications
    code = get_app_code_version(app)
    found = {}
    for deployment in app.deployments:
        options = deployment.model_dump(exclude_unset=True, exclude={"name"})
        found[deployment.name] = DeploymentVersion(code, DeploymentConfig(**options), {})
    return code, found


@pytest.fixture(scope="module")
def before() -> tuple[str, dict[str, Any]]:
    return versions(BASE)


def pair(
    path: str, before: tuple[str, dict[str, Any]]
) -> tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]:
    """Return the versions before and after a change of a field, with what else the field needs."""
    value, more = CHANGES[path]
    return versions(BASE | more) if more else before, versions(changed(path, value) | more)


@pytest.mark.parametrize("path", [p for p, e in EFFECTS.items() if e in (Effect.IN_PLACE, Effect.NOTHING)])
def test_serve_restarts_no_replica_for_what_is_said_to_change_in_place(
    before: tuple[str, dict[str, Any]], path: str
) -> None:
    before, (code, deployments) = pair(path, before)
    assert code == before[0]
    assert set(deployments) == set(before[1])
    for name, version in deployments.items():
        assert not before[1][name].requires_actor_restart(version), name


@pytest.mark.parametrize("path", [p for p, e in EFFECTS.items() if e is Effect.ENGINES])
def test_serve_restarts_every_replica_for_what_is_said_to_restart_engines(
    before: tuple[str, dict[str, Any]], path: str
) -> None:
    before, (code, deployments) = pair(path, before)
    assert code != before[0]
    for name in set(deployments) & set(before[1]):
        assert before[1][name].requires_actor_restart(deployments[name]), name


def test_a_budget_reaches_running_replicas_by_reconfigure(before: tuple[str, dict[str, Any]]) -> None:
    _, after = versions(changed("spec.reasoning.budget.default", 1000))
    assert all(before[1][name].requires_actor_reconfigure(version) for name, version in after.items())


def test_a_decision_changes_no_replica_that_runs(before: tuple[str, dict[str, Any]]) -> None:
    _, after = versions({**BASE, "replicas": 4})
    for name, version in after.items():
        assert not before[1][name].requires_actor_restart(version)
        assert not before[1][name].requires_actor_reconfigure(version)
