"""From a picture of the store to what must change: the pure heart of the scheduler.

    classify each service's replicas ─► decide (keep, stop, ask) ─► place all requests in one batch ─► write plans

Asked again about its own result, at the same time, it changes nothing. Time and ids come from outside.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mesh.keys import Keys
from mesh.model import Assignment, Capacity, NodePlan, ServicePlan, Slot, spec_key
from mesh.scheduler.blueprint import NO_DEMAND, blueprint_or_none
from mesh.scheduler.classify import Replica
from mesh.scheduler.hosts import LOST_AFTER, Condition, Hosts, Memory, remember, survey
from mesh.scheduler.placement import Holding, Node, Placement, Refusal, Request, place
from mesh.scheduler.plan import Outcome
from mesh.scheduler.plan_size import PlanSizes
from mesh.scheduler.service import Decision, Input
from mesh.scheduler.vips import VipPool
from mesh.spec.checks import MAX_NAME
from mesh.view import View

NO_MEMORY = Memory()

MAX_FAULT = 300

MAX_SLOT_LABEL = 63 - MAX_NAME - len("--6f3a")
"""So that a replica's id remains one DNS label."""


def reconcile(
    view: View,
    now: float,
    new_id: Callable[[], str],
    memory: Memory = NO_MEMORY,
    *,
    lost_after: float = LOST_AFTER,
    keys: Keys = Keys(),  # noqa: B008 - immutable
) -> Outcome:
    """What must be written so that what runs becomes what is desired, and when to look again.

    Args:
        view: what is desired, planned and observed.
        now: Unix seconds, by a clock that never jumps.
        new_id: four hex digits, to tell the replicas of a slot apart.
        memory: what this leader remembers (from the last `Outcome`).
        lost_after: seconds from a node's silence to its replacement.
        keys: to tell what an unreadable key is about.
    """
    if blind := sorted(key for key in view.unreadable if key.startswith(keys.planned_nodes)):
        return Outcome(memory=memory, frozen=f"nothing is decided: {', '.join(blind)} cannot be read")
    memory = remember(view, memory, now)
    hosts = survey(view, memory, now, lost_after, keys)
    replicas = _replicas(view, hosts, memory)
    unreadable = {key.removeprefix(keys.planned_services) for key in view.unreadable}
    faults: list[str] = []
    decisions: dict[str, Decision | _Untouched] = {}
    for name in sorted(view.wishes.keys() | view.plans.keys() | replicas.keys()):
        plan = view.plans.get(name, ServicePlan(service=name))
        given = Input(
            plan, view.wishes.get(name), view.scale.get(name), replicas.get(name, []), hosts, memory.since or now, now
        )
        decisions[name] = _untouched(given) if name in unreadable else _decided(given, faults)
    _give_vips(decisions, view.config.vip_range)
    _place(decisions, view, hosts, new_id)
    plans = {name: decision.plan for name, decision in decisions.items() if not decision.is_over}
    node_plans = _node_plans(decisions, view, hosts)
    return Outcome(
        services={name: plan for name, plan in plans.items()
                  if name not in unreadable and plan != view.plans.get(name)},
        nodes={node: plan for node, plan in node_plans.items() if plan != view.node_plans.get(node)},
        removed_services=frozenset(view.plans.keys() - plans.keys()),
        removed_nodes=frozenset(view.node_plans.keys() - node_plans.keys()),
        wake_at=min([at for decision in decisions.values() for at in decision.wake if at > now]
                    + [at for at in (hosts.give_up_at,) if at is not None], default=None),
        memory=memory,
        frozen=hosts.frozen,
        pending=sum(len(plan.pending) for plan in plans.values()),
        faults=tuple(faults),
    )  # fmt: skip


@dataclass(slots=True)
class _Untouched:
    """A service that cannot be decided on: all it has stays as it is."""

    plan: ServicePlan
    kept: list[tuple[str, Assignment]]
    is_over: bool = False
    outgoing: set[str] = field(default_factory=set)
    requests: list[Request] = field(default_factory=list)
    wake: list[float] = field(default_factory=list)

    def finish(self, answers: Sequence[Placement | Refusal], new_replica_id: Callable[[str, Slot], str]) -> None:
        """Nothing was asked for."""


def _untouched(given: Input, error: str = "") -> _Untouched:
    plan = msgspec.structs.replace(given.plan, errors=[error]) if error else given.plan
    return _Untouched(plan, [(replica.node, replica.assignment) for replica in given.replicas])


def _decided(given: Input, faults: list[str]) -> Decision | _Untouched:
    """One poisonous service must not stop the others: whatever goes wrong with it, it is left as it is, and says so."""
    try:
        return Decision(given)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"[:MAX_FAULT]
        fault = f"this service could not be decided on and stays as it is: {what}"
        faults.append(f"{given.plan.service}: {fault}")
        return _untouched(given, fault)


