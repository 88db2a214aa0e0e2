"""Before an engine starts on this machine, what it lacks is said in numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reasonscale.api import constants as c
from reasonscale.api.load import parse
from reasonscale.api.resolve import Resolved, resolve
from reasonscale.local.app import room_problem
from reasonscale.serving.config import serve_app
from reasonscale.serving.gpus import GIB, Gpu, NoGpuError


def h100(free_gib: float = 79.0, index: int = 0) -> Gpu:
    return Gpu(index, "GPU-1", "NVIDIA H100 80GB HBM3", int(79.6 * GIB), int(free_gib * GIB), "580.159.04")


def model(fraction: int = 100, folder: Path | None = None) -> Resolved:
    spec = {
        "model": {"uri": f"file://{folder}" if folder else "hf://Qwen/Qwen3-1.7B"},
        "accelerator": {"fraction": fraction},
        "scaling": {"maxReplicas": 3},
    }
    return resolve(parse({"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": {"name": "m"}, "spec": spec}))


def test_three_small_models_share_a_gpu() -> None:
    assert room_problem([model(30)], {"m": 3}, lambda: [h100()]) is None


def test_a_fourth_does_not_fit_and_that_is_said_in_numbers() -> None:
    lack = room_problem([model(30)], {"m": 4}, lambda: [h100()])
    assert lack is not None
    assert "an engine wants 22.6 of 79.6 GiB" in lack


def test_what_another_process_fills_is_no_room() -> None:
    lack = room_problem([model()], {"m": 1}, lambda: [h100(free_gib=20.0)])
    assert lack is not None
    assert "an engine wants 73.9 of 79.6 GiB, 20.0 are free" in lack
    assert "end what holds it, or lower spec.accelerator.fraction" in lack


def test_a_second_gpu_takes_what_the_first_has_no_room_for() -> None:
    assert room_problem([model()], {"m": 1}, lambda: [h100(20.0), h100(79.0, index=1)]) is None


def test_weights_that_never_fit_are_said_before_the_engine_starts(tmp_path: Path) -> None:
    shape = {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    lack = room_problem([model(15, tmp_path)], {"m": 1}, lambda: [h100()])
    assert lack is not None
    assert (
        "weights of 14.2 GiB do not fit 14% of 79.6 GiB with 2 GiB to work in: raise spec.accelerator.fraction" in lack
    )


def test_a_driver_that_does_not_answer_is_passed_on() -> None:
    def none() -> list[Gpu]:
        raise NoGpuError("the NVIDIA driver can't be used: mismatch")

    assert room_problem([model()], {"m": 1}, none) == "Ray has GPUs, but the NVIDIA driver can't be used: mismatch"


@pytest.mark.parametrize(("local", "share"), [(True, 0.3), (False, None)])
def test_a_part_of_a_gpu_is_placed_as_such_on_one_machine_alone(local: bool, share: float | None) -> None:
    args = serve_app([model(30)], {"m": 1}, local=local, gpus=True)["args"]["models"][0]
    assert args["engine_kwargs"]["gpu_memory_utilization"] == pytest.approx(0.276)
    assert args.get("gpu_share") == share
    assert args["gpus"] == 1
