"""What `profile measure` sets up fits the engine that it measures, and its rows are those that `fit` takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonscale.profiles.fit import fit
from reasonscale.profiles.prior import plane_of
from reasonscale.serving.measure import STEPS, Bench, Limits, prefill_points, sweep_points


@given(
    st.integers(2_000, 2_000_000), st.sampled_from([8, 64, 256, 512]), st.sampled_from([512, 2048, 8192]), st.sampled_from([1024, 8192, 32768])
)  # fmt: skip
def test_no_point_is_larger_than_the_engine(kv: int, seats: int, batched: int, context: int) -> None:
    limits = Limits(kv, seats, batched, context)
    for batch, tokens in sweep_points(limits):
        assert batch <= seats
        assert batch * (tokens + STEPS) <= kv
        assert tokens + STEPS < context
    assert all(n <= context for n in prefill_points(limits))


def test_a_7b_on_80_gb_has_two_contexts_for_each_number_of_requests() -> None:
    points = list(sweep_points(Limits(1_072_672, 256, 2048, 8192)))
    assert points == [
        (1, 256), (1, 4096), (8, 256), (8, 4096), (32, 256), (32, 4096), (64, 256), (64, 4096), (128, 256), (128, 2048),
        (256, 256), (256, 1024),
    ]  # fmt: skip


class FakeEngine:
    """An engine in virtual time whose step takes 5 ms + 0.01 ms a request, and 10 us a prompt token."""

    def __init__(self) -> None:
        self.now, self.rows = 0.0, dict[str, list[int]]()

    def add_request(self, name: str, prompt: dict[str, Any], params: Any) -> None:
        self.rows[name] = [len(prompt["prompt_token_ids"]), 0, params.max_tokens]

    def step(self) -> list[Any]:
        self.now += 0.005 + 1e-5 * len(self.rows)
        out = []
        for name, row in list(self.rows.items()):
            if row[1] == 0:
                self.now += 1e-5 * row[0]
            row[1] += 1
            out.append(SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=[0] * row[1])]))
            if row[1] >= row[2]:
                del self.rows[name]
        return out

    def abort_request(self, names: list[str]) -> None:
        for name in names:
            self.rows.pop(name, None)

    def has_unfinished_requests(self) -> bool:
        return bool(self.rows)


def test_what_is_measured_is_fitted_back(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    bench = Bench(engine, 1000, clock=lambda: engine.now)
    monkeypatch.setattr(bench, "_params", lambda most: SimpleNamespace(max_tokens=most))
    limits = Limits(100_000, 64, 2048, 8192)
    data = {
        "kv_tokens": limits.kv_tokens, "max_num_seqs": 64, "sweep": [bench.decode(*p) for p in sweep_points(limits)],
        "prefill": [bench.prefill(n, 3) for n in prefill_points(limits)],
    }  # fmt: skip
    step = plane_of(fit(data, name="fake"))
    assert step.a == pytest.approx(0.005, rel=0.01)
    assert step.b == pytest.approx(1e-5, rel=0.05)
    assert step.c == pytest.approx(0.0, abs=1e-10)
    assert step.d == pytest.approx(1e-5, rel=0.05)
