"""A profile comes from a sweep and prefill points, and a file that can't be right is refused in words."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reasonscale.profiles.fit import fit
from reasonscale.profiles.library import load, shipped
from reasonscale.profiles.prior import plane_of, prior_of
from reasonscale.profiles.profile import BadProfile, dump, read_json
from reasonscale.scaling.types import BEND
from reasonscale.simulator.engine import replay
from reasonscale.simulator.tables import tables_of


def measured() -> dict[str, Any]:
    """What a GPU would measure that takes 20 + 0.1 B ms, 60 ns a KV token, 0.1 ms a prompt token and 3e-6 ms a pair."""
    sweep = [[b, c, 20 + 0.1 * b + 6e-5 * b * c] for b in (1, 8, 64, 256) for c in (256.0, 4096.0)]
    prefill = [[n, (20 + 3) * max(1, n // 2048) + 0.1 * n + 1.5e-6 * n * n] for n in (128, 512, 2048, 4096, 8192)]
    return {"model": "made", "kv_tokens": 100_000, "sweep": sweep, "prefill": prefill}


def test_a_fit_finds_the_step_times_that_made_the_measurements() -> None:
    made = fit(measured(), name="made")
    assert [slope for *_, slope in made.decode] == pytest.approx([6e-5] * 4)
    assert [base for _, base, _ in made.decode] == pytest.approx([20.1, 20.8, 26.4, 45.6])
    assert made.attention_ms_per_pair == pytest.approx(3e-6)
    step = plane_of(made)
    assert (step.a, step.b, step.c, step.d) == pytest.approx((0.020, 1e-4, 6e-8, 1e-4), rel=1e-6)


def test_a_prior_bends_where_the_sweep_does_and_by_the_usual_share_where_that_ends_before() -> None:
    data = measured()
    data["sweep"] = [[b, c, ms + 0.15 * max(0, b - 128)] for b, c, ms in data["sweep"]]
    prior = prior_of(fit(data, name="made"))
    assert (prior.a, prior.b, prior.bend) == pytest.approx((0.020, 1e-4, 1.5e-4), rel=1e-6)
    data["sweep"] = [row for row in data["sweep"] if row[0] <= 64]
    prior = prior_of(fit(data, name="made"))
    assert (prior.b, prior.bend) == pytest.approx((1e-4, BEND * 1e-4), rel=1e-6)


@pytest.mark.parametrize("tokens", [128, 512, 2048, 4096, 8192])
def test_the_model_takes_the_measured_time_for_each_prompt_of_the_fit(tokens: int) -> None:
    made = fit(measured(), name="made")
    done = replay(made, np.zeros(1), np.array([tokens]), np.ones(1, dtype=np.int64))
    assert done.first_s[0] * 1e3 == pytest.approx(dict(measured()["prefill"])[tokens], rel=1e-3)


def test_replays_in_the_file_change_nothing() -> None:
    assert fit(measured() | {"load@9": {"requests": []}}, name="x") == fit(measured(), name="x")


def test_a_profile_survives_being_written_and_read(tmp_path: Path) -> None:
    made = fit(measured(), name="made")
    file = tmp_path / "made.json"
    file.write_text(dump(made))
    assert load(str(file)) == made


def test_noise_is_pooled_so_that_more_work_never_takes_less_time() -> None:
    data = measured()
    data["sweep"] = [[b, c, ms - (0.9 if b == 8 else 0.0)] for b, c, ms in data["sweep"]]
    bases = [base for _, base, _ in fit(data, name="x").decode]
    assert bases[0] == bases[1] == pytest.approx(20.0)


@pytest.mark.parametrize("name", shipped())
def test_shipped_profiles_load_and_time_rises_with_load(name: str) -> None:
    profile = load(name)
    tables = tables_of(profile)
    assert (np.diff(tables.base) >= 0).all()
    assert (np.diff(tables.linear) >= 0).all()
    assert profile.kv_tokens > 100_000
    assert {"qwen2-1.5b-h200", "qwen2-7b-h200", "qwen2-32b-h200"} <= set(shipped())


def test_sixty_five_requests_decode_at_the_price_of_a_full_tile() -> None:
    base = tables_of(fit(measured(), name="x")).base * 1e3
    assert base[64] == pytest.approx(26.4)
    assert base[65] == base[128] > base[64]


def broken(field: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(measured())
    data[field] = value
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (broken("sweep", None), "sweep is missing"),
        (broken("sweep", []), r"sweep was \[\]; it must be a list of rows of 3 numbers"),
        (broken("sweep", "x"), "sweep was 'x'; it must be a list of rows"),
        (broken("kv_tokens", None), "kv_tokens is missing; it must be a whole number greater than 0"),
        (
            {k.replace("kv_tokens", "kv_tokns"): v for k, v in measured().items()},
            "kv_tokns is no field; did you mean kv_tok",
        ),
        (broken("max_num_batchd_tokens", 512), "did you mean max_num_batched_tokens"),
        (broken("sweep", [[1, 256, 20], [8, 256, -3]]), r"sweep\[1\] was"),
        (broken("sweep", [[1, 256, 20], [1, 4096, 21]]), "must have two or more"),
        (broken("sweep", [[1, 256, 20], [8, 256, 21]]), "one context length only"),
        (broken("sweep", [[1, 256, 40], [1, 4096, 41], [8, 256, 20], [8, 4096, 21]]), "more work never takes less"),
        (broken("prefill", [[128, 23], [512, 60]]), "must reach max_num_batched_tokens"),
        (broken("prefill", [[128, 90], [2048, 60]]), "more work never takes less"),
        (broken("kv_tokens", 0), "kv_tokens was 0"),
        (broken("kv_tokens", "much"), "kv_tokens was 'much'"),
        (broken("engine_start_s", float("nan")), "engine_start_s was nan; it must be a number greater than 0"),
        (broken("engine_start_s", "soon"), "engine_start_s was 'soon'"),
        # What `read` would refuse is not written: the lines through both contexts fall below 0 at an empty cache.
        (
            broken("sweep", [[b, c, b * c / 50 - 4 + b / 4] for b in (1, 8) for c in (256, 4096)]),
            "decode must be greater",
        ),
    ],
)
def test_what_is_wrong_with_measurements_is_named(data: dict[str, Any], words: str) -> None:
    with pytest.raises(BadProfile, match=words):
        fit(data, name="x", where="gpu.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 9}, "format must be 1"),
        ({"decode": [[8, 20.0, 0.0], [1, 19.0, 0.0]]}, "rising size"),
        ({"prefill": [[8, 20.0], [16, 19.0]]}, "never fall"),
        ({"kv_tokens": -1}, "kv_tokens was -1"),
        ({"unheard": 1}, "is not as"),
        ({"name": 5}, "name was 5; it must be a text"),
        ({"model": ["x"]}, r"model was \['x'\]; it must be a text"),
        ({"start_s": "soon"}, "start_s was 'soon'; it must be a number greater than 0"),
        ({"start_s": float("nan")}, "start_s was nan"),
        ({"block_tokens": 100_001}, "block_tokens was 100001; it must not be more than kv_tokens, 100000"),
    ],
)
def test_what_is_wrong_with_a_profile_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps(json.loads(dump(fit(measured(), name="x"))) | change))
    with pytest.raises(BadProfile, match=words):
        load(str(file))


def test_an_unknown_profile_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(BadProfile, match="qwen2-32b-h200"):
        load("b300")
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(BadProfile, match="must be a JSON object"):
        read_json(tmp_path / "x.json")
