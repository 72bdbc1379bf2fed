"""What `mesh explain` shows: why a service's replicas are where they are, or nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mesh import console
from mesh.cli import forecasts
from mesh.cli.base import Failed
from mesh.model import ReplicaState
from mesh.scheduler import placement
from mesh.scheduler.forecast.cluster import Cluster, Replica, Service
from mesh.scheduler.forecast.end_state import Waiting, avoided, engine_nodes, forecast, slot_order
from mesh.scheduler.forecast.live_cluster import live_cluster
from mesh.scheduler.placement import Request, Verdict
from mesh.scheduler.sentences import how_ended
from mesh.suggestion import suggestion
from mesh.view import View

MAX_SCORED = 50
"""Replicas whose score is shown; each takes a look at the whole cluster."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A replica and what its node is worth to it now, among `fit` nodes that would do (the best has `place` 1).

    `verdict` says why not, if the node would not be chosen again (it is paused, say).
    """

    replica: Replica
    verdict: Verdict
    place: int
    fit: int


def explain(view: View, name: str, node: str | None, *, as_json: bool) -> None:
    """Prints the explanation.

    Raises:
        Failed: if there is no such service or node.
    """
    cluster = live_cluster(view)
    if name not in cluster.services:
        raise Failed(f"there is no service {name!r}{suggestion(name, cluster.services)}")
    if node is not None and node not in cluster.sites:
        raise Failed(f"there is no node {node!r}{suggestion(node, cluster.sites)}")
    waiting = [only(one, node) for one in _waiting(view, cluster, name)]
    placed = _placed(cluster, name, node)
    more = _one_more(cluster, name, node) if node is not None else None
    failed = _failed(view, cluster, name, node)
    if as_json:
        console.print_json({
            "service": name,
            "pending": forecasts.waiting_json(waiting),
            "placed": [_placed_json(one) for one in placed],
            "failed": failed,
            **({"node": _verdict_json(more)} if more else {}),
        })  # fmt: skip
        return
    if not waiting and not placed:
        console.say(f"{name}: nothing waits, and nothing runs{f' on {node}' if node else ''}")
    _show_placed(placed)
    forecasts.show_waiting(waiting)
    for where, how in failed.items():
        console.say(f"{where} has failed it lately and comes last{how and f': {how}'}")
    if more:
        console.say(f"\none more of {name} on {more.node}: {more.why_not or score_text(more)}")


def _waiting(view: View, cluster: Cluster, name: str) -> list[Waiting]:
    """What waits in the end, with a sentence per node; and what waits for now, with the scheduler's words."""
    found = [one for one in forecast(cluster).waiting if one.service == name]
    known = {slot for one in found for slot in one.slots}
    plan = view.plans.get(name)
    others = [pending for pending in plan.pending if pending.slot not in known] if plan else []
    return found + [Waiting(name, [pending.slot], why="; ".join(pending.reasons)) for pending in others]


def only(waiting: Waiting, node: str | None) -> Waiting:
    """With the reasons of one node alone."""
    if node is None:
        return waiting
    reasons = {name: reason for name, reason in waiting.reasons.items() if name == node}
    return Waiting(waiting.service, waiting.slots, reasons, waiting.why)


def _placed(cluster: Cluster, name: str, node: str | None) -> list[Placed]:
    service = cluster.services[name]
    living = [one for one in cluster.replicas if one.holds_room and cluster.lives(one.node)]
    own = sorted((one for one in living if one.service == name and node in (None, one.node)),
                 key=lambda one: slot_order(one.slot))  # fmt: skip
    return [_judged(cluster, service, living, one) for one in own[:MAX_SCORED]]


def _judged(cluster: Cluster, service: Service, living: Sequence[Replica], replica: Replica) -> Placed:
    """What the nodes would be to the replica, if it had to be placed again."""
    if service.blueprint is None:
        return Placed(replica, Verdict(replica.node, service.why), 0, 0)
    bound = service.kind == "global" or service.blueprint.spec.volumes
    request = Request(service.name, replica.slot, service.blueprint, only=replica.node if bound else None,
                      avoid=_avoided(cluster, service.name))  # fmt: skip
    nodes = engine_nodes(cluster, living, {replica.id}, evictable=False)
    verdicts = placement.explain(request, nodes, cluster.strategy)
    fit = [verdict.node for verdict in verdicts if not verdict.why_not]
    verdict = next(verdict for verdict in verdicts if verdict.node == replica.node)
    return Placed(replica, verdict, fit.index(replica.node) + 1 if replica.node in fit else 0, len(fit))


def _one_more(cluster: Cluster, name: str, node: str) -> Verdict:
    """What one node would be to another replica of the service."""
    service = cluster.services[name]
    if service.blueprint is None:
        return Verdict(node, service.why)
    living = [one for one in cluster.replicas if one.holds_room and cluster.lives(one.node)]
    nodes = engine_nodes(cluster, living, evictable=False)
    request = Request(name, 0, service.blueprint, avoid=_avoided(cluster, name))
    verdicts = placement.explain(request, nodes, cluster.strategy)
    return next((verdict for verdict in verdicts if verdict.node == node), Verdict(node, "does not answer"))


def _avoided(cluster: Cluster, name: str) -> frozenset[str]:
    return avoided(cluster).get(name, frozenset())


def _failed(view: View, cluster: Cluster, name: str, node: str | None) -> dict[str, str]:
    """The nodes that failed its release lately, with how as far as somebody knows: `there is no network shop …`."""
    plan = view.plans.get(name)
    how = {state.node: state.why for state in plan.slots.values()} if plan else {}
    how |= {where: how_ended(one) for where, seen in view.nodes.items() for one in seen.report.replicas
            if one.service == name and one.state is ReplicaState.FAILED}  # fmt: skip
    return {where: how.get(where, "") for where in sorted(_avoided(cluster, name)) if node in (None, where)}


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {"node": verdict.node, "why_not": verdict.why_not, "score": dict(verdict.score)}


def _placed_json(one: Placed) -> dict[str, Any]:
    replica = one.replica
    return {"id": replica.id, "slot": replica.slot, "state": replica.state, **_verdict_json(one.verdict),
            "place": one.place, "fit": one.fit}  # fmt: skip


def _show_placed(placed: Sequence[Placed]) -> None:
    if placed:
        console.print_table(
            ["replica", "slot", "node", "state", "place", "score"],
            [[one.replica.id, one.replica.slot, one.replica.node, one.replica.state,
              f"{one.place} of {one.fit}" if one.place else "", one.verdict.why_not or score_text(one.verdict)]
             for one in placed],
        )  # fmt: skip


def score_text(verdict: Verdict) -> str:
    """The parts of a score, in the order in which they count; less is better."""
    return ", ".join(f"{wish} {value:.4g}" for wish, value in verdict.score)
