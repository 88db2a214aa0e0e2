"""`max_num_batched_tokens` is chosen so that neighbours keep their pace and long prompts start in time."""

from __future__ import annotations

import pytest

from reasonscale.profiles.library import load
from reasonscale.profiles.prior import plane_of
from reasonscale.scaling.chunk import chunk_of
from reasonscale.scaling.types import Objectives, StepTime

BIG = StepTime(0.019, 7e-5, 6e-8, 9e-5)  # a 32B: a prompt token costs 0.09 ms


def test_a_large_model_takes_far_less_than_vllm_s_default():
    found = chunk_of(BIG, Objectives(), 256)
    assert 256 <= found.tokens <= 512
    assert "beside a prompt" in found.reason


def test_where_both_cannot_be_the_start_of_prompts_goes_first_and_the_reason_says_what_a_step_takes():
    found = chunk_of(BIG, Objectives(tpot_s=0.03), 256)
    assert found.tokens == 384
    assert found.reason == "as few as start a prompt in time; a step with so many takes 57 ms"


def test_a_small_model_keeps_the_default_since_no_prompt_slows_its_neighbours():
    found = chunk_of(StepTime(0.003, 3e-5, 5e-9, 4e-6), Objectives(), 256)
    assert found.tokens == 2048


@pytest.mark.parametrize("tpot_s", [0.03, 0.05, 0.1])
def test_a_laxer_pace_never_gives_a_smaller_chunk(tpot_s):
    tighter, laxer = (chunk_of(BIG, Objectives(tpot_s=t), 256).tokens for t in (tpot_s, 2 * tpot_s))
    assert laxer >= tighter


def test_a_tighter_start_never_gives_a_smaller_chunk():
    chunks = [chunk_of(BIG, Objectives(ttft_per_prompt_token_s=t), 256).tokens for t in (1e-3, 4e-4, 2e-4, 1.5e-4)]
    assert chunks == sorted(chunks)


def test_an_engine_nobody_knows_and_one_too_slow_get_the_default_and_are_told_why():
    assert chunk_of(None, Objectives(), 256).tokens == 2048
    slow = chunk_of(StepTime(0.02, 0.0, 0.0, 1e-3), Objectives(), 256)
    assert slow.tokens == 2048
    assert "alone" in slow.reason


def test_every_sequence_has_its_token_in_a_step():
    assert chunk_of(BIG, Objectives(), 1024).tokens >= 1024


def test_of_the_shipped_profiles_the_largest_model_gets_the_smallest_chunk():
    names = ("qwen2-1.5b-h200", "qwen2-7b-h200", "qwen2-32b-h200")
    tokens = [chunk_of(plane_of(load(name)), Objectives(), 256).tokens for name in names]
    assert tokens == sorted(tokens, reverse=True)
