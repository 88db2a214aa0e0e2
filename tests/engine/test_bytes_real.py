"""Engines are killed inside a character of several bytes and inside a tool's JSON, on real replicas of a model whose tokens are bytes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.engine.byte_model import PARTS, THOUGHT, make
from tests.engine.streams import Load, asked, busiest, engines_of, share_of, whole

from reasonscale.serving.pace import ENV as PACE_ENV

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(600)]
STREAMS = 12


@pytest.fixture(scope="module")
def fleet(start_service: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two replicas behind one ingress."""
    log, folder = tmp_path_factory.mktemp("logs") / "access.jsonl", make(tmp_path_factory.mktemp("model"))
    args = {"max_num_seqs": "16", "num_gpu_blocks_override": "800"}
    with start_service(log, replicas=2, env={PACE_ENV: "30"}, args=args, folder=folder) as found:
        yield found


def inside(tokens: int) -> bool:
    """Tell whether so many tokens of the thought end inside a character."""
    try:
        (THOUGHT * 99).encode()[:tokens].decode()
    except UnicodeDecodeError:
        return True
    return False


def test_no_byte_is_lost_whatever_character_or_json_the_engine_died_in(fleet: Any) -> None:
    # Budgets that end in every place of the thought, so that streams are in different ones at any time.
    bodies = [asked(fleet, f"go {i}", thinking_token_budget=300 + i, max_tokens=550) for i in range(STREAMS)]
    undisturbed = Load(fleet, bodies).end()
    whole(undisturbed)
    for h in undisturbed:
        assert h.reasoning.startswith(THOUGHT * 9)
        assert h.content.startswith("".join(PARTS) * 3)
        assert h.usages[0]["completion_tokens"] == 550
    chain, answer = (
        share_of([replace(h, **{other: ""}) for h in undisturbed], 1.0) for other in ("content", "reasoning")
    )
    cut = 0
    for what, characters in (
        ("replica", 0.2 * chain), ("engine", 0.6 * chain), ("replica", chain + 0.3 * answer), ("engine", chain + 0.8 * answer)
    ):  # fmt: skip
        fleet.wait_replicas(2)
        load = Load(fleet, bodies)
        load.wait_characters(characters)
        victim, pid = busiest(fleet)
        while True:  # a token takes 30 ms, and a look less
            rows = next(ledger["rows"] for ledger in fleet.ledgers() if ledger["replica"] == victim)
            thinking = [row["generated"] for row in rows.values() if row["phase"] == "reasoning"]
            if any(inside(tokens) for tokens in thinking) or not thinking:
                break
        for process in [pid] if what == "replica" else engines_of(pid):
            os.kill(process, signal.SIGKILL)
        cut += sum(inside(tokens) for tokens in thinking)
        assert bool(thinking) is (characters < chain)
        heard = load.end()
        whole(heard)
        for got, want in zip(heard, undisturbed, strict=True):
            assert (got.said, got.finishes, got.usages) == (want.said, want.finishes, want.usages)
        pauses = sorted(h.longest_s for h in heard)
        print(f"kill -9 of the {what}: {len(rows)} streams there, longest silence {pauses[-1]:.2f} s")
        fleet.wait_replicas(2, but=frozenset({victim}))  # before then Serve still names the dead one
        fleet.wait_all_idle()
    print(f"{cut} streams were cut inside a character of the chain")
    assert cut
