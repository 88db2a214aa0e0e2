"""`spec.accelerator.profile`: where a name leads, what is said of one that leads nowhere, and that the scaler is given its step times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.controller.test_writes_are_few import Server, conditions, loop, turns

from reasonscale.api import constants as c
from reasonscale.api.load import parse
from reasonscale.api.resolve import Resolved, resolve
from reasonscale.api.validate import InvalidResource
from reasonscale.cli.main import run
from reasonscale.controller.model_loop import ModelLoop
from reasonscale.local import app as local
from reasonscale.local.app import LocalApp, StartFailed
from reasonscale.local.ray_node import free_port
from reasonscale.profiles.library import FIELD, Library, NoSuchProfile, chosen, chosen_beside, load, shipped
from reasonscale.profiles.prior import plane_of, prior_of
from reasonscale.profiles.profile import Profile, dump
from reasonscale.scaling.record import from_json, to_json
from reasonscale.scaling.types import Policy, StepTime

SHIPPED = "qwen2-7b-h100"


def document(profile: str | None, **spec: Any) -> dict[str, Any]:
    named = {} if profile is None else {"accelerator": {"profile": profile}}
    spec = {"model": {"uri": "hf://Qwen/Qwen3-8B"}, "scaling": {"maxReplicas": 2}} | named | spec
    return {"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": {"name": "m"}, "spec": spec}


def resolved(profile: str | None, **spec: Any) -> Resolved:
    return resolve(parse(document(profile, **spec)))


def bring(folder: Path, name: str, ms: float = 7.0, **more: Any) -> Profile:
    """Write a profile of one's own, whose steps take so long at the least."""
    rows = ((1, ms, 1e-5), (256, 2 * ms, 1e-5))
    made = replace(load(SHIPPED), name=name, decode=rows, **more)
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(dump(made))
    return made


@given(st.lists(st.tuples(st.integers(1, 4096), st.floats(0.1, 1e3)), min_size=2, max_size=9, unique_by=lambda p: p[0]))
def test_the_prior_is_the_least_squares_line_of_the_sweep(points: list[tuple[int, float]]) -> None:
    rows = [(n, ms) for (n, _), ms in zip(sorted(points), sorted(ms for _, ms in points), strict=True)]
    made = replace(load(SHIPPED), decode=tuple((n, ms, 2e-5) for n, ms in rows))
    step = plane_of(made)

    def off(a: float, b: float) -> float:
        return sum((a + b * n - ms) ** 2 for n, ms in rows)

    a, b = step.a * 1e3, step.b * 1e3
    best, scale = off(a, b), max(ms for _, ms in rows)
    moves: list[tuple[float, float]] = [(0.0, 1e-6), (0.0, -1e-6), (1e-3, 0.0), (1e-3, -1e-6)]
    if a > 0.0101:  # else no smaller one may be
        moves += [(-1e-3, 0.0), (-1e-3, 1e-6)]
    for da, db in moves:
        assert off(a + da * scale, b + db * scale) >= best * (1 - 1e-9)
    assert min(step.a, step.b) >= 0.0 < step.a
    assert step.c == pytest.approx(2e-8)


def test_a_profile_of_one_point_still_gives_a_prior() -> None:
    step = prior_of(replace(load(SHIPPED), decode=((8, 10.0, 0.0),), prefill=((2048, 40.96),)))
    assert step == StepTime(0.010, 0.0, 0.0, pytest.approx(2e-5))


def test_one_s_own_comes_before_a_shipped_one_of_its_name(tmp_path: Path) -> None:
    assert Library(tmp_path).find(SHIPPED) == load(SHIPPED)
    own = bring(tmp_path, SHIPPED)
    assert Library(tmp_path).find(SHIPPED) == own != load(SHIPPED)


def test_a_path_starts_from_the_resource_s_own_file_and_leads_nowhere_in_a_cluster(tmp_path: Path) -> None:
    own = bring(tmp_path / "gpus", "mine")
    for name in ("gpus/mine.json", "./gpus/mine.json", str(tmp_path / "gpus" / "mine.json")):
        assert Library(tmp_path, beside=True).find(name) == own
        with pytest.raises(NoSuchProfile, match="a cluster has no such file"):
            Library(tmp_path).find(name)
    with pytest.raises(NoSuchProfile, match="a cluster has no such file"):
        Library(tmp_path / "gpus").find("../gpus/mine")


def test_a_file_that_changes_is_read_again_and_one_that_does_not_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, before = Library(tmp_path), bring(tmp_path, "mine", 7.0)
    assert library.find("mine") is library.find("mine")
    assert library.find("mine") == before
    after = bring(tmp_path, "mine", 123.0)
    assert library.find("mine") == after
    (tmp_path / "mine.json").unlink()
    with pytest.raises(NoSuchProfile):
        library.find("mine")


