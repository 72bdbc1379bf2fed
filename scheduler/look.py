"""What the last look at the store found, so that the next one only thinks about what has changed since.

The parts of a `View` that did not change are the same objects, so a comparison by identity tells. A look spares work
and changes no decision: `reconcile` without it comes to the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mesh.model import Assignment, NodePlan, ReplicaReport, RolloutState, ScaleState, ServicePlan, Slot, Want
from mesh.scheduler.classify import Replica
from mesh.scheduler.decision import Decision, Scene
from mesh.scheduler.hosts import Condition, Hosts, Memory, Sighting
from mesh.scheduler.placement import Node, Refusal, Request
from mesh.scheduler.releases import config_names
from mesh.scheduler.service.rollout import Served
from mesh.view import Command, View, Wish

Muster = Mapping[str, Sequence[Replica]]
"""A service's replicas by node."""


@dataclass(frozen=True, slots=True)
class Tenancy:
    """The replicas of one node, by service: what is planned there, with what is known of it."""

    plan: NodePlan
    sighting: Sighting | None
    condition: Condition
    replicas: Mapping[str, Sequence[Replica]]
    complete: bool  # every release was known

    def alive(self, id: str) -> bool:
        return any(replica.id == id and not replica.state.ended for replicas in self.replicas.values()
                   for replica in replicas)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settled:
    """A decision that changed nothing, what it was made of, and until when it holds.

    `hosts` and `busy`: all nodes, if it depends on nodes where the service has nothing.
    """

    decision: Decision
    plan: ServicePlan
    wish: Wish | None
    scale: int | None
    scaled: ScaleState | None
    command: Command | None
    configs: Mapping[str, str | None]  # that the wish names
    muster: Muster
    watched_since: float
    until: float
    served: Mapping[str, Served | None] = field(default_factory=dict)  # of its canaries
    hosts: Hosts | None = None
    busy: Collection[str] = ()

    def holds(self, view: View, name: str, muster: Muster, scene: Scene) -> bool:
        """Decided again now, it would be the same."""
        return (
            self.muster is muster
            and self.plan is view.plans.get(name)
            and self.wish is view.wishes.get(name)
            and self.scale == view.scale.get(name)
            and self.scaled is view.scaled.get(name)
            and self.command is view.commands.get(name)
            and (not self.configs or all(view.configs.get(key) == value for key, value in self.configs.items()))
            and (not self.served or all(scene.served.get(id) == known for id, known in self.served.items()))
            and scene.now < self.until
            and self.watched_since == scene.watched_since
            and (self.hosts is None or (self.hosts is scene.hosts and self.busy == scene.busy))
        )


def settled(decision: Decision, muster: Muster) -> Settled | None:
    """The decision to be remembered, if it changed nothing; it then forgets what it was made of."""
    if not decision.changes_nothing:
        return None
    given, scene = decision.given, decision.given.scene
    until = min((at for at in decision.wake if at > scene.now), default=float("inf"))
    names = config_names(given.wish.spec).values() if given.wish and given.wish.spec else ()
    configs = {name: scene.configs.get(name) for name in names}
    known = Settled(
        decision, given.plan, given.wish, given.scale, given.scaled, given.command, configs, muster,
        scene.watched_since, until,
    )  # fmt: skip
    if decision.plan.rollout.state is RolloutState.CANARY:
        known = replace(known, served={one.id: scene.served.get(one.id) for one in given.replicas})
    del decision.given  # the picture of then would be kept for as long as the decision is
    if decision.plan.kind == "global" or any(one.condition is Condition.GONE for one in given.replicas):
        return replace(known, hosts=scene.hosts, busy=scene.busy)
    return known


@dataclass(frozen=True, slots=True)
class Parked:
    """A request that found no place, and why."""

    request: Request
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Look:
    """All that is kept from one look to the next."""

    tenancies: Mapping[str, Tenancy] = field(default_factory=dict)
    musters: Mapping[str, Muster] = field(default_factory=dict)
    settled: Mapping[str, Settled] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    parked: Mapping[tuple[str, Slot, int], Parked] = field(default_factory=dict)


