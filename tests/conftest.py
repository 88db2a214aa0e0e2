"""What this machine cannot run is deselected by its marker, with one printed line for each; nothing is skipped."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections import Counter
from collections.abc import Callable

import pytest
from e2e.cluster.control_plane import BIN_ENV, binaries
from hypothesis import HealthCheck, settings

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


# marker -> (is it there?, what is missing)
NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
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
    missing = {marker: why for marker, (there, why) in NEEDS.items() if not there()}
    if "soak" not in (config.option.markexpr or ""):
        missing["soak"] = "soak tests run under `make soak`"
    kept, dropped, counts = [], [], Counter[str]()
    for item in items:
        lacking = next((marker for marker in missing if item.get_closest_marker(marker)), None)
        if lacking is None:
            kept.append(item)
        else:
            dropped.append(item)
            counts[lacking] += 1
    if dropped:
        items[:] = kept
        config.hook.pytest_deselected(items=dropped)
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        for marker, count in counts.items():
            if reporter is not None:
                reporter.write_line(f"deselected {count} tests marked `{marker}`: {missing[marker]}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    # A folder of which this machine can run nothing is no failure: the line above says what is missing.
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.option.markexpr != "soak":
        session.exitstatus = pytest.ExitCode.OK