def test_an_unknown_name_lists_those_there_are_and_the_nearest(tmp_path: Path) -> None:
    bring(tmp_path, "my-gpu")
    found = chosen(resolved("my-gpuu"), Library(tmp_path))
    assert found is not None
    assert (found.profile, found.prior, found.reason) == (None, None, c.PROFILE_UNKNOWN)
    assert f"was 'my-gpuu'; no profile has that name, neither a shipped one nor one of the chart's value `profiles`; did you mean my-gpu? there are my-gpu, {', '.join(shipped())}" == found.message  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "can't be read as JSON"),
        ("[" * 100_000, "can't be read as JSON"),
        (json.dumps({"format": 1, "name": "x"}), "is not as `reasonscale profile fit` writes it"),
        (dump(load(SHIPPED)).replace("6.292957", "NaN"), "holds a number that is none"),
        (dump(load(SHIPPED)).replace("6.292957", "1e999"), "holds a number that is none"),
        (dump(load(SHIPPED)).replace('"kv_tokens": 1072672', '"kv_tokens": true'), "kv_tokens was True"),
        (dump(replace(load(SHIPPED), decode=((0, 1.0, 0.0), (8, 2.0, 0.0)))), "must begin with a size greater than 0"),
    ],
)
def test_a_file_that_is_not_right_is_named_and_not_used(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    found = chosen(resolved("bad"), Library(tmp_path))
    assert found is not None
    assert (found.prior, found.reason) == (None, c.PROFILE_UNUSABLE)
    assert f"was 'bad'; {tmp_path}/bad.json" in found.message
    assert words in found.message


def test_where_the_measured_engine_was_another_it_is_said_and_used_all_the_same(tmp_path: Path) -> None:
    bring(tmp_path, "two", gpus_per_replica=2, max_num_batched_tokens=8192)
    found = chosen(resolved("two"), Library(tmp_path))
    assert found is not None
    assert found.note == (
        "spec.accelerator.profile: two was measured with 2 GPUs a replica (this model takes 1) and max_num_batched_tokens "
        "8192 (this engine has 2048); the scaler starts from its times all the same"
    )
    assert found.prior == prior_of(Library(tmp_path).find("two"))
    fits = resolved("two", parallelism={"tensor": 2}, engine={"args": {"max_num_batched_tokens": "8192"}})
    same = chosen(fits, Library(tmp_path))
    assert same is not None
    assert (same.reason, same.note) == (c.PROFILE_LOADED, None)


def test_who_names_none_gets_none_and_is_told_nothing() -> None:
    assert chosen(resolved(None), Library()) is None


@pytest.mark.parametrize("name", ["", " x", "a b", "-x", "x\n", "\x1b[31m", "x" * 254])
def test_what_is_neither_a_name_nor_a_path_is_refused(name: str) -> None:
    with pytest.raises(InvalidResource, match=FIELD):
        parse(document(name))


def test_the_local_loop_starts_from_it(tmp_path: Path) -> None:
    model = resolved("mine")
    own = bring(tmp_path, "mine")
    found = chosen_beside(model, tmp_path)
    assert found is not None
    assert found.prior is not None
    app = LocalApp([model], "127.0.0.1", 0, tmp_path, priors={model.name: found.prior})
    policy = app.policy(model)
    assert policy.step_time == prior_of(own)
    assert from_json(Policy, json.loads(json.dumps(to_json(policy)))) == policy, "the decision log has it"
    assert LocalApp([model], "127.0.0.1", 0, tmp_path).policy(model).step_time is None


def test_up_hands_it_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = bring(tmp_path, "mine")
    file = tmp_path / "m.yaml"
    file.write_text(json.dumps(document("./mine.json")))
    given: dict[str, Any] = {}

    class Played:
        def __init__(self, *_: Any, **options: Any) -> None:
            given.update(options)

        async def start(self, ray: str | None) -> None:
            raise StartFailed("enough is seen")

        async def stop(self) -> None: ...

    monkeypatch.setattr(local, "LocalApp", Played)
    monkeypatch.chdir("/")
    logs = str(tmp_path / "logs")
    assert run(["up", str(file), "--port", str(free_port()), "--status-port", "0", "--log-dir", logs]) == 1
    assert given["priors"] == {"m": prior_of(own)}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.err + captured.out).split())


