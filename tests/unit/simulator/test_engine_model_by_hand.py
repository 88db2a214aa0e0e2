"""A schedule of four steps, worked out on paper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reasonscale.profiles.profile import Profile
from reasonscale.simulator.engine import replay


def test_three_requests_take_the_steps_that_paper_gives(small: Profile) -> None:
    # A: 40 prompt tokens, 3 out, at 0. B: 8 and 2, and C: 5 and 1, both at 20 ms. Two seats, 32 tokens a step.
    done = replay(small, np.array([0.0, 0.02, 0.02]), np.array([40, 8, 5]), np.array([3, 2, 1]))
    # Step 1: 32 tokens of A: 10 + (41 - 10) + 2 = 43 ms.
    # Step 2: 8 of A, 8 of B, no seat for C: 10 + (25 - 10) + 2 = 27 ms; ends at 70.
    # Step 3: A and B decode over 40 + 8 tokens: 10 + 0.48 ms; ends at 80.48, and so does B.
    # Step 4: A decodes over 41 tokens, with 5 of C: 10 + 0.41 + (15 - 10) + 2 = 17.41 ms; all ends at 97.89.
    assert done.first_s * 1e3 == pytest.approx([70.0, 70.0, 97.89])
    assert done.last_s * 1e3 == pytest.approx([97.89, 80.48, 97.89])
    assert (done.steps, done.computed_tokens, done.preemptions) == (4, 40 + 2 + 8 + 1 + 5, 0)


def test_a_long_decode_is_the_sum_of_its_steps(small: Profile) -> None:
    done = replay(small, np.array([0.0]), np.array([10]), np.array([101]))
    prefill = 10 + (19 - 10) + 2
    assert done.last_s[0] * 1e3 == pytest.approx(prefill + 100 * 10 + 0.01 * sum(range(10, 110)))


def test_a_preempted_request_computes_its_prompt_and_what_it_made_again(small: Profile) -> None:
    # 6 blocks of 4. Both prompts of 8 take 2 blocks each, and the 3rd of each with the first decode. At 12 computed
    # tokens each needs a 4th: A takes B's three; B had made 5 tokens, and computes 8 + 5 again when A has ended.
    done = replay(replace(small, kv_tokens=24), np.zeros(2), np.array([8, 8]), np.array([8, 8]))
    assert done.preempted.tolist() == [0, 1]
    assert done.computed_tokens == 2 * (8 + 7) + 12
    assert done.last_s[1] > done.last_s[0]


def test_a_long_prompt_pays_for_the_attention_to_what_came_before(small: Profile) -> None:
    with_pairs = replace(small, attention_ms_per_pair=0.01)
    plain, paid = (replay(p, np.zeros(1), np.array([64]), np.ones(1, dtype=np.int64)) for p in (small, with_pairs))
    assert (paid.first_s[0] - plain.first_s[0]) * 1e3 == pytest.approx(0.01 * 64 * 64 / 2)


def test_a_replay_that_is_cut_off_leaves_the_rest_unfinished(small: Profile) -> None:
    done = replay(small, np.array([0.0, 5.0]), np.array([10, 10]), np.array([101, 5]), until_s=0.5)
    assert np.isnan(done.last_s).all()
    assert 0.5 <= done.end_s < 0.512
    assert 0 < done.made_tokens[0] < 101
    assert done.made_tokens[1] == 0
