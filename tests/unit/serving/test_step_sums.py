"""A step's time counts where the engine was busy; an idle pause is no slow step."""

from __future__ import annotations

from reasonscale.serving.steps import StepSums


def test_time_between_two_busy_steps_is_a_step_with_the_batch_that_ran() -> None:
    sums = StepSums()
    sums.step(10.0, 4, 0, 0.5, 1000, 0, 0)
    sums.step(10.05, 3, 0, 0.4, 1000, 20, 0)
    assert (sums.steps, sums.batch, sums.kv_tokens, sums.prefill_tokens) == (1, 4, 500, 20)
    assert abs(sums.seconds - 0.05) < 1e-9


def test_a_pause_without_requests_is_not_a_step() -> None:
    sums = StepSums()
    sums.step(10.0, 1, 0, 0.1, 1000, 0, 0)
    sums.step(10.02, 0, 0, 0.0, 1000, 0, 0)
    sums.step(500.0, 2, 0, 0.2, 1000, 0, 0)
    assert sums.steps == 1
    assert abs(sums.seconds - 0.02) < 1e-9
    assert sums.kv_usage == 0.2


def test_preemptions_are_counted_in_the_first_step_too() -> None:
    sums = StepSums()
    sums.step(1.0, 2, 1, 1.0, 1000, 0, 3)
    sums.step(2.0, 2, 1, 1.0, 1000, 0, 1)
    assert sums.preemptions == 4


def test_the_pause_after_an_abort_is_not_a_step_and_holds_no_kv() -> None:
    sums = StepSums()
    sums.step(10.0, 8, 0, 0.9, 1000, 0, 0)
    sums.idle()  # all eight clients went away; the engine ran no further step to say so
    assert sums.kv_usage == 0
    sums.step(700.0, 1, 0, 0.1, 1000, 30, 0)
    assert (sums.steps, sums.seconds) == (0, 0.0)
