"""A real node on this machine: containerd and runc, the bridge CNI, kubelet, kube-proxy and CoreDNS. Root; one a machine."""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from e2e.cluster.containerd import Containerd
from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.network import Network
from e2e.cluster.processes import wait_until

NAME = "node1"
CNI_BIN = Path("/usr/lib/cni")
_NETNS = Path("/run/netns")
_COREFILE = """\
cluster.local:53 {{
  bind {address}
  kubernetes cluster.local {{
    kubeconfig {kubeconfig} test
    ttl 1
  }}
  errors
}}
.:53 {{
  bind {address}
  template ANY ANY {{
    rcode NXDOMAIN
  }}
}}
"""


class Node:
    """The node of a control plane."""

    def __init__(self, plane: ControlPlane, network: Network, containerd: Containerd) -> None:
        self._plane, self._network, self._containerd = plane, network, containerd
        self.folder = plane.folder / "node"

    def start(self, pause: str) -> None:
        """Start the network and containerd: images can be imported then."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "netns").write_text(json.dumps(sorted(str(p) for p in _NETNS.glob("cni-*"))))
        self._network.up()
        conf = self.folder / "cni"
        conf.mkdir(exist_ok=True)
        (conf / "10-bridge.conflist").write_text(self._network.cni())
        self._containerd.start(pause, CNI_BIN, conf)

    def join(self, gpus: int = 0) -> None:
        """Start DNS, kubelet and kube-proxy and wait until the node is Ready. `gpus`: an extended resource that nothing is behind."""
        plane, processes = self._plane, self._plane.processes
        corefile = self.folder / "Corefile"
        corefile.write_text(_COREFILE.format(address=plane.address, kubeconfig=plane.kubeconfig))
        processes.start("coredns", [plane.bin / "coredns", "-conf", corefile])
        own = plane.pki.client("kubelet", f"/O=system:nodes/CN=system:node:{NAME}", plane.url)
        plane.pki.issue("kubelet-server", f"/O=system:nodes/CN=system:node:{NAME}", "serverAuth", f"IP:{plane.address},DNS:{NAME}")  # fmt: skip
        (self.folder / "kubelet.yaml").write_text(json.dumps(self._kubelet()))
        processes.start(
            "kubelet",
            [
                plane.bin / "kubelet", "--config", self.folder / "kubelet.yaml", "--kubeconfig", own, "--root-dir", self.folder / "kubelet",
                "--hostname-override", NAME, "--node-ip", plane.address,
            ],
        )  # fmt: skip
        own = plane.pki.client("kube-proxy", "/CN=system:kube-proxy", plane.url)
        (self.folder / "kube-proxy.yaml").write_text(json.dumps(self._proxy(own)))
        processes.start("kube-proxy", [plane.bin / "kube-proxy", "--config", self.folder / "kube-proxy.yaml"])
        wait_until(self._ready, 90, "the node to be Ready", 0.5)
        if gpus:
            self.set_gpus(gpus)

    def set_gpus(self, gpus: int) -> None:
        """Patch GPUs onto the node: the one thing that is not real."""
        amounts = {"nvidia.com/gpu": str(gpus)}
        patch = json.dumps({"status": {"capacity": amounts, "allocatable": amounts}})
        self._plane.kubectl("patch", "node", NAME, "--subresource=status", "--type=merge", "-p", patch)

    def _ready(self) -> bool:
        path = '{.status.conditions[?(@.type=="Ready")].status}'
        return self._plane.kubectl("get", "node", NAME, "-o", f"jsonpath={path}", check=False).stdout == "True"

    def _kubelet(self) -> dict[str, Any]:
        pki = self._plane.pki
        (self.folder / "resolv.conf").write_text("")  # pods ask the cluster's DNS alone
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": {"clientCAFile": str(pki.ca)}},
            "authorization": {"mode": "Webhook"},
            "address": self._plane.address,
            "tlsCertFile": str(pki.cert("kubelet-server")), "tlsPrivateKeyFile": str(pki.key("kubelet-server")),
            "cgroupDriver": "cgroupfs", "containerRuntimeEndpoint": f"unix://{self._containerd.socket}",
            "clusterDomain": "cluster.local", "clusterDNS": [self._plane.address], "resolvConf": str(self.folder / "resolv.conf"),
            "failSwapOn": False, "healthzBindAddress": "127.0.0.1", "registerNode": True, "maxPods": 100, "makeIPTablesUtilChains": False,
            "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
            "nodeStatusUpdateFrequency": "5s", "syncFrequency": "10s", "podLogsDir": str(self.folder / "podlogs"), "shutdownGracePeriod": "0s",
        }  # fmt: skip

    def _proxy(self, kubeconfig: Path) -> dict[str, Any]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "iptables",
            "clientConnection": {"kubeconfig": str(kubeconfig)}, "clusterCIDR": self._network.pods, "hostnameOverride": NAME,
            "healthzBindAddress": "127.0.0.1:10256", "metricsBindAddress": "127.0.0.1:10249",
            "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "iptables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
        }  # fmt: skip

    def stop(self) -> None:
        """End pods, processes, mounts, namespaces, network and cgroups of the node."""
        plane, processes = self._plane, self._plane.processes
        with suppress(subprocess.SubprocessError, OSError):
            if processes.pid("kubelet") is not None and processes.pid("kube-apiserver") is not None:
                plane.kubectl("cordon", NAME, check=False)
                plane.kubectl(
                    "delete", "pods", "-A", "--all", "--grace-period=1", "--timeout=20s", "--force", check=False
                )
        processes.stop("kubelet")
        self._containerd.stop()
        processes.stop("kube-proxy")
        processes.stop("coredns")
        subprocess.run([plane.bin / "kube-proxy", "--cleanup"], capture_output=True, check=False)
        for chain in ("INPUT", "OUTPUT"):  # what --cleanup leaves
            subprocess.run(["iptables", "-D", chain, "-j", "KUBE-FIREWALL"], capture_output=True, check=False)
        for flag in ("-F", "-X"):
            subprocess.run(["iptables", flag, "KUBE-FIREWALL"], capture_output=True, check=False)
        self._unmount()
        self._network.down()
        for controller in Path("/sys/fs/cgroup").glob("*/kubepods"):
            _remove_cgroups(controller)

    def _unmount(self) -> None:
        for _ in range(2):  # one that lies under another shows once that is gone
            mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
            for place in sorted((m for m in mounts if m.startswith(f"{self._plane.folder}/")), reverse=True):
                subprocess.run(["umount", "-l", place], capture_output=True, check=False)
        noted = self.folder / "netns"
        before = json.loads(noted.read_text()) if noted.is_file() else None
        for place in _NETNS.glob("cni-*") if before is not None else ():
            if str(place) not in before:
                subprocess.run(["umount", str(place)], capture_output=True, check=False)
                place.unlink(missing_ok=True)


def _remove_cgroups(root: Path) -> None:
    deadline = time.monotonic() + 5
    while root.is_dir() and time.monotonic() < deadline:
        for folder in sorted((p for p in root.rglob("*") if p.is_dir()), reverse=True):
            with suppress(OSError):
                folder.rmdir()
        with suppress(OSError):
            root.rmdir()
            return
        time.sleep(0.3)
