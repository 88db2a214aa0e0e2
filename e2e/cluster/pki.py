"""Keys, certificates and kubeconfigs of a test cluster, made by openssl and kept in one folder."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
from pathlib import Path
from typing import Any


def _openssl(*args: str | Path) -> None:
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)


class Pki:
    """One certificate authority and what it signed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def cert(self, name: str) -> Path:
        return self.folder / f"{name}.crt"

    def make_ca(self) -> None:
        """Make the authority."""
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30", "-subj", "/CN=e2e-ca",
            "-addext", "keyUsage=critical,keyCertSign,digitalSignature", "-keyout", self.key("ca"), "-out", self.ca,
        )  # fmt: skip

    def issue(self, name: str, subject: str, usage: str, names: str = "") -> None:
        """Sign a certificate. `usage`: openssl's extendedKeyUsage; `names`: its subjectAltName."""
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text(f"extendedKeyUsage={usage}\n" + (f"subjectAltName={names}\n" if names else ""))
        _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", subject,
                 "-keyout", self.key(name), "-out", request)  # fmt: skip
        _openssl("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self.key("ca"), "-set_serial", "0x" + secrets.token_hex(8),
                 "-days", "30", "-extfile", extensions, "-out", self.cert(name))  # fmt: skip

    def service_account_keys(self) -> tuple[Path, Path]:
        """Make the pair that service accounts' tokens are signed and checked with; private, public."""
        private, public = self.key("sa"), self.folder / "sa.pub"
        _openssl("genrsa", "-out", private, "2048")
        _openssl("rsa", "-in", private, "-pubout", "-out", public)
        return private, public

    def client(self, name: str, subject: str, server: str) -> Path:
        """Sign a client's certificate and return a kubeconfig with it."""
        self.issue(name, subject, "clientAuth,serverAuth" if subject.startswith("/O=system:nodes") else "clientAuth")
        user = {"client-certificate-data": _b64(self.cert(name)), "client-key-data": _b64(self.key(name))}
        return kubeconfig(self.folder / f"{name}.kubeconfig", server, self.ca, user)


def _b64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def kubeconfig(path: Path, server: str, ca: Path, user: dict[str, Any]) -> Path:
    """Write a kubeconfig of one cluster and one user."""
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority-data": _b64(ca)}}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }  # fmt: skip
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return path
