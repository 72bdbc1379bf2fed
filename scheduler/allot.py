"""Places what all services ask for in one batch: who gets which place, who must leave for it, and who waits for what.

A place that others must leave first is not given yet: it is promised (`Claim`), and given when it is really free. What
found no place is parked, and asked for again only when a node has become better: more room, other labels, open again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mesh.model import Slot
from mesh.scheduler import placement
from mesh.scheduler.decision import PREEMPTED, Decision, Fill
from mesh.scheduler.look import Parked
from mesh.scheduler.placement import Holding, Node, Placement, Refusal, Request
from mesh.scheduler.plan_size import PlanSizes
from mesh.scheduler.start_brake import StartBrake

MAX_EVICTIONS = 50
"""Replicas that are made to leave at a time."""

MAX_FAULT = 300

Answer = Placement | Refusal
Key = tuple[str, Slot, int]


@dataclass(frozen=True, slots=True)
class Eviction:
    """A replica that must leave its node for a more important one."""

    service: str
    node: str
    cause: str


@dataclass(slots=True)
class Allotment:
    """An answer for each request, by service in the order of its fills; `evictions` by replica id."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    evictions: dict[str, Eviction] = field(default_factory=dict)
    parked: dict[Key, Parked] = field(default_factory=dict)
    look_at: float = float("inf")  # when to ask again for what was held
    faults: list[str] = field(default_factory=list)


def allot(
    decisions: Mapping[str, Decision],
    nodes: Mapping[str, Node],
    strategy: str,
    parked: Mapping[Key, Parked],
    sizes: PlanSizes,
    brake: StartBrake,
) -> Allotment:
    """`parked`: what needs not be tried again, since no node is better than it was."""
    result = Allotment()
    asked = [(_key(name, fill), fill.request) for name, decision in decisions.items() for fill in decision.fills]
    tried = [(key, request) for key, request in asked if key not in parked or parked[key].request != request]
    found = dict(zip((key for key, _ in tried), _placed([request for _, request in tried], nodes, strategy, result),
                     strict=True))  # fmt: skip
    leaving = sum(one.cause.startswith(PREEMPTED) for decision in decisions.values()
                  for held in decision.kept.values() for one in held)  # fmt: skip
    held = _held(decisions, found, brake, result)
    contested = _evicted(found.values(), nodes, MAX_EVICTIONS - leaving, result)
    for key, request in asked:
        if key in held:
            result.answers.setdefault(request.service, []).append(held[key])
            continue
        answer = found.get(key) or replace(parked[key].refusal, request=request)
        if isinstance(answer, Placement):
            answer = _promised(answer, contested[answer.node]) if answer.node in contested else sizes.checked(answer)
        if isinstance(answer, Refusal):
            result.parked[key] = Parked(request, answer)
        result.answers.setdefault(request.service, []).append(answer)
    return result


def _held(
    decisions: Mapping[str, Decision], found: Mapping[Key, Answer], brake: StartBrake, result: Allotment
) -> dict[Key, Refusal]:
    """The replacements that must wait until others have started. They are asked for again at the next look."""
    keys = [_key(name, fill) for name, decision in decisions.items() for fill in decision.fills if fill.replaces]
    keys = [key for key in keys if key in found]
    waiting = brake.held(found[key] for key in keys)
    if waiting:
        result.look_at = brake.look_at
    why = f"waits for its turn: each node starts at most {brake.most} replacements at a time"
    return {keys[position]: Refusal(found[keys[position]].request, why=why) for position in waiting}


def _key(service: str, fill: Fill) -> Key:
    return service, fill.request.slot, fill.run


def _placed(
    requests: Sequence[Request], nodes: Mapping[str, Node], strategy: str, result: Allotment
) -> Sequence[Answer]:
    """Where they go; if one of them is poisonous, each service alone, so that it stops no other.

    A fault comes up again with the service that it belongs to, and is told there; one that does not is told as it was.
    """
    if not requests:
        return []
    try:
        return placement.place(requests, nodes.values(), strategy)
    except Exception as error:
        answers = _placed_apart(requests, nodes, strategy, result)
        if not result.faults:
            fault = f"each service was placed alone, as all together could not be: {type(error).__name__}: {error}"
            result.faults.append(fault[:MAX_FAULT])
        return answers


def _placed_apart(
    requests: Sequence[Request], nodes: Mapping[str, Node], strategy: str, result: Allotment
) -> Sequence[Answer]:
    """Service by service, each on what the ones before it have left."""
    left = dict(nodes)
    answers: dict[int, Answer] = {}
    by_service: dict[str, list[int]] = {}
    for position, request in enumerate(requests):
        by_service.setdefault(request.service, []).append(position)
    for service, positions in by_service.items():
        batch = [requests[position] for position in positions]
        try:
            found = placement.place(batch, left.values(), strategy)
        except Exception as error:
            fault = f"this service could not be placed: {type(error).__name__}: {error}"[:MAX_FAULT]
            result.faults.append(f"{service}: {fault}")
            found = [Refusal(request, why=fault) for request in batch]
        answers.update(zip(positions, found, strict=True))
        for answer in found:
            if isinstance(answer, Placement):
                node, demand = left[answer.node], answer.request.blueprint.demand
                left[answer.node] = replace(node, holdings=[*node.holdings, Holding(service, demand)])
    return [answers[position] for position in range(len(requests))]


def _evicted(
    answers: Iterable[Answer], nodes: Mapping[str, Node], budget: int, result: Allotment
) -> dict[str, tuple[str, ...]]:
    """Who leaves each node on which somebody must; nobody, where the budget is used up.

    Whoever else was to go to such a node waits for them too: its room may be counted on what they leave.
    """
    leaving: dict[str, dict[str, str]] = {}
    for answer in answers:
        if isinstance(answer, Placement) and answer.evicts:
            priority = answer.request.blueprint.spec.placement.priority
            cause = f"{PREEMPTED} {answer.request.service} (priority {priority})"
            for id in answer.evicts:
                leaving.setdefault(answer.node, {}).setdefault(id, cause)
    contested: dict[str, tuple[str, ...]] = {}
    for node, causes in leaving.items():
        within = len(result.evictions) + len(causes) <= max(budget, 0)
        contested[node] = tuple(causes) if within else ()
        if within:
            services = {holding.id: holding.service for holding in nodes[node].holdings}
            result.evictions.update((id, Eviction(services[id], node, cause)) for id, cause in causes.items())
    return contested


def _promised(answer: Placement, evicts: tuple[str, ...]) -> Answer:
    if not evicts:
        return Refusal(answer.request, why=f"waits for its turn: {MAX_EVICTIONS} replicas are being preempted already")
    return replace(answer, evicts=evicts)


def better(new: Node, old: Node | None) -> bool:
    """Something that found no place before may find one here now."""
    if new is old:
        return False
    if old is None or (new.barred, new.capacity, new.attributes) != (old.barred, old.capacity, old.attributes):
        return True
    return not _weights(old.holdings) <= _weights(new.holdings)


def _weights(holdings: Sequence[Holding]) -> set[tuple[object, ...]]:
    return {(one.id or one.service, one.slot, one.stays, one.evictable) for one in holdings}
