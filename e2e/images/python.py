"""An environment of Python packages for an image: the files of those of this machine's .venv that a locked list names."""

from __future__ import annotations

import re
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

from e2e.images.archive import Entry, folders, link, of_path, text

VENV: Final = "opt/venv"
_NAME = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+)", re.MULTILINE)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(requirements: Path) -> dict[str, str]:
    """Return the packages of a locked list and their versions."""
    return {_canonical(name): version for name, version in _NAME.findall(requirements.read_text())}


def installed(requirements: Path) -> list[Distribution]:
    """Return the packages of a locked list as they are installed here; RuntimeError where one is not, or is another version."""
    here = {_canonical(d.metadata["Name"]): d for d in distributions()}
    wanted = locked(requirements)
    lacking = [
        f"{name}=={version}" for name, version in wanted.items() if name not in here or here[name].version != version
    ]
    if lacking:
        raise RuntimeError(f"{requirements.name} names what .venv lacks: {', '.join(lacking[:5])}; run `make setup`")
    return [here[name] for name in wanted]


def _linked(site: Path) -> set[str]:
    """Return the files of NVIDIA's packages that torch links, by their real paths: without them it can't be imported, CPU or not."""
    import subprocess

    libraries = [p for p in (site / "torch" / "lib").glob("libtorch*.so") if p.is_file()]
    found: set[str] = set()
    for library in libraries:
        for line in subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout.splitlines():
            path = line.partition("=> ")[2].partition(" (")[0]
            if path.startswith(f"{site}/"):
                found.add(str(Path(path).resolve()))
    return found


def _unused(path: Path, site: Path, linked: set[str]) -> bool:
    """Tell whether a file is a library for GPUs that nothing links: a third of NVIDIA's 2.5 GB."""
    return (
        path.is_relative_to(site / "nvidia")
        and path.suffix not in (".py", ".pyc")
        and ".so" in path.name
        and str(path.resolve()) not in linked
    )


def environment(requirements: Path) -> Iterator[Entry]:
    """Return a virtual environment at /opt/venv, with bytecode where this machine has it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    lib = f"{VENV}/lib/python{version}/site-packages"
    yield from folders("opt", VENV, f"{VENV}/bin", f"{VENV}/lib", f"{VENV}/lib/python{version}", lib)
    yield text(f"{VENV}/pyvenv.cfg", f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}\n")
    yield link(f"{VENV}/bin/python3", f"/usr/bin/python{version}")
    yield link(f"{VENV}/bin/python", "python3")
    packages = installed(requirements)
    site = Path(str(packages[0].locate_file(""))).resolve()
    linked = _linked(site) if any(d.metadata["Name"] == "torch" for d in packages) else set()
    known: set[str] = set()
    for package in packages:
        for file in package.files or ():
            path = Path(str(package.locate_file(file)))
            if not path.is_file():
                continue
            path = path.parent.resolve() / path.name
            if path.is_relative_to(site):
                if not _unused(path, site, linked):
                    yield from _with_folders(path, site, lib, known)
            elif path.parent.name == "bin":
                yield text(f"{VENV}/bin/{path.name}", _script(path), 0o755)


def _with_folders(path: Path, site: Path, lib: str, known: set[str]) -> Iterator[Entry]:
    """Return a file, its bytecode, and the folders above them that have not been there."""
    below = path.relative_to(site)
    for folder in reversed(below.parents[:-1]):
        if str(folder) not in known:
            known.add(str(folder))
            yield Entry(f"{lib}/{folder}")
    files = [path]
    if path.suffix == ".py":
        compiled = path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc"
        if compiled.is_file():
            files.append(compiled)
            cache = str(below.parent / "__pycache__")
            if cache not in known:
                known.add(cache)
                yield Entry(f"{lib}/{cache}")
    for file in files:
        name = str(file.relative_to(site))
        if name in known:
            continue
        known.add(name)
        entry = of_path(file, f"{lib}/{name}")
        if entry is not None and entry.kind in (tarfile.REGTYPE, tarfile.SYMTYPE):
            yield entry


def _script(path: Path) -> bytes:
    """Return a console script with the image's own Python in its first line."""
    content = path.read_bytes()
    if content.startswith(b"#!") and b"python" in content.partition(b"\n")[0]:
        return f"#!/{VENV}/bin/python3\n".encode() + content.partition(b"\n")[2]
    return content