def _replicas(view: View, hosts: Hosts, memory: Memory) -> dict[str, list[Replica]]:
    """All planned replicas with what is known of them, by service."""
    hashes = {(plan.service, release.number): release.hash for plan in view.plans.values() for release in plan.releases}
    found: dict[str, list[Replica]] = defaultdict(list)
    for node, plan in view.node_plans.items():
        host = hosts.by_name[node]
        reports = {report.id: report for report in host.report.replicas} if host.report else {}
        for assignment in plan.replicas:
            standing = memory.standing.get(assignment.id)
            found[assignment.service].append(Replica(
                assignment,
                node,
                host.condition,
                hashes.get((assignment.service, assignment.release), ""),
                reports.get(assignment.id),
                ready=standing is not None and standing.ready and host.condition is not Condition.GONE,
                since=standing.since if standing else assignment.placed,
            ))  # fmt: skip
    return found


def _give_vips(decisions: Mapping[str, Decision | _Untouched], vip_range: str) -> None:
    """Every service that has a release has a virtual IP; without one nothing of it is placed."""
    pool = VipPool(vip_range)
    needy = [decision for decision in decisions.values() if not pool.keep(decision.plan.vip)]
    for decision in needy:
        if isinstance(decision, Decision) and decision.plan.releases:
            decision.take_vip(pool.take(), pool.fault)


def _place(decisions: Mapping[str, Decision | _Untouched], view: View, hosts: Hosts, new_id: Callable[[], str]) -> None:
    """Places what all services ask for in one batch, and lets each finish its decision."""
    requests = [request for decision in decisions.values() for request in decision.requests]
    answers: dict[str, list[Placement | Refusal]] = defaultdict(list)
    if requests:
        sizes = PlanSizes(_all_kept(decisions.values()))
        for answer in place(requests, _nodes(decisions, hosts), view.config.strategy):
            answers[answer.request.service].append(sizes.checked(answer))
    taken = {assignment.id for plan in view.node_plans.values() for assignment in plan.replicas}
    taken.update(report.id for node in view.nodes.values() for report in node.report.replicas)

    def new_replica_id(service: str, slot: Slot) -> str:
        while (id := f"{service}-{_label(slot)}-{new_id()}") in taken:
            pass
        taken.add(id)
        return id

    for name, decision in decisions.items():
        decision.finish(answers[name], new_replica_id)


def _label(slot: Slot) -> str:
    """A slot as a part of a DNS label: a global service's slots are named like nodes."""
    return re.sub("[^a-z0-9]+", "-", str(slot).lower()).strip("-")[:MAX_SLOT_LABEL]


def _all_kept(decisions: Iterable[Decision | _Untouched]) -> Iterable[tuple[str, Assignment, ServicePlan]]:
    """Every assignment that stays, with its node and its service's plan."""
    return ((node, assignment, decision.plan) for decision in decisions for node, assignment in decision.kept)


def _nodes(decisions: Mapping[str, Decision | _Untouched], hosts: Hosts) -> list[Node]:
    """Every node with what lies on it."""
    holdings: dict[str, list[Holding]] = defaultdict(list)
    for decision in decisions.values():
        for node, assignment in decision.kept:
            blueprint = blueprint_or_none(decision.plan, assignment.release)
            demand = blueprint.demand if blueprint else NO_DEMAND
            holdings[node].append(
                Holding(
                    assignment.service, demand, assignment.id not in decision.outgoing, assignment.id, assignment.slot
                )
            )
    return [
        Node(
            name,
            host.report.capacity if host.report else Capacity(),
            host.attributes,
            holdings[name],
            host.why,
        )
        for name, host in hosts.by_name.items()
    ]


def _node_plans(decisions: Mapping[str, Decision | _Untouched], view: View, hosts: Hosts) -> dict[str, NodePlan]:
    """The plan of every node that is there or was; a node that was given up and whose report is gone needs none."""
    assigned: dict[str, list[Assignment]] = defaultdict(list)
    specs: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for name, decision in decisions.items():
        numbered = {release.number: release.spec for release in decision.plan.releases}
        for node, assignment in decision.kept:
            assigned[node].append(assignment)
            key = spec_key(name, assignment.release)
            if key in specs[node]:
                continue
            before = view.node_plans.get(node)
            spec = before.specs.get(key) if before else None  # the same object compares at once
            if spec is None:
                spec = numbered.get(assignment.release)
            if spec is not None:
                specs[node][key] = spec
    plans: dict[str, NodePlan] = {}
    for name, host in hosts.by_name.items():
        known = name in view.node_plans
        if host.condition is Condition.LOST:
            if known and host.report is not None:
                plans[name] = NodePlan(node=name, lost=True)
        elif known or host.condition is not Condition.GONE:
            plans[name] = NodePlan(
                node=name,
                replicas=sorted(assigned[name], key=lambda one: (one.service, str(one.slot), one.id)),
                specs=specs[name],
            )
    return plans
