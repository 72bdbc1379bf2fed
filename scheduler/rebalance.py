"""Rebalancing what runs, if operators ask for it: every so often, a bounded share of the replicas.

A move is a mark on an assignment: the node on which its successor is to start. From there it goes as off a drained
node: the successor starts and is healthy before the old one stops, no more at a time than the service's `update`
allows. A mark that cannot be followed any more, as there is no room now or the successor failed there, is taken off.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import msgspec

from mesh.model import Rebalance, RolloutState, Want
from mesh.scheduler.forecast.end_state import engine_nodes
from mesh.scheduler.forecast.live_cluster import live_cluster
from mesh.scheduler.hosts import Memory
from mesh.view import View


def next_at(wanted: Rebalance | None, memory: Memory) -> float | None:
    """When the next look is due; None if none is wanted, or nothing has been seen yet."""
    if wanted is None or memory.since is None:
        return None
    return max(memory.since, memory.rebalanced) + wanted.interval


def rebalanced(view: View, memory: Memory, now: float) -> tuple[View, Memory]:
    """The view with the moves marked, if it is time for them and everything else is at rest."""
    wanted, due_at = view.config.rebalance, next_at(view.config.rebalance, memory)
    if wanted is None or due_at is None or now < due_at or not _at_rest(view, memory):
        return view, memory
    memory = replace(memory, rebalanced=now)
    targets = _targets(view, wanted.share)
    node_plans = dict(view.node_plans)
    for node, marks in targets.items():
        plan = node_plans[node]
        marked = [msgspec.structs.replace(one, target=marks.get(one.id, one.target)) for one in plan.replicas]
        node_plans[node] = msgspec.structs.replace(plan, replicas=marked)
    return replace(view, node_plans=node_plans), memory


def _at_rest(view: View, memory: Memory) -> bool:
    """No node is silent, no rollout is under way, nothing is pending, stops or moves."""
    return (
        all(node.held for node in view.nodes.values())
        and not memory.braked
        and not view.unreadable
        and all(plan.rollout.state is RolloutState.IDLE and not plan.pending for plan in view.plans.values())
        and not any(one.want is Want.STOP or one.target for plan in view.node_plans.values() for one in plan.replicas)
    )


def _targets(view: View, share: float) -> dict[str, dict[str, str]]:
    """The moves by node: replica id → target. Only what is ready, and of the release in force, moves."""
    from mesh.scheduler.repack import repack  # numpy comes with it

    cluster = live_cluster(view)
    running = [replica for replica in cluster.replicas if replica.holds_room]
    blueprints = {
        replica.id: service.blueprint
        for replica in running
        if replica.ready and replica.current
        and (service := cluster.services.get(replica.service)) is not None and service.blueprint is not None
    }  # fmt: skip
    targets: dict[str, dict[str, str]] = defaultdict(dict)
    for move in repack(engine_nodes(cluster, running), blueprints, share=share, strategy=cluster.strategy):
        targets[move.source][move.id] = move.target
    return targets
