"""A containerd of our own: its socket and state in the cluster's folder, its images in a folder that may be kept between runs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import IO

from e2e.cluster.processes import Processes, wait_until

_CONFIG = """\
version = 2
root = "{images}"
state = "{state}"
[grpc]
  address = "{socket}"
[debug]
  level = "warn"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  enable_selinux = false
  disable_apparmor = true
  # Where this process may not lower it, runc dies with "can't get final child's PID from pipe: EOF".
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_bin}"
    conf_dir = "{cni_conf}"
"""


class Containerd:
    """One containerd. `images`: where it keeps them."""

    def __init__(self, folder: Path, images: Path, processes: Processes) -> None:
        self.folder, self.images, self._processes = folder, images, processes
        self.socket = folder / "cd.sock"

    def start(self, pause: str, cni_bin: Path, cni_conf: Path) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.images.mkdir(parents=True, exist_ok=True)
        config = self.folder / "containerd.toml"
        config.write_text(
            _CONFIG.format(
                images=self.images, state=self.folder / "state", socket=self.socket, pause=pause, cni_bin=cni_bin, cni_conf=cni_conf
            )
        )  # fmt: skip
        self._processes.start("containerd", ["containerd", "-c", config])
        wait_until(lambda: self.ctr("version").returncode == 0, 30, "containerd to answer")

    def ctr(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run containerd's own client in Kubernetes' namespace."""
        command = ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", *args]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def has(self, image: str) -> bool:
        """Tell whether an image is there, whole and unpacked."""
        found = self.ctr("images", "check", f"name=={image}").stdout
        return any(line.split()[0] == image and line.split()[-1] == "true" for line in found.splitlines()[1:])

    def importing(self) -> subprocess.Popen[bytes]:
        """Return an import that reads an archive from its stdin."""
        command = ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", "images", "import", "-"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def clear(self) -> None:
        """End every container that is left."""
        for task in self.ctr("tasks", "ls", "-q").stdout.split():
            self.ctr("tasks", "rm", "--force", task)
        for container in self.ctr("containers", "ls", "-q").stdout.split():
            self.ctr("containers", "rm", container)

    def stop(self) -> None:
        """End it, and what it has mounted."""
        if self._processes.pid("containerd") is not None:
            self.clear()
        self._processes.stop("containerd")


def stdin_of(process: subprocess.Popen[bytes]) -> IO[bytes]:
    """Return a process's stdin, which is a pipe."""
    assert process.stdin is not None
    return process.stdin
