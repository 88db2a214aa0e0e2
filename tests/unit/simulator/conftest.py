"""A small engine that is worked out by hand: round times, few blocks."""

from __future__ import annotations

import pytest

from reasonscale.profiles.profile import Profile


@pytest.fixture(scope="session")
def small() -> Profile:
    """Two seats, 32 tokens a step; 10 ms + 0.01 ms a KV token; a prompt token costs 1 ms, a step with any 2 ms."""
    return Profile(
        name="small",
        model="small",
        kv_tokens=4096,
        block_tokens=4,
        max_num_seqs=2,
        max_num_batched_tokens=32,
        gpus_per_replica=1,
        decode=((1, 10.0, 0.01), (4, 10.0, 0.01)),
        prefill=((1, 10.0), (32, 41.0)),
        prefill_overhead_ms=2.0,
        attention_ms_per_pair=0.0,
    )
