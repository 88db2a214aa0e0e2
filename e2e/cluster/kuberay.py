"""The real KubeRay operator as a process beside the cluster; it reaches Ray's heads through the API server's proxy."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from e2e.cluster.control_plane import ControlPlane, free_ports
from e2e.cluster.processes import wait_until

CRDS_ENV = "REASONSCALE_KUBERAY_CRDS"


class KubeRay:
    """KubeRay before one control plane."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    def install(self) -> None:
        """Apply its CRDs and wait until they are served."""
        plane = self._plane
        plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", os.environ[CRDS_ENV])
        wait_until(
            lambda: "rayservices" in plane.kubectl("get", "--raw", "/apis/ray.io/v1", check=False).stdout, 30, "KubeRay's kinds to be served"
        )  # fmt: skip

    def start(self) -> None:
        """Start it and wait until it listens."""
        plane = self._plane
        metrics, probe = free_ports(2)
        command: list[str | Path] = [
            plane.bin / "kuberay-operator", "--use-kubernetes-proxy", "--enable-leader-election=false",
            "--metrics-addr", f"127.0.0.1:{metrics}", "--health-probe-bind-address", f"127.0.0.1:{probe}", "--log-stdout-encoder", "console",
        ]  # fmt: skip
        plane.processes.start("kuberay-operator", command, {"KUBECONFIG": str(plane.kubeconfig)})

        def listens() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", probe), timeout=1):
                return True
            return False

        wait_until(listens, 30, "KubeRay to listen")

    def kill(self) -> None:
        """Kill it at once."""
        self._plane.processes.kill("kuberay-operator")

    def stop(self) -> None:
        """End it."""
        self._plane.processes.stop("kuberay-operator")
