"""Whether updates can begin: the end state fits, but start-first needs room beside what runs on the way there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from mesh.scheduler.forecast.cluster import Cluster, Replica, Service
from mesh.scheduler.forecast.end_state import Forecast, engine_nodes
from mesh.scheduler.placement import Node, Refusal, Request, place
from mesh.scheduler.service.rollout import allowance
from mesh.units import format_duration


def no_room_to_begin(cluster: Cluster, outcome: Forecast) -> Iterator[str]:
    """A sentence for each service whose old replicas leave no room for the first new one, and may not stop before it.

    What stops for good has stopped, and what fills empty slots is there already.
    """
    successors = {(new.service, new.slot) for new in outcome.placed}
    ends = {one.replica.id for one in outcome.stopped}
    handed_over: dict[str, list[Replica]] = defaultdict(list)
    for old in (one.replica for one in outcome.stopped):
        if (old.service, old.slot) in successors:
            ends.discard(old.id)
            if not old.current:
                handed_over[old.service].append(old)
    if not handed_over:
        return
    replaced = {(old.service, old.slot) for olds in handed_over.values() for old in olds}
    there = [one for one in cluster.replicas if one.holds_room and cluster.lives(one.node) and one.id not in ends]
    there += [new for new in outcome.placed if (new.service, new.slot) not in replaced]
    leaving = {old.id for olds in handed_over.values() for old in olds}
    nodes = engine_nodes(cluster, there, outgoing=leaving)
    for name, olds in sorted(handed_over.items()):
        yield from _stuck(cluster.services[name], olds, nodes, cluster.strategy)


def _stuck(service: Service, olds: Sequence[Replica], nodes: Sequence[Node], strategy: str) -> Iterator[str]:
    blueprint = service.blueprint
    if blueprint is None or blueprint.stop_first or any(old.demand.ports for old in olds):
        return
    update = blueprint.spec.update
    may = allowance(update, service.desired, stop_first=False)
    if may.unavailable or service.kind not in ("service", "global"):
        return
    is_global = service.kind == "global"
    requests = [Request(service.name, old.slot, blueprint, only=str(old.slot) if is_global else None) for old in olds]
    answers = place(requests, nodes, strategy)
    refused = [answer for answer in answers if isinstance(answer, Refusal)]
    if len(refused) == len(answers) or (is_global and refused):
        yield (
            f"{service.name}: the update cannot begin: a new replica starts before an old one stops, and no node has "
            f"room for it ({'; '.join(refused[0].sentences())}); it waits, and has failed after "
            f"{format_duration(update.progress_deadline)}, unless room is made, or update.max_unavailable allows to "
            f"stop one first"
        )
