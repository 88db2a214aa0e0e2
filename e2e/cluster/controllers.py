"""What a control plane needs so that pods are placed and what is owned is collected: a scheduler and a controller manager."""

from __future__ import annotations

from e2e.cluster.control_plane import ControlPlane, free_ports


class FullPlane(ControlPlane):
    """A control plane with its controllers, all on loopback; still without a real node."""

    def start(self) -> None:
        """Start everything; return when the API server is ready."""
        super().start()
        manager, scheduler = free_ports(2)
        pki, config = self.folder / "pki", str(self.kubeconfig)
        self._launch(
            "kube-controller-manager", f"--kubeconfig={config}", "--bind-address=127.0.0.1", f"--secure-port={manager}",
            f"--root-ca-file={self.ca}", f"--service-account-private-key-file={pki / 'sa.key'}", "--allocate-node-cidrs=false",
            f"--cert-dir={pki / 'manager'}", "--leader-elect=false", "--profiling=false", "--kube-api-qps=200", "--kube-api-burst=400",
        )  # fmt: skip
        self._launch(
            "kube-scheduler", f"--kubeconfig={config}", "--bind-address=127.0.0.1", f"--secure-port={scheduler}",
            f"--cert-dir={pki / 'scheduler'}", "--leader-elect=false", "--profiling=false",
        )  # fmt: skip
