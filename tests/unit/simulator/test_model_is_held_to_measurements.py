"""Measured replays are compared over the requests that finished in both, and the command says what it found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reasonscale.cli.main import run as command
from reasonscale.profiles.profile import BadProfile, Profile, dump
from reasonscale.simulator.engine import replay
from reasonscale.simulator.validation import compare


def recorded(profile: Profile, stretch: float = 1.0) -> dict[str, Any]:
    """Return a load as the model itself would have measured it, all times after arrival stretched."""
    rng = np.random.default_rng(3)
    arrival = np.cumsum(rng.exponential(0.4, 40))
    prompt, output = rng.integers(1, 60, 40), rng.integers(2, 30, 40)
    done = replay(profile, arrival, prompt, output)
    rows = [
        {
            "t": t,
            "inp": int(i),
            "out": int(o),
            "n": int(o),
            "first": t + (f - t) * stretch,
            "last": t + (e - t) * stretch,
        }
        for t, i, o, f, e in zip(arrival.tolist(), prompt, output, done.first_s, done.last_s, strict=True)
    ]
    return {"requests": rows, "wall": float(done.end_s) + 1.0}


def test_the_model_has_no_error_against_itself(small: Profile) -> None:
    errors, _ = compare(recorded(small), small)
    assert errors.finished == 40
    assert (errors.e2e_mean_err, errors.ttft_p95_err, errors.tpot_mean_err) == (0.0, 0.0, 0.0)


def test_a_slower_engine_shows_as_a_negative_error(small: Profile) -> None:
    errors, _ = compare(recorded(small, stretch=1.25), small)
    assert errors.e2e_mean_err == pytest.approx(-0.2, abs=1e-4)
    assert errors.tpot_p95_err == pytest.approx(-0.2, abs=1e-4)


def test_requests_cut_off_in_the_measurement_are_not_compared(small: Profile) -> None:
    load = recorded(small)
    load["requests"][5] |= {"n": 1, "last": 9e9}
    load["requests"][6] |= {"n": 0, "first": None, "last": None}
    errors, _ = compare(load, small)
    assert (errors.requests, errors.finished, errors.e2e_mean_err) == (40, 38, 0.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inp": -4}, r"requests\[0\].inp was -4"),
        ({"out": 0}, "both must be 1 or more"),
        ({"t": None}, r"requests\[0\].t was"),
    ],
)
def test_a_bad_row_is_named(small: Profile, change: dict[str, Any], words: str) -> None:
    load = recorded(small)
    load["requests"][0] |= change
    with pytest.raises(BadProfile, match=words):
        compare(load, small, "gpu.json: load@1")


def measurements(small: Profile) -> dict[str, Any]:
    sweep = [[b, c, 10 + 0.01 * b * c] for b in (1, 2) for c in (10, 100)]
    return {
        "kv_tokens": 4096, "max_num_batched_tokens": 32, "sweep": sweep, "prefill": [[1, 13.0], [32, 44.0], [64, 88.0]],
        "load@2": recorded(small),
    }  # fmt: skip


def test_the_command_fits_a_profile_and_validates_it(
    small: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, made, report = tmp_path / "gpu.json", tmp_path / "mine.json", tmp_path / "errors.json"
    source.write_text(json.dumps(measurements(small)))
    assert command(["profile", "fit", str(source), "--out", str(made)]) == 0
    assert json.loads(made.read_text())["name"] == "mine"
    assert command(["profile", "validate", str(source), "--json", str(report)]) == 0
    assert "load@2" in capsys.readouterr().out
    errors = json.loads(report.read_text())["load@2"]
    assert {"e2e_mean_err", "e2e_p95_err", "ttft_mean_err", "ttft_p95_err", "tpot_mean_err", "tpot_p95_err"} <= set(
        errors
    )
    made.write_text(dump(small))
    assert command(["profile", "validate", str(source), "--profile", str(made), "--json", str(report)]) == 0
    assert json.loads(report.read_text())["load@2"]["e2e_mean_err"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "none.json", "--out", "x.json"], "there is no such file"),
        (["fit", "gpu.json"], "--out is missing"),
        (["validate", "gpu.json"], "holds no replay"),
        (["validate", "gpu.json", "--profile", "b300"], "qwen2-7b-h200"),
    ],
)
def test_wrong_input_is_answered_in_words(
    small: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], words: str,
) -> None:  # fmt: skip
    data = measurements(small)
    del data["load@2"]
    (tmp_path / "gpu.json").write_text(json.dumps(data))
    monkeypatch.chdir(tmp_path)
    assert command(["profile", *arguments]) == 2
    assert words in capsys.readouterr().err
