"""One cluster for all tests of this folder: this machine's own, unless the environment names one. Deselected with a line where neither can be."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.cluster.machine import CACHE_ENV, Machine, missing
from e2e.cluster.target import Target, own_cluster, until
from e2e.model import NAME, START_S, resource
from e2e.readme import commands
from tests.selection import Needs, deselect, nothing_is_no_failure

from reasonscale.api import constants as c

NEEDS: Needs = {
    "cluster": (lambda: own_cluster() or missing() is None, missing() or ""),
    "machine": (lambda: not own_cluster() and missing() is None, missing() or "it stops processes of a cluster that is its own"),
}  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    deselect(config, items, NEEDS)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    nothing_is_no_failure(session, exitstatus)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Start a cluster, or take the one that the environment names; what was started is stopped again."""
    if own_cluster():
        yield Target.of_environment()
        return
    signal.signal(signal.SIGTERM, _interrupt)  # a run that is ended from outside stops what it started too
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


@pytest.fixture(scope="session")
def serving(installed: Target) -> Iterator[Target]:
    """Start the model and wait until it serves; it is deleted at the end."""
    installed.apply(resource())
    began = time.monotonic()
    try:
        until(lambda: installed.ready(NAME), 2 * START_S, "the model serves")
        print(f"e2e: a model serves after {time.monotonic() - began:.0f} s")
        yield installed
    except BaseException:
        print(installed.story(NAME))
        raise
    finally:
        installed.kubectl("delete", c.PLURAL, NAME, "--ignore-not-found", "--wait=false")
        until(lambda: not installed.pods(NAME), 120, "the pods go")