def tenancies(view: View, hosts: Hosts, memory: Memory, before: Look) -> dict[str, Tenancy]:
    """Every planned node's replicas; those of nodes of which nothing changed are the same objects as before."""
    found: dict[str, Tenancy] = {}
    for node, plan in view.node_plans.items():
        sighting, condition = memory.sightings.get(node), hosts.by_name[node].condition
        known = before.tenancies.get(node)
        if (
            known is None
            or known.plan is not plan
            or known.sighting is not sighting
            or known.condition is not condition
            or not known.complete
        ):
            known = _tenancy(node, plan, sighting, condition, view.plans, known)
        found[node] = known
    return found


def _tenancy(
    node: str,
    plan: NodePlan,
    sighting: Sighting | None,
    condition: Condition,
    plans: Mapping[str, ServicePlan],
    before: Tenancy | None,
) -> Tenancy:
    reports = {report.id: report for report in sighting.seen.report.replicas} if sighting else {}
    replicas: dict[str, list[Replica]] = {}
    complete = True
    for assignment in plan.replicas:
        hash = _hash(assignment, plans.get(assignment.service))
        complete = complete and bool(hash)
        away = plan.lost and condition is Condition.LOST
        replica = _replica(assignment, node, condition, hash, reports.get(assignment.id), sighting, away=away)
        replicas.setdefault(assignment.service, []).append(replica)
    same = before.replicas if before else {}
    kept = {service: same[service] if same.get(service) == found else found for service, found in replicas.items()}
    return Tenancy(plan, sighting, condition, kept, complete)


def _hash(assignment: Assignment, plan: ServicePlan | None) -> str:
    releases = plan.releases if plan else ()
    return next((release.hash for release in releases if release.number == assignment.release), "")


def _replica(
    assignment: Assignment,
    node: str,
    condition: Condition,
    hash: str,
    report: ReplicaReport | None,
    sighting: Sighting | None,
    *,
    away: bool,
) -> Replica:
    standing = sighting.standing.get(assignment.id) if sighting else None
    return Replica(
        assignment,
        node,
        condition,
        hash,
        report,
        ready=standing is not None and standing.ready and condition is not Condition.GONE,
        since=standing.since if standing else assignment.placed,
        away=away,
    )


def musters(now: Mapping[str, Tenancy], before: Look) -> dict[str, Muster]:
    """Every service's replicas; those of services of which no node changed are the same objects as before."""
    found = dict(before.musters)
    changed: dict[str, dict[str, Sequence[Replica]]] = {}
    for node in now.keys() | before.tenancies.keys():
        old, new = before.tenancies.get(node), now.get(node)
        if old is new:
            continue
        old_replicas, new_replicas = old.replicas if old else {}, new.replicas if new else {}
        for service in old_replicas.keys() | new_replicas.keys():
            if old_replicas.get(service) is new_replicas.get(service):
                continue
            if service not in changed:
                changed[service] = dict(found.get(service, {}))
            if service in new_replicas:
                changed[service][node] = new_replicas[service]
            else:
                changed[service].pop(node, None)
    found.update(changed)
    for service in [service for service, muster in changed.items() if not muster]:
        del found[service]
    return found


def busy_nodes(now: Mapping[str, Tenancy], plans: Mapping[str, ServicePlan]) -> frozenset[str]:
    """Drained nodes that still run something else than global services."""
    return frozenset(node for node, tenancy in now.items()
                     if tenancy.condition.draining and any(_movable(tenancy, plans)))  # fmt: skip


def _movable(tenancy: Tenancy, plans: Mapping[str, ServicePlan]) -> Iterator[bool]:
    for service, replicas in tenancy.replicas.items():
        if service not in plans or plans[service].kind != "global":
            yield any(not one.state.ended and one.assignment.want is not Want.KEEP for one in replicas)