@pytest.mark.parametrize("command", ["up", "plan"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nosuch", "spec.accelerator.profile: was 'nosuch'; no profile of that name is shipped, and there is no file"),
        ("./nosuch.json", "spec.accelerator.profile: was './nosuch.json'; there is no file"),
        ("qwen2-7b-h10", "did you mean qwen2-7b-h100? there are"),
    ],
)
def test_here_a_name_that_leads_nowhere_is_one_message(
    command: str, name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(json.dumps(document(name)))
    assert run([command, str(file)]) == 2
    text = said(capsys)
    assert words in text
    assert text.count(FIELD) == 1


def test_validate_refuses_a_path_that_leads_nowhere_and_notes_a_name_that_a_cluster_may_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(json.dumps(document("nosuch.json")))
    assert run(["validate", str(file)]) == 2
    assert f"{file}: spec.accelerator.profile: was 'nosuch.json'; there is no file" in said(capsys)
    file.write_text(json.dumps(document("mine")))
    assert run(["validate", str(file)]) == 0
    assert "in a cluster the chart's value `profiles` must have it, or the scaler starts without" in (
        text := said(capsys)
    )
    assert text.count(FIELD) == 1
    bring(tmp_path, "mine")
    assert run(["validate", str(file)]) == 0
    assert FIELD not in (text := said(capsys))
    assert "profile mine, until engines report their own step times" in text


def test_plan_takes_it_where_none_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "m.yaml", tmp_path / "plan.json"
    bring(tmp_path, "mine")
    file.write_text(json.dumps(document("mine")))
    assert run(["plan", str(file), "--json", str(out)]) == 0
    assert "profile mine, as spec.accelerator.profile says" in said(capsys)
    assert json.loads(out.read_text())[0]["profile"] == "mine"
    assert run(["plan", str(file), "--json", str(out), "--profile", "qwen2-7b-h200"]) == 0
    assert json.loads(out.read_text())[0]["profile"] == "qwen2-7b-h200"


def operated(folder: Path, name: str) -> tuple[Server, ModelLoop, list[float]]:
    server, now = Server(), [1_800_000_000.0]
    made = loop(server, now, profiles=Library(folder))
    body = document(name)
    body["metadata"] |= {"namespace": "n", "uid": "u", "generation": 1}
    made.see(body)
    return server, made, now


async def test_the_operator_starts_from_it_and_an_unknown_name_stops_nothing(tmp_path: Path) -> None:
    server, model, now = operated(tmp_path, "mine")
    await turns(model, now, 1)
    assert model._policy_now().step_time is None
    assert "RayService" in server.objects
    assert conditions(server)["ProfileLoaded"] == ("False", "NoSuchProfile")
    assert conditions(server)["Degraded"] == ("False", "AsWanted")
    (told,) = [x for x in server.status["conditions"] if x["type"] == "ProfileLoaded"]
    assert told["message"].startswith("spec.accelerator.profile: was 'mine'; no profile has that name")
    assert shipped()[0] in told["message"]
    assert server.objects["Event"]["reason"] == "NoSuchProfile"
    await turns(model, now, 12)
    service, writes = server.objects["RayService"], server.writes.count("RayService")
    events = server.writes.count("Event")
    own = bring(tmp_path, "mine")  # the ConfigMap comes
    await turns(model, now, 1)
    assert model._policy_now().step_time == prior_of(own)
    assert conditions(server)["ProfileLoaded"] == ("True", "Loaded")
    newer = bring(tmp_path, "mine", 99.0)  # and changes
    await turns(model, now, 1)
    assert model._policy_now().step_time == prior_of(newer)
    (tmp_path / "mine.json").write_text("{")
    await turns(model, now, 1)
    assert model._policy_now().step_time is None
    assert conditions(server)["ProfileLoaded"] == ("False", "BadProfile")
    assert server.objects["RayService"] is service, "nothing was rendered otherwise"
    assert server.writes.count("RayService") == writes
    assert server.writes.count("Event") == events + 1


async def test_a_profile_of_another_engine_is_a_warning_of_the_operator_too(tmp_path: Path) -> None:
    bring(tmp_path, "two", gpus_per_replica=2)
    server, model, now = operated(tmp_path, "two")
    await turns(model, now, 1)
    assert model._policy_now().step_time is not None
    assert conditions(server)["ProfileLoaded"] == ("True", "ProfileDiffers")
    assert (server.objects["Event"]["type"], server.objects["Event"]["reason"]) == ("Warning", "ProfileDiffers")


async def test_a_model_without_one_has_no_such_condition() -> None:
    server, now = Server(), [1_800_000_000.0]
    await turns(loop(server, now), now, 1)
    assert "ProfileLoaded" not in conditions(server)


def test_to_read_one_takes_neither_numpy_nor_the_simulator() -> None:
    code = (
        "import sys; from reasonscale.profiles.library import load; from reasonscale.profiles.prior import prior_of;"
        f"prior_of(load('{SHIPPED}')); sys.exit(any(m.split('.')[0] in ('numpy', 'numba') or 'simulator' in m for m in sys.modules))"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}).returncode == 0
