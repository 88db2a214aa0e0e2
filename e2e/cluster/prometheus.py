"""A real Prometheus beside the cluster, with the chart's rules. Debian's is built without Kubernetes' discovery: it asks the cluster's DNS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import httpx
from e2e.cluster.control_plane import ControlPlane, free_ports
from e2e.cluster.processes import wait_until

_CHART = Path(__file__).parents[2] / "charts" / "reasonscale"
# A headless service each: its namespace, and the label of the pods behind it.
_FOUND_BY: Final = {
    "models": ("default", {"app.kubernetes.io/managed-by": "reasonscale"}),
    "operator": ("reasonscale", {"app.kubernetes.io/name": "reasonscale"}),
}


class Prometheus:
    """One Prometheus on the node's address, where pods reach it."""

    def __init__(self, plane: ControlPlane, interval_s: int = 5) -> None:
        self._plane, self._interval_s = plane, interval_s
        self._folder = plane.folder / "prometheus"
        (self._port,) = free_ports(1, plane.address)

    @property
    def url(self) -> str:
        return f"http://{self._plane.address}:{self._port}"

    def _config(self) -> dict[str, Any]:
        def job(name: str, port: int) -> dict[str, Any]:
            names = [f"{name}.{_FOUND_BY[name][0]}.svc.cluster.local"]
            found = {"names": names, "type": "A", "port": port, "refresh_interval": "5s"}
            return {"job_name": name, "dns_sd_configs": [found]}

        return {
            "global": {"scrape_interval": f"{self._interval_s}s", "scrape_timeout": "4s", "evaluation_interval": "5s"},
            "rule_files": [str(_CHART / "alerts.yaml"), str(_CHART / "recording.yaml")],
            "scrape_configs": [job("models", 8080), job("operator", 9090)],
        }

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._write_config()
        for name, (namespace, selector) in _FOUND_BY.items():
            self._plane.kubectl("create", "namespace", namespace, check=False)
            self._plane.apply(_service(name, namespace, selector))
        # A resolv.conf of its own, which nobody else on this machine sees.
        resolver = self._folder / "resolv.conf"
        resolver.write_text(f"nameserver {self._plane.address}\n")
        alone = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', str(resolver)]
        self._plane.processes.start(
            "prometheus",
            [
                *alone, "prometheus", f"--config.file={config}", f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address={self._plane.address}:{self._port}", "--web.enable-lifecycle",
            ],
        )  # fmt: skip
        wait_until(self._answers, 60, "Prometheus to answer")

    def _write_config(self) -> Path:
        config = self._folder / "prometheus.json"
        config.write_text(json.dumps(self._config()))
        return config

    def look_every(self, seconds: int) -> None:
        """Scrape at another interval from now on."""
        self._interval_s = seconds
        self._write_config()
        httpx.post(f"{self.url}/-/reload", trust_env=False, timeout=10).raise_for_status()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", trust_env=False, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def query(self, text: str) -> list[dict[str, Any]]:
        """Return an instant query's results."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": text}, trust_env=False, timeout=30)
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def stop(self) -> None:
        """End it."""
        self._plane.processes.stop("prometheus")


def _service(name: str, namespace: str, selector: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector, "ports": [{"name": "metrics", "port": 8080}]},
    }  # fmt: skip
