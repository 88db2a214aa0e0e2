"""A node is lost with the engines on it, all its processes at once: their streams go on in what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from tests.engine.streams import Load, asked, in_words, pauses_of, questions, share_of, whole

from reasonscale.serving.pace import ENV as PACE_ENV

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(600)]
STREAMS = 24


@pytest.fixture(scope="module")
def fleet(start_service: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Three replicas on two nodes beside the head, which carries two ingress replicas."""
    args = {"max_num_seqs": "32", "num_gpu_blocks_override": "800"}
    log = tmp_path_factory.mktemp("logs") / "access.jsonl"
    with start_service(
        log, replicas=3, env={PACE_ENV: "30"}, ingress_replicas=2, args=args, engines_on=(1, 2)
    ) as found:
        yield found


def test_the_loss_of_a_node_with_two_engines_costs_the_streams_a_pause_and_no_more(fleet: Any) -> None:
    bodies = [asked(fleet, q) for q in questions(STREAMS)]
    undisturbed = Load(fleet, bodies).end()
    whole(undisturbed)
    load = Load(fleet, bodies)
    load.wait_characters(share_of(undisturbed, 0.2))
    there = fleet.nodes_of(fleet.deployment)
    node, engines = Counter(there.values()).most_common(1)[0]
    assert engines == 2
    rows = {ledger["replica"]: len(ledger["rows"]) for ledger in fleet.ledgers()}
    lost = frozenset(replica for replica, at in there.items() if at == node)
    fleet.nodes.kill(node)
    heard = load.end()
    whole(heard)
    for got, want in zip(heard, undisturbed, strict=True):
        assert (got.said, got.finishes, got.usages) == (want.said, want.finishes, want.usages)
    pauses = pauses_of(fleet, heard)
    assert len(pauses) >= 0.5 * sum(rows[replica] for replica in lost) > 0
    fleet.nodes.add(2)
    fleet.wait_replicas(3, but=lost)
    fleet.wait_all_idle()
    print(f"a node with {[rows[r] for r in lost]} streams on its engines was lost: {in_words(pauses)}")
