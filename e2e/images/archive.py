"""Writes container images as one stream that containerd imports: each layer's bytes are read once and written by nobody but containerd.

The format is that of `docker save`, whose manifest may come last, so that layers are hashed while they pass.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

_CHUNK: Final = 1 << 20
_END: Final = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in a layer. `name`: its path in the image, without the first slash. Its bytes come from `data`, else from `source`."""

    name: str
    mode: int = 0o755
    kind: bytes = tarfile.DIRTYPE
    source: Path | None = None
    data: bytes = b""
    size: int = 0
    link: str = ""
    mtime: float = 0.0
    uid: int = 0
    gid: int = 0

    def header(self) -> bytes:
        """Return the entry's tar header."""
        info = tarfile.TarInfo(self.name)
        info.type, info.mode, info.size, info.linkname = self.kind, self.mode, self.size, self.link
        info.mtime, info.uid, info.gid = int(self.mtime), self.uid, self.gid
        return info.tobuf(tarfile.PAX_FORMAT)

    def padded(self) -> int:
        """Return the size of its bytes with their padding."""
        return -(-self.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def text(name: str, content: str | bytes, mode: int = 0o644) -> Entry:
    """Return a file of given content."""
    data = content.encode() if isinstance(content, str) else content
    return Entry(name, mode, tarfile.REGTYPE, None, data, len(data))


def link(name: str, target: str) -> Entry:
    """Return a symbolic link."""
    return Entry(name, 0o777, tarfile.SYMTYPE, link=target)


def folders(*names: str, uid: int = 0, gid: int = 0) -> list[Entry]:
    """Return folders."""
    return [Entry(name, uid=uid, gid=gid) for name in names]


def of_path(path: Path, name: str, *, own: bool = False) -> Entry | None:
    """Return what lies at a path; None for devices and sockets. `own`: with its owner, else root's."""
    found = path.lstat()
    kind = {stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE}.get(
        stat.S_IFMT(found.st_mode)
    )
    if kind is None:
        return None
    regular, symbolic = kind == tarfile.REGTYPE, kind == tarfile.SYMTYPE
    return Entry(
        name, stat.S_IMODE(found.st_mode), kind, path if regular else None, b"", found.st_size if regular else 0,
        os.readlink(path) if symbolic else "", found.st_mtime, found.st_uid if own else 0, found.st_gid if own else 0,
    )  # fmt: skip


def tree(root: Path, under: str = "", *, own: bool = False, without: Iterable[str] = ()) -> Iterator[Entry]:
    """Return all that lies under a folder, in a fixed order. `without`: paths below it whose content is left out."""
    left_out = set(without)
    for folder, inner, files in os.walk(root):
        inner.sort()
        at = os.path.relpath(folder, root)
        if at in left_out:
            inner.clear()
            files.clear()
        for name in sorted([*inner, *files]):
            path = Path(folder, name)
            below = os.path.normpath(os.path.join(at, name))
            if below in left_out and not path.is_dir():
                continue
            found = of_path(path, os.path.normpath(os.path.join(under, below)), own=own)
            if found is not None:
                yield found


@dataclass(frozen=True, slots=True)
class Image:
    """An image: its name, its layers, and what runs in it."""

    name: str
    layers: Sequence[Sequence[Entry]]
    env: Mapping[str, str] = field(default_factory=dict)
    entrypoint: Sequence[str] = ()
    user: str = ""

    def config(self, layers: Sequence[str]) -> dict[str, Any]:
        """Return the image's config; `layers`: their digests."""
        run: dict[str, Any] = {"Env": [f"{k}={v}" for k, v in self.env.items()], "WorkingDir": "/", "User": self.user}
        if self.entrypoint:
            run["Entrypoint"] = list(self.entrypoint)
        return {
            "architecture": "amd64", "os": "linux", "config": run,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{x}" for x in layers]},
        }  # fmt: skip


def size_of(layers: Iterable[Sequence[Entry]]) -> int:
    """Return the bytes of layers as tar."""
    return sum(len(e.header()) + e.padded() for layer in layers for e in layer)


def _copy(entry: Entry, out: IO[bytes], digest: Any) -> None:
    left = entry.size
    with io.BytesIO(entry.data) if entry.source is None else entry.source.open("rb") as source:
        while left:
            chunk = source.read(min(_CHUNK, left))
            if not chunk:
                raise RuntimeError(f"{entry.source} became shorter while it was read")
            digest.update(chunk)
            out.write(chunk)
            left -= len(chunk)


def _file(out: IO[bytes], name: str, data: bytes) -> None:
    entry = text(name, data)
    out.write(entry.header() + data + bytes(entry.padded() - entry.size))


def _layer(out: IO[bytes], name: str, entries: Sequence[Entry]) -> str:
    headers = [e.header() for e in entries]
    total = sum(map(len, headers)) + sum(e.padded() for e in entries) + len(_END)
    out.write(Entry(name, 0o644, tarfile.REGTYPE, size=total).header())
    digest = hashlib.sha256()
    for entry, header in zip(entries, headers, strict=True):
        digest.update(header)
        out.write(header)
        _copy(entry, out, digest)
        padding = bytes(entry.padded() - entry.size)
        digest.update(padding)
        out.write(padding)
    digest.update(_END)
    out.write(_END + bytes(-total % tarfile.BLOCKSIZE))
    return digest.hexdigest()


def write(image: Image, out: IO[bytes]) -> None:
    """Write an image as an archive."""
    digests = [_layer(out, f"layer{n}/layer.tar", layer) for n, layer in enumerate(image.layers)]
    config = json.dumps(image.config(digests)).encode()
    name = hashlib.sha256(config).hexdigest() + ".json"
    _file(out, name, config)
    layers = [f"layer{n}/layer.tar" for n in range(len(digests))]
    _file(out, "manifest.json", json.dumps([{"Config": name, "RepoTags": [image.name], "Layers": layers}]).encode())
    out.write(_END)
