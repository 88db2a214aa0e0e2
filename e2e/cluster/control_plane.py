"""A real Kubernetes control plane as plain processes, from a folder of binaries; for tests.

On loopback it is etcd and the API server alone: enough for resources, admission, CEL, subresources and RBAC. On an address
that pods reach, with `controllers`, it takes a node (see node.py).
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.cluster.pki import Pki, kubeconfig
from e2e.cluster.processes import Processes, wait_until

BIN_ENV = "REASONSCALE_E2E_BIN"
SERVICES = "10.96.0.0/16"
_READY_WITHIN_S = 90.0
_ISSUER = "https://kubernetes.default.svc.cluster.local"


def binaries(names: tuple[str, ...] = ("etcd", "kube-apiserver", "kubectl")) -> Path | None:
    """Return the folder of binaries that the environment names; None where it lacks what is needed."""
    given = os.environ.get(BIN_ENV)
    folder = Path(given) if given else None
    if folder is None or not all(os.access(folder / name, os.X_OK) for name in names):
        return None
    return folder.resolve()


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return ports of an address that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind((host, 0))
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


@dataclass(slots=True)
class ControlPlane:
    """A running control plane. `start` it, `stop` it; everything it writes is in `folder`."""

    bin: Path
    folder: Path
    address: str = "127.0.0.1"
    controllers: bool = False  # the controller manager and the scheduler too
    pods: str = "10.244.0.0/24"
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    url: str = ""
    processes: Processes = field(init=False)
    pki: Pki = field(init=False)
    _commands: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.processes, self.pki = Processes(self.folder), Pki(self.folder / "pki")

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def ca(self) -> Path:
        return self.pki.ca

    def _launch(self, name: str, *args: str) -> None:
        self._commands[name] = [str(self.bin / name), *args]
        self.processes.start(name, self._commands[name])

    def start(self) -> None:
        """Start all and wait until pods could be made; RuntimeError with the ends of the logs if that never is."""
        try:
            self._start_api()
            if self.controllers:
                self._start_controllers()
        except RuntimeError as error:
            ends = self.processes.ends()
            self.stop()
            raise RuntimeError(f"the control plane did not become ready: {error}; {ends}") from None

    def _keys(self) -> tuple[Path, Path]:
        self.pki.make_ca()
        services = (
            f"{SERVICES.rpartition('.')[0]}.1"  # the first address of the range is that of the service `kubernetes`
        )
        names = "".join(f",DNS:kubernetes{x}" for x in ("", ".default", ".default.svc", ".default.svc.cluster.local"))
        self.pki.issue(
            "apiserver", "/CN=kube-apiserver", "serverAuth", f"DNS:localhost{names},IP:127.0.0.1,IP:{self.address},IP:{services}"
        )  # fmt: skip
        self.pki.issue("kubelet-client", "/O=system:masters/CN=kubelet-client", "clientAuth")
        (self.pki.folder / "tokens.csv").write_text(f'{self.token},admin,admin,"system:masters"\n')
        return self.pki.service_account_keys()

    def _start_api(self) -> None:
        pki = self.pki
        private, public = self._keys()
        etcd, peer = free_ports(2)
        (api,) = free_ports(1, self.address)
        self.url = f"https://{self.address}:{api}"
        self._launch(
            "etcd", "--name=test", f"--data-dir={self.folder / 'etcd'}", "--unsafe-no-fsync", "--log-level=warn",
            f"--listen-client-urls=http://127.0.0.1:{etcd}", f"--advertise-client-urls=http://127.0.0.1:{etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=test=http://127.0.0.1:{peer}",
        )  # fmt: skip
        # A loopback address may not be an endpoint: the service `kubernetes` stays without one then.
        here = self.address.startswith("127.")
        endpoint = (
            ["--advertise-address=10.200.0.1", "--endpoint-reconciler-type=none"]
            if here
            else [f"--advertise-address={self.address}"]
        )
        self._launch(
            "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{etcd}", f"--bind-address={self.address}", f"--secure-port={api}",
            *endpoint, f"--client-ca-file={pki.ca}", f"--tls-cert-file={pki.cert('apiserver')}", f"--tls-private-key-file={pki.key('apiserver')}",
            f"--token-auth-file={pki.folder / 'tokens.csv'}", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
            f"--kubelet-client-certificate={pki.cert('kubelet-client')}", f"--kubelet-client-key={pki.key('kubelet-client')}",
            f"--kubelet-certificate-authority={pki.ca}", "--kubelet-preferred-address-types=InternalIP",
            f"--service-cluster-ip-range={SERVICES}", f"--service-account-issuer={_ISSUER}",
            f"--service-account-key-file={public}", f"--service-account-signing-key-file={private}", "--profiling=false",
        )  # fmt: skip
        kubeconfig(self.kubeconfig, self.url, self.ca, {"token": self.token})
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the API server is ready; RuntimeError where it is not, or has ended."""

        def ready() -> bool:
            for name in ("etcd", "kube-apiserver"):
                if self.processes.pid(name) is None:
                    raise RuntimeError(f"{name} has ended")
            return self._ready()

        wait_until(ready, _READY_WITHIN_S, "the API server to be ready")

    def start_again(self, name: str) -> None:
        """Start a process that was killed, as it was."""
        self.processes.start(name, self._commands[name])

    def _start_controllers(self) -> None:
        pki, (manager, scheduler) = self.pki, free_ports(2)
        own = pki.client("kcm", "/CN=system:kube-controller-manager", self.url)
        self._launch(
            "kube-controller-manager", f"--kubeconfig={own}", "--bind-address=127.0.0.1", f"--secure-port={manager}",
            f"--authentication-kubeconfig={own}", f"--authorization-kubeconfig={own}", "--use-service-account-credentials",
            f"--root-ca-file={pki.ca}", f"--service-account-private-key-file={pki.key('sa')}", f"--cluster-signing-cert-file={pki.ca}",
            f"--cluster-signing-key-file={pki.key('ca')}", f"--cluster-cidr={self.pods}", f"--service-cluster-ip-range={SERVICES}",
            "--allocate-node-cidrs=false", "--leader-elect=false", "--profiling=false", "--kube-api-qps=200", "--kube-api-burst=400",
        )  # fmt: skip
        own = pki.client("scheduler", "/CN=system:kube-scheduler", self.url)
        self._launch(
            "kube-scheduler", f"--kubeconfig={own}", "--bind-address=127.0.0.1", f"--secure-port={scheduler}",
            f"--authentication-kubeconfig={own}", f"--authorization-kubeconfig={own}", "--leader-elect=false", "--profiling=false",
        )  # fmt: skip

        def pods_can_be_made() -> bool:
            return self.kubectl("-n", "default", "get", "serviceaccount", "default", check=False).returncode == 0

        wait_until(pods_can_be_made, _READY_WITHIN_S, "the default service account to be made")

    def _ready(self) -> bool:
        request = urllib.request.Request(f"{self.url}/readyz", headers={"Authorization": f"Bearer {self.token}"})
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(self.ca))),
        )
        try:
            with opener.open(request, timeout=5) as answer:
                return int(answer.status) == 200
        except (OSError, urllib.error.URLError):
            return False

    def kubectl(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the cluster's admin."""
        command = [str(self.bin / "kubectl"), "--kubeconfig", str(self.kubeconfig), *args]
        return subprocess.run(command, capture_output=True, text=True, check=check, timeout=60)

    def apply(self, manifest: dict[str, Any]) -> None:
        """Apply one object."""
        command = [str(self.bin / "kubectl"), "--kubeconfig", str(self.kubeconfig), "apply", "-f", "-"]
        subprocess.run(command, input=json.dumps(manifest), capture_output=True, text=True, check=True, timeout=60)

    def stop(self) -> None:
        """Stop what was started, the API server before etcd."""
        for name in ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"):
            self.processes.stop(name)
