"""The whole of it on this machine: control plane, node, images, KubeRay, Prometheus. `up`, `down`; a run that died is cleared up by the next.

python -m e2e.cluster.machine up FOLDER      prints what to export; `down FOLDER` ends all of it
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from e2e.cluster.containerd import Containerd
from e2e.cluster.control_plane import BIN_ENV, SERVICES, ControlPlane, binaries
from e2e.cluster.kuberay import CRDS_ENV, KubeRay
from e2e.cluster.network import Network
from e2e.cluster.node import CNI_BIN, Node
from e2e.cluster.processes import stat
from e2e.cluster.prometheus import Prometheus
from e2e.images import contents

CACHE_ENV: Final = "REASONSCALE_E2E_CACHE"
ADDRESS: Final = "10.201.0.1"
PODS: Final = "10.245.0.0/24"
BRIDGE: Final = "rs-e2e"
_NOTE: Final = Path("/run/reasonscale-e2e.json")  # whose node this machine runs
BINARIES: Final = (
    "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl", "coredns", "helm",
    "kuberay-operator", "pause",
)  # fmt: skip
PROGRAMS: Final = (
    "containerd",
    "runc",
    "ctr",
    "iptables",
    "conntrack",
    "socat",
    "debootstrap",
    "prometheus",
    "openssl",
    "ip",
)


def missing() -> str | None:
    """Return what this machine lacks to be a cluster; None where it has all."""
    if sys.version_info[:2] != (3, 11):
        # The images' Python is Debian 12's, and the packages in them are this environment's.
        return f"the images need Python 3.11, this is {sys.version_info.major}.{sys.version_info.minor} (PYTHON=python3.11 make setup)"
    if os.geteuid() != 0:
        return "a node needs root: containers, mounts and a network"
    if binaries(BINARIES) is None:
        return f"{BIN_ENV} names no folder with {', '.join(BINARIES)}"
    lacking = [x for x in PROGRAMS if shutil.which(x) is None]
    if not (CNI_BIN / "bridge").is_file():
        lacking.append(f"{CNI_BIN}/bridge")
    if lacking:
        return f"{', '.join(lacking)} missing (e2e/packages.sh installs them on Debian)"
    if not Path(os.environ.get(CRDS_ENV, ""), "ray.io_rayservices.yaml").is_file():
        return f"{CRDS_ENV} names no folder with KubeRay's CRDs"
    return None


class Machine:
    """A cluster on this machine. `folder`: all it writes, but what `cache` keeps between runs: images and their Debian."""

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        found = binaries(BINARIES)
        assert found is not None
        self.bin, self.folder, self.cache = found, folder, cache or folder / "cache"
        self.plane = ControlPlane(found, folder, ADDRESS, controllers=True, pods=PODS)
        network = Network(folder / "network", ADDRESS, PODS, SERVICES, BRIDGE)
        self._network = network
        self.containerd = Containerd(folder / "containerd", self.cache / "containerd", self.plane.processes)
        self.node = Node(self.plane, network, self.containerd)
        self.kuberay = KubeRay(self.plane)
        self.engine_image = contents.engine_name()
        self.operator_image = ""
        self.prometheus: Prometheus | None = None
        self.took: dict[str, float] = {}

    def _timed(self, name: str, work: Callable[[], object]) -> None:
        began = time.monotonic()
        work()
        self.took[name] = time.monotonic() - began
        print(f"e2e: {name}: {self.took[name]:.1f} s", file=sys.stderr, flush=True)

    def _claim(self, kept: bool) -> None:
        """Take this machine's one node; clear up after a run that died without doing so itself."""
        if _NOTE.is_file():
            there = json.loads(_NOTE.read_text())
            found = stat(there["pid"]) if there["pid"] else None
            if not there["pid"] or (found is not None and found[1] == there["began"]):
                raise RuntimeError(
                    f"this machine's node is in use: python -m e2e.cluster.machine down {there['folder']}"
                )
            Machine(Path(there["folder"]), self.cache).down()
        me = stat(os.getpid())
        pid, began = (0, "") if kept or me is None else (os.getpid(), me[1])
        _NOTE.write_text(json.dumps({"folder": str(self.folder), "pid": pid, "began": began}))

    def up(self, kept: bool = False) -> None:
        """Start everything; what was started is stopped again where something fails. `kept`: it outlives this process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim(kept)
        self.cache.mkdir(parents=True, exist_ok=True)
        try:
            self._network.claim_address()
            self._timed("control plane", self.plane.start)
            self._timed("containerd and network", lambda: self.node.start(contents.PAUSE))
            self._timed("images", self._images)
            self._timed("node", self.node.join)
            self._timed("KubeRay", self._kuberay)
            self._timed("Prometheus", self._prometheus)
        except BaseException:
            self.down()
            raise

    def _images(self) -> None:
        pause = contents.pause(self.bin / "pause")
        if not self.containerd.has(pause.name):
            contents.bring(self.containerd, pause)
        if not self.containerd.has(self.engine_image):
            self._timed("Debian", lambda: contents.debian(self.cache))
            self._timed("engine image", lambda: contents.bring(self.containerd, contents.engine(self.cache)))
        self._timed("operator image", self._operator_image)

    def _operator_image(self) -> None:
        image = contents.operator(self.cache)
        if not self.containerd.has(image.name):
            contents.bring(self.containerd, image)
        self.operator_image = image.name

    def _kuberay(self) -> None:
        self.kuberay.install()
        self.kuberay.start()

    def _prometheus(self) -> None:
        self.prometheus = Prometheus(self.plane)
        self.prometheus.start()

    def down(self) -> None:
        """End everything that was started here, also by a process that is gone."""
        for name in ("prometheus", "kuberay-operator"):
            self.plane.processes.stop(name)
        self.node.stop()
        self.plane.stop()
        _NOTE.unlink(missing_ok=True)


def main(arguments: list[str]) -> int:
    """Run the command line."""
    if len(arguments) != 2 or arguments[0] not in ("up", "down"):
        print(__doc__, file=sys.stderr)
        return 2
    if (lacking := missing()) is not None:
        print(f"e2e: {lacking}", file=sys.stderr)
        return 1
    cache = os.environ.get(CACHE_ENV)
    machine = Machine(Path(arguments[1]).resolve(), Path(cache) if cache else None)
    if arguments[0] == "down":
        machine.down()
        return 0
    machine.up(kept=True)
    assert machine.prometheus is not None
    print(
        f"export KUBECONFIG={machine.plane.kubeconfig} REASONSCALE_E2E_IMAGE={machine.operator_image} "
        f"REASONSCALE_E2E_ENGINE_IMAGE={machine.engine_image} REASONSCALE_E2E_PROMETHEUS={machine.prometheus.url}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
