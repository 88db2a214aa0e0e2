"""One cluster for all tests of this folder: this machine's own, unless the environment names one. Deselected with a line where neither can be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.cluster.machine import CACHE_ENV, Machine, missing
from e2e.cluster.target import Target, own_cluster
from e2e.readme import commands
from tests.selection import Needs, deselect, nothing_is_no_failure

NEEDS: Needs = {
    "cluster": (lambda: own_cluster() or missing() is None, missing() or ""),
    "machine": (lambda: not own_cluster() and missing() is None, missing() or "it stops processes of a cluster that is its own"),
}  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    deselect(config, items, NEEDS)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    nothing_is_no_failure(session, exitstatus)


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Start a cluster, or take the one that the environment names; what was started is stopped again."""
    if own_cluster():
        yield Target.of_environment()
        return
    cache = os.environ.get(CACHE_ENV)
    machine = Machine(Path(tmp_path_factory.mktemp("e2e")), Path(cache) if cache else None)
    machine.up()
    try:
        yield Target.of_machine(machine)
    finally:
        machine.down()


@pytest.fixture(scope="session")
def installed(target: Target) -> Target:
    """Install the charts by the README's commands, where no test before has."""
    for command in commands("charts"):
        target.sh(f"{command} || true")
    target.sh("kubectl -n reasonscale rollout status deploy/reasonscale --timeout=120s", 130)
    return target
