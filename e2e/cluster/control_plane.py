"""A real etcd and kube-apiserver on loopback, as plain processes, from a folder of binaries; for tests.

No scheduler, no controller manager, no node: enough for resources, admission, CEL, subresources and RBAC.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

BIN_ENV = "REASONSCALE_E2E_BIN"
_READY_WITHIN_S = 90.0


def binaries() -> Path | None:
    """Return the folder of binaries that the environment names; None where it lacks what is needed."""
    given = os.environ.get(BIN_ENV)
    folder = Path(given) if given else None
    if folder is None or not all(os.access(folder / name, os.X_OK) for name in ("etcd", "kube-apiserver", "kubectl")):
        return None
    return folder.resolve()


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


@dataclass(slots=True)
class ControlPlane:
    """A running control plane. `start` it, `stop` it; everything it writes is in `folder`."""

    bin: Path
    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    url: str = ""
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def ca(self) -> Path:
        return self.folder / "pki" / "apiserver.crt"

    def _launch(self, name: str, *args: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [str(self.bin / name), *args]
            self._processes.append(
                subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
                )
            )

    def start(self) -> None:
        """Start both and wait until the API server is ready; RuntimeError with the ends of the logs if it never is."""
        pki = self.folder / "pki"
        pki.mkdir(parents=True)
        pki.chmod(0o700)
        etcd, peer, api = free_ports(3)
        self.url = f"https://127.0.0.1:{api}"
        key = pki / "sa.key"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        (pki / "tokens.csv").write_text(f'{self.token},admin,admin,"system:masters"\n')
        self._launch(
            "etcd", "--name=test", f"--data-dir={self.folder / 'etcd'}", "--unsafe-no-fsync", "--log-level=warn",
            f"--listen-client-urls=http://127.0.0.1:{etcd}", f"--advertise-client-urls=http://127.0.0.1:{etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=test=http://127.0.0.1:{peer}",
        )  # fmt: skip
        self._launch(
            "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{etcd}", "--bind-address=127.0.0.1", f"--secure-port={api}",
            "--advertise-address=10.200.0.1", "--endpoint-reconciler-type=none", f"--cert-dir={pki}",
            f"--token-auth-file={pki / 'tokens.csv'}", "--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local", f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}", "--profiling=false",
        )  # fmt: skip
        deadline = time.monotonic() + _READY_WITHIN_S
        while not self._ready():
            if time.monotonic() > deadline or any(p.poll() is not None for p in self._processes):
                ends = [
                    f"{f.name}: " + " | ".join(f.read_text(errors="replace").splitlines()[-5:])
                    for f in self.folder.glob("*.log")
                ]
                self.stop()
                raise RuntimeError("the API server did not become ready: " + "; ".join(ends))
            time.sleep(0.2)
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority-data": base64.b64encode(self.ca.read_bytes()).decode()}}],
            "users": [{"name": "test", "user": {"token": self.token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }  # fmt: skip
        self.kubeconfig.write_text(json.dumps(config))
        self.kubeconfig.chmod(0o600)

    def _ready(self) -> bool:
        if not self.ca.is_file():
            return False
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

    def stop(self) -> None:
        """Stop what was started, the API server first."""
        for process in reversed(self._processes):
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(10)
        self._processes.clear()
