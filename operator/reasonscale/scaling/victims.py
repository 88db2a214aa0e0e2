"""Which replicas Ray Serve stops when their number is lowered. Pure; its rule, checked against a Serve of several nodes.

Ray 2.60, `DeploymentScheduler._get_replicas_to_stop`: those that do not run yet; then nodes that are not the
head's, then nodes with the fewest Serve replicas of all deployments; and only within one node the newest. So with one
replica a pod all nodes tie, and the first of them goes: the replica that has run *longest*, not the newest. (A label
selector would come before the number of replicas; we render none.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Standing:
    """One replica of any deployment, as Serve lists it."""

    replica: str
    deployment: str
    node: str | None  # None: it has no place yet
    running: bool = True


def victims(replicas: Iterable[Standing], deployment: str, number: int, head: str | None = None) -> list[str]:
    """Return the replicas of a deployment that go first, in their order, at most `number`.

    `replicas` stand in the order in which they began to run, deployment by deployment, the one first that had a replica
    first; that order matters only where nodes that tie hold other deployments too, which nodes of engines do not. Those
    that do not run yet have no order among themselves. `head`: the id of the head's node.
    """
    known = list(replicas)
    going = [r.replica for r in known if r.deployment == deployment and not r.running]
    by_node: dict[str, list[Standing]] = defaultdict(list)
    for r in known:
        if r.running and r.node is not None:
            by_node[r.node].append(r)
    for node in sorted(by_node, key=lambda node: (node == head, len(by_node[node]))):
        going += [r.replica for r in reversed(by_node[node]) if r.deployment == deployment]
    return going[:number]
