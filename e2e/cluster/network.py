"""The pods' network of one machine: a bridge, routes that keep its addresses on this machine, and rules; all taken away again."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


def _run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@dataclass(frozen=True, slots=True)
class Network:
    """`address`: the node's and the API server's, on lo. Pods reach each other, services and this host, and nothing outside."""

    folder: Path
    address: str
    pods: str
    services: str
    bridge: str

    @property
    def gateway(self) -> str:
        return self.pods.rpartition(".")[0] + ".1"

    def _rules(self) -> list[list[str]]:
        return [
            ["FORWARD", "-i", self.bridge, "!", "-o", self.bridge, "-j", "REJECT"],
            ["FORWARD", "-i", self.bridge, "-o", self.bridge, "-j", "ACCEPT"],
        ]

    def claim_address(self) -> None:
        """Put the node's address on lo: it never leaves this machine."""
        if not _run("ip", "addr", "add", f"{self.address}/32", "dev", "lo"):
            raise RuntimeError(f"the address {self.address} can't be put on lo: it is taken, or this is not root")

    def up(self) -> None:
        """Make the bridge, routes and rules."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "network.json").write_text(json.dumps({"ip_forward": _FORWARD.read_text().strip()}))
        _FORWARD.write_text("1")
        for wanted in (
            ["ip", "link", "add", self.bridge, "type", "bridge"],
            ["ip", "addr", "add", f"{self.gateway}/{self.pods.partition('/')[2]}", "dev", self.bridge],
            ["ip", "link", "set", self.bridge, "up"],
            # Without the bridge they are unreachable, rather than sent out of a network card.
            *(["ip", "route", "add", "unreachable", x, "metric", "4096"] for x in (self.pods, self.services)),
            ["ip", "route", "add", self.services, "dev", self.bridge],
            *(["iptables", "-I", *rule] for rule in self._rules()),
        ):
            if not _run(*wanted):
                raise RuntimeError(f"the pods' network can't be made: {' '.join(wanted)}")

    def down(self) -> None:
        """Take all of it away; what is gone already is none the worse."""
        for rule in self._rules():
            _run("iptables", "-D", *rule)
        _run("ip", "link", "del", self.bridge)
        for cidr in (self.pods, self.services):
            _run("ip", "route", "del", "unreachable", cidr, "metric", "4096")
        _run("ip", "addr", "del", f"{self.address}/32", "dev", "lo")
        noted = self.folder / "network.json"
        if noted.is_file():
            _FORWARD.write_text(json.loads(noted.read_text())["ip_forward"])
            noted.unlink()

    def cni(self) -> str:
        """Return the CNI plugins' configuration."""
        bridge = {
            "type": "bridge", "bridge": self.bridge, "isGateway": True, "ipMasq": False, "hairpinMode": True,
            "ipam": {
                "type": "host-local", "dataDir": str(self.folder / "ipam"),
                "ranges": [[{"subnet": self.pods}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        }  # fmt: skip
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        return json.dumps({"cniVersion": "0.4.0", "name": "e2e", "plugins": [bridge, ports]})
