"""What tests want of a machine, by marker; see selection.py."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest
from e2e.cluster.control_plane import BIN_ENV, binaries
from hypothesis import HealthCheck, settings
from tests.selection import Needs, deselect, nothing_is_no_failure

# Machines are shared and slow at times: an example's time says nothing. CI draws the same examples each time,
# so that a red run is a change's fault; `here` keeps looking for new ones.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)
settings.register_profile("ci", parent=settings.get_profile("here"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


def _has_engine() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("ray", "vllm"))


def _has_fleet() -> bool:
    """Fake nodes need a route on loopback, which root alone may set."""
    folder = binaries()
    names = ("kwok", "kuberay-operator", "kube-controller-manager", "kube-scheduler")
    return os.geteuid() == 0 and folder is not None and all(os.access(folder / name, os.X_OK) for name in names)


NEEDS: Needs = {
    "engine": (_has_engine, "Ray and vLLM are not installed (make setup)"),
    "prometheus": (
        lambda: shutil.which("prometheus") is not None,
        "no `prometheus` on PATH (apt-get install prometheus)",
    ),
    "kuberay": (
        lambda: os.path.isfile(os.path.join(os.environ.get("REASONSCALE_KUBERAY_CRDS", ""), "ray.io_rayservices.yaml")),
        "REASONSCALE_KUBERAY_CRDS names no folder with KubeRay's CRDs",
    ),
    "fleet": (_has_fleet, f"not root, or {BIN_ENV} names no folder with kwok, kuberay-operator and the controllers"),
    "kube": (lambda: binaries() is not None, f"{BIN_ENV} names no folder with etcd, kube-apiserver and kubectl"),
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    deselect(config, items, NEEDS)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    nothing_is_no_failure(session, exitstatus)
