"""What is in the images: the same as the files in images/ make with Docker, from what this machine has already."""

from __future__ import annotations

import compileall
import hashlib
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from e2e.cluster.containerd import Containerd, stdin_of
from e2e.images.archive import Entry, Image, folders, size_of, tree, write
from e2e.images.archive import text as file
from e2e.images.python import VENV, environment

ROOT: Final = Path(__file__).parents[2]
REGISTRY: Final = "reasonscale.test"
PAUSE: Final = f"{REGISTRY}/pause:1"
SUITE: Final = "bookworm"
# KubeRay's probes call bash and wget; vLLM calls a C compiler when an engine starts.
PACKAGES: Final = (
    "python3",
    "procps",
    "iproute2",
    "wget",
    "ca-certificates",
    "gcc",
    "libc6-dev",
    "libnuma1",
    "libstdc++6",
)
_LEFT_OUT: Final = (
    "proc",
    "sys",
    "dev",
    "run",
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
)
_CODE: Final = "opt/reasonscale"
_PATH: Final = f"/{VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENV: Final = {"PATH": _PATH, "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}


def _digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()[:12]


def debian(cache: Path) -> Path:
    """Return a Debian root, made by debootstrap where the cache has none. As root."""
    root = cache / f"debian-{_digest(repr((SUITE, PACKAGES)).encode())}"
    if (root / ".done").is_file():
        return root
    shutil.rmtree(root, ignore_errors=True)
    log = root.with_suffix(".log")
    with log.open("wb") as out:
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)]
        made = subprocess.run(command, stdout=out, stderr=out, check=False).returncode == 0
    if not made:
        raise RuntimeError(f"debootstrap failed: {' | '.join(log.read_text(errors='replace').splitlines()[-3:])}")
    for name, uid in (("ray", 1000), ("reasonscale", 10001)):
        subprocess.run(
            ["chroot", root, "useradd", "-u", str(uid), "-g", "users", "-m", name], check=True, capture_output=True
        )
    version = next((root / "usr/bin").glob("python3.*")).name.removeprefix("python")
    if version != f"{sys.version_info.major}.{sys.version_info.minor}":
        raise RuntimeError(
            f"Debian {SUITE} has Python {version}, .venv has {sys.version.split()[0]}: set PYTHON for `make setup`"
        )
    (root / ".done").touch()
    return root


def _debian_layer(cache: Path) -> list[Entry]:
    return [e for e in tree(debian(cache), own=True, without=_LEFT_OUT) if e.name != ".done"]


def _wheel(folder: Path) -> Path:
    """Build our wheel and unpack it with bytecode that holds wherever it is copied to; return the folder."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"SOURCE_DATE_EPOCH": "1577836800"}
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "wheel"], cwd=ROOT, env=env, check=True, capture_output=True)  # fmt: skip
    out = folder / "code"
    shutil.unpack_archive(next((folder / "wheel").glob("*.whl")), out, "zip")
    compileall.compile_dir(
        out,
        quiet=2,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        stripdir=str(out),
        prependdir=f"/{_CODE}",
    )
    return out


def engine_name() -> str:
    """Return the engine image's name: another locked list is another image."""
    made_by = [Path(__file__).with_name("python.py"), ROOT / "requirements" / "engine-cpu.txt"]
    parts = [*(f.read_bytes() for f in made_by), repr((SUITE, PACKAGES, _LEFT_OUT, _ENV)).encode()]
    return f"{REGISTRY}/engine-cpu:{_digest(*parts)}"


def engine(cache: Path) -> Image:
    """Return the serving image: Debian, Ray and vLLM for CPU."""
    packages = list(environment(ROOT / "requirements" / "engine-cpu.txt"))
    return Image(engine_name(), [_debian_layer(cache), packages], {**_ENV, "HOME": "/home/ray"}, user="1000:100")


def operator(cache: Path, version: str | None = None) -> Image:
    """Return the operator's image, which carries the code for engines too."""
    with tempfile.TemporaryDirectory() as folder:
        code = _wheel(Path(folder))
        entries = [
            *folders("opt", _CODE, f"{_CODE}/models", f"{_CODE}/models/micro-reasoner"),
            *_read(tree(code, _CODE)),
        ]
    model = ROOT / "examples" / "micro-reasoner"
    served = (
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    )
    entries += [file(f"{_CODE}/models/micro-reasoner/{name}", (model / name).read_bytes()) for name in served]
    tag = version or _digest(*(e.name.encode() + e.data for e in entries))
    packages = list(environment(ROOT / "requirements" / "core.txt"))
    return Image(
        f"{REGISTRY}/reasonscale:{tag}", [_debian_layer(cache), packages, entries],
        {**_ENV, "PYTHONPATH": f"/{_CODE}", "PYTHONDONTWRITEBYTECODE": "1"},
        (f"/{VENV}/bin/python3", "-m", "reasonscale.cli.main"), "10001",
    )  # fmt: skip


def _read(entries: Iterable[Entry]) -> list[Entry]:
    """Return entries with their bytes: the folder they come from goes, and times would make each build another image."""
    return [replace(e, data=e.source.read_bytes() if e.source else b"", source=None, mtime=0) for e in entries]


def pause(binary: Path) -> Image:
    """Return the image of pods' sandboxes."""
    return Image(PAUSE, [[file("pause", binary.read_bytes(), 0o755)]], {"PATH": "/"}, ("/pause",))


def bring(containerd: Containerd, image: Image) -> None:
    """Import an image; RuntimeError where the disk has no room for it, or containerd refuses it."""
    needed = size_of(image.layers)
    free = shutil.disk_usage(containerd.images).free
    if free < 2.2 * needed:  # the archive and what is unpacked of it
        raise RuntimeError(
            f"{image.name} needs {2.2 * needed / 1e9:.1f} GB of disk at {containerd.images}; {free / 1e9:.1f} GB are free"
        )
    process = containerd.importing()
    try:
        write(image, stdin_of(process))
        stdin_of(process).close()
    except BrokenPipeError:
        pass
    said = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
    if process.wait() != 0 or not containerd.has(image.name):
        raise RuntimeError(f"containerd did not take {image.name}: {said or 'it says nothing'}")
