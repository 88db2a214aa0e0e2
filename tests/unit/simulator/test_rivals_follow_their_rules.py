"""Each rival's rule, worked out by hand on a short sequence of observations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.unit.simulator.scenes import SETTING, scrape, steady, view

from reasonscale.simulator import policies
from reasonscale.simulator.policies.base import BadPolicy, HpaDamping
from reasonscale.simulator.policies.models import request_rate, seats_at


def rule(name: str, **params: Any) -> policies.Policy:
    return policies.make(name, SETTING, params)


def test_ray_serve_goes_up_after_30_s_and_down_after_600_s():
    policy = rule("ray-serve")
    # 10 requests over a target of 2 want 5 replicas; the third decision in a row is the 30 s, the fourth beyond them.
    history = steady(100.0, 10.0, [10])
    assert [policy.decide(view(history[: i + 1], 1)) for i in range(4)] == [1, 1, 1, 5]
    calm = steady(1000.0, 10.0, [1, 1, 0, 0, 0])
    found = [policy.decide(view(calm[: i + 1], 5)) for i in range(61)]
    assert found[:60] == [5] * 60
    assert found[60] == 1


def test_ray_serve_forgets_its_delay_when_the_wish_passes():
    policy = rule("ray-serve", look_back_s=5.0)
    loads = [[10], [10], [2], [10], [10], [10], [10]]
    history = [scrape(10.0 * (i + 1), load) for i, load in enumerate(loads)]
    assert [policy.decide(view(history[: i + 1], 1)) for i in range(7)] == [1] * 6 + [5]


def test_hpa_leaves_ten_percent_alone_and_waits_300_s_to_go_down():
    policy = rule("hpa", target=10.0)
    assert policy.decide(view([scrape(15.0, [11, 11])], 2)) == 2  # 1.1: within
    assert policy.decide(view([scrape(30.0, [12, 12])], 2)) == 3  # ceil(2 x 1.2)
    found = [policy.decide(view([scrape(45.0 + 15.0 * i, [3, 3, 3])], 3)) for i in range(22)]
    assert found[:20] == [3] * 20
    assert found[21] == 1


def test_hpa_rises_by_four_or_by_doubling_in_15_s():
    damping = HpaDamping()
    assert damping.apply(0.0, 2, 50) == 6
    assert damping.apply(15.0, 6, 50) == 12


def test_production_stack_asks_for_a_replica_for_each_five_that_wait():
    policy = rule("production-stack")
    assert policy.decide(view([scrape(15.0, [8, 8], waiting=[6, 6])], 2)) == 3  # ceil(12 / 5)
    # The next look is polled 30 s later only.
    assert policy.decide(view([scrape(30.0, [8, 8, 0], waiting=[20, 20, 0])], 3)) == 3
    assert policy.decide(view([scrape(45.0, [8, 8, 0], waiting=[20, 20, 0])], 3)) == 7  # 8 wanted, four more at once


def test_kserve_keda_asks_for_a_replica_for_each_two_that_run():
    assert rule("kserve-keda").decide(view([scrape(15.0, [3, 4])], 2)) == 4


def test_knative_panics_at_twice_its_capacity_and_does_not_go_down_then():
    policy = rule("knative-kpa", target=10.0)  # 7 a replica
    history = steady(60.0, 2.0, [7])
    assert policy.decide(view(history, 1)) == 1
    burst = [*history, *(scrape(62.0 + 2 * i, [7], waiting=[21]) for i in range(3))]
    assert policy.decide(view(burst, 1)) == 4  # 28 / 7 within the 6 s window
    quiet = [*burst, *(scrape(68.0 + 2 * i, [1, 0, 0, 0]) for i in range(10))]
    assert policy.decide(view(quiet, 4, 4)) == 4  # still in panic
    later = steady(400.0, 2.0, [1, 0, 0, 0])
    policy.decide(view(later[:170], 4, 4))
    assert policy.decide(view(later, 4, 4)) == 2  # at most halved at once


def test_kubeai_averages_ten_minutes_over_100_a_replica():
    policy = rule("kubeai")
    history = steady(600.0, 10.0, [150, 150])
    assert policy.decide(view(history, 2)) == 3
    low = steady(600.0, 10.0, [20, 20, 20])
    assert [policy.decide(view(low, 3)) for _ in range(4)] == [3, 3, 3, 1]  # lower for more than 30 s


def test_aibrix_takes_kv_usage_over_a_half():
    policy = rule("aibrix-apa")
    assert policy.decide(view(steady(180.0, 15.0, [1, 1], kv=[0.52, 0.54]), 2)) == 2  # 1.06: within
    assert policy.decide(view(steady(180.0, 15.0, [1, 1], kv=[0.7, 0.8]), 2)) == 3  # ceil(2 x 1.5)
    low = steady(1000.0, 15.0, [1, 1, 1], kv=[0.1, 0.1, 0.1])
    assert policy.decide(view(low[:20], 3)) == 3
    assert policy.decide(view(low[:45], 3)) == 2  # 300 s later, at most halved


def test_wva_v1_adds_one_when_little_is_spare_and_waits_for_a_pending_one():
    policy = rule("llm-d-wva-v1")
    assert policy.decide(view([scrape(60.0, [1, 1], kv=[0.75, 0.74])], 2)) == 3  # 5.5 points spare
    assert policy.decide(view([scrape(60.0, [1, 1], kv=[0.75, 0.74])], 3, 2, (10.0,))) == 3
    assert policy.decide(view([scrape(60.0, [1, 1], kv=[0.9, 0.85])], 2)) == 3  # all saturated
    assert policy.decide(view([scrape(60.0, [1, 1], kv=[0.3, 0.3])], 2)) == 1  # 0.6 on one leaves 0.2
    assert policy.decide(view([scrape(60.0, [1, 1], kv=[0.4, 0.4])], 2)) == 2  # 0.8 on one leaves nothing


def test_wva_v2_counts_tokens_in_use_and_waiting():
    policy = rule("llm-d-wva-v2")
    # 900 in use + 4 waiting of 100 tokens: 1,300 over 800 x 0.85.
    seen = scrape(60.0, [1, 1], kv=[0.5, 0.4], waiting=[4, 0], inputs=[100.0, 100.0])
    assert policy.decide(view([seen], 1)) == 2


def test_token_aware_takes_the_larger_of_prompts_and_kv_one_at_a_time():
    policy = rule("llm-d-token-aware")
    # 4,000 prompt tokens at 1 ms over 1.5 s want 3; it may go up by one in 180 s.
    seen = scrape(15.0, [1], prompts_left=[4000.0], kv=[0.5])
    assert policy.decide(view([seen], 1)) == 2
    assert policy.decide(view([replace(seen, time=30.0)], 2)) == 2
    assert policy.decide(view([replace(seen, time=200.0)], 2)) == 3


def test_slo_aware_moves_by_the_distance_from_its_band():
    policy = rule("llm-d-slo-aware", up_window_s=0.0)
    slow = scrape(15.0, [1, 1], ttft_s=[2.0] * 10, tpot_s=[0.02] * 10)  # score 1: 2 + ceil(2 x (1/0.55 - 1))
    assert policy.decide(view([slow], 2)) == 4
    fine = scrape(30.0, [1, 1], ttft_s=[1.0] * 10, tpot_s=[0.02] * 10)  # 0.5: in the band
    assert policy.decide(view([fine], 4)) == 4


def test_dynamo_by_throughput_divides_the_rate_by_an_engine_s_rate():
    policy = rule("dynamo-throughput")
    seen = scrape(180.0, [1], window_s=180.0, arrivals=180, inputs=[10.0], outputs=[40.0])
    seats = seats_at(SETTING, 30.0, 0.05)
    assert seats == 8.0  # bounded by the seats
    rate = request_rate(SETTING, 10.0, 40.0, 0.05)
    assert rate == pytest.approx(1.0 / (40 * 0.05 / 8 + 10 * 0.001), rel=1e-6)
    assert policy.decide(view([seen], 1)) == int(np.ceil(1.0 / rate))


def test_dynamo_by_load_adds_one_when_every_replica_misses():
    policy = rule("dynamo-load")
    history = [
        scrape(5.0 * i, [1, 1], kv=[0.1 + 0.02 * i, 0.1 + 0.02 * i], step_ms=[20 + 2.0 * i, 20 + 2.0 * i])
        for i in range(1, 21)
    ]
    for i in range(19):
        policy.decide(view(history[: i + 1], 2))
    assert policy.decide(view(history, 2)) == 3  # 60 ms a token predicted for both
    assert policy.decide(view(history, 3, 2, (5.0,))) == 3  # frozen while it scales


def test_dynamo_in_easy_mode_looks_at_scheduled_and_queued_kv():
    policy = rule("dynamo-easy")
    assert policy.decide(view([scrape(5.0, [1, 1], kv=[0.8, 0.7], prompts_left=[300.0, 0.0])], 2)) == 3
    assert policy.decide(view([scrape(5.0, [1, 1], kv=[0.7, 0.5])], 2)) == 2
    assert policy.decide(view([scrape(5.0, [1, 1], kv=[0.5, 0.5])], 2)) == 1


def test_tokenscale_sums_prefill_and_decode_by_buckets():
    policy = rule("tokenscale")
    # 2 requests/s of 100 prompt tokens: 0.2 for prefill. 100 tokens out: 2 x 100 x 50 ms / 8 seats = 1.25.
    seen = scrape(60.0, [1], window_s=60.0, arrivals=120, prompt_tokens=12_000, outputs=[100.0] * 5)
    assert policy.decide(view([seen], 1)) == 2


def test_chiron_keeps_a_third_of_the_instances_busy():
    policy = rule("chiron", band=0.0)
    # Each is half full, which is busy: 2 / (1/3) x 0.5.
    assert policy.decide(view([scrape(10.0, [1, 1], kv=[0.5, 0.5])], 2)) == 4


def test_sageserve_reacts_to_memory_below_its_hourly_plan():
    policy = rule("sageserve")
    assert policy.decide(view([scrape(60.0, [1, 1], kv=[0.5, 0.5])], 2)) == 2
    assert policy.decide(view([scrape(120.0, [1, 1], kv=[0.8, 0.8])], 2)) == 3
    assert policy.decide(view([scrape(180.0, [1, 1, 1], kv=[0.1, 0.1, 0.1])], 3)) == 2


def test_preserve_anticipates_kv():
    policy = rule("preserve")
    # 1,300 tokens held or to be computed, over 800 a replica.
    seen = scrape(10.0, [1, 1], kv=[0.5, 0.5], prompts_left=[300.0, 0.0], outputs=[10.0])
    assert policy.decide(view([seen], 2)) == 2
    more = scrape(20.0, [1, 1], kv=[0.9, 0.9], prompts_left=[300.0, 0.0], outputs=[10.0])
    assert policy.decide(view([seen, more], 2)) == 3


@pytest.mark.parametrize("name", [n for n in policies.names() if n != "reasonscale"])
def test_every_rule_answers_a_quiet_and_a_busy_fleet(name):
    policy = rule(name)
    quiet = steady(600.0, 5.0, [0, 0], kv=[0.0, 0.0], steps=[0, 0])
    assert 1 <= max(1, policy.decide(view(quiet, 2))) <= 2
    busy = steady(
        1200.0, 5.0, [8, 8], kv=[0.99, 0.99], waiting=[200, 200], prompts_left=[5e4, 5e4], arrivals=50,
        prompt_tokens=5000, inputs=[100.0] * 20, outputs=[500.0] * 20, ttft_s=[30.0] * 20, tpot_s=[0.2] * 20,
        step_ms=[200.0, 200.0],
    )  # fmt: skip
    target = 2
    for i in range(120, 240):
        target = max(target, policy.decide(view(busy[: i + 1], target)))
    assert target > 2


def test_a_wrong_name_or_parameter_lists_what_there_is():
    with pytest.raises(BadPolicy, match="there are reasonscale, ray-serve"):
        rule("magic")
    with pytest.raises(BadPolicy, match="has no parameter tarqet; there are target"):
        rule("ray-serve", tarqet=3)
    with pytest.raises(BadPolicy, match="must be static:N"):
        rule("static:none")
