"""From a picture of the store to what must change: the pure heart of the scheduler.

    decide for each service (keep, stop, ask) ─► place all requests in one batch ─► write plans

Asked again about its own result, at the same time, it changes nothing. Time and ids come from outside.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from mesh.keys import Keys
from mesh.model import Assignment, NodePlan, ServicePlan, Slot, Want, spec_key
from mesh.scheduler import releases
from mesh.scheduler.allot import Allotment, allot, better
from mesh.scheduler.blueprint import Blueprint, Demand, blueprint_or_none
from mesh.scheduler.classify import classify
from mesh.scheduler.decision import Decision, Input, Removal, Scene, Untouched
from mesh.scheduler.hosts import (
    LOST_AFTER,
    NO_HEARING,
    Condition,
    Hearing,
    Host,
    Hosts,
    Memory,
    remember,
    survey,
)
from mesh.scheduler.jobs import JobDecision
from mesh.scheduler.look import Look, Muster, Settled, busy_nodes, musters, settled, tenancies
from mesh.scheduler.placement import Holding, Node
from mesh.scheduler.plan import Outcome, Story
from mesh.scheduler.plan_size import PlanSizes
from mesh.scheduler.rebalance import next_at, rebalanced
from mesh.scheduler.service.decide import ServiceDecision
from mesh.scheduler.service.rollout import Served
from mesh.scheduler.start_brake import StartBrake
from mesh.scheduler.vips import VipPool
from mesh.spec.checks import MAX_NAME
from mesh.view import View

NO_MEMORY = Memory()
NO_MUSTER: Muster = {}
NOTHING_SERVED: Mapping[str, Served] = {}

MAX_ROUNDS = 12
"""Of evictions: each goes at least 10 priorities down, from 100 to 0."""

MAX_FAULT = 300

MAX_SLOT_LABEL = 63 - MAX_NAME - len("--6f3a")
"""So that a replica's id remains one DNS label."""


def reconcile(
    view: View,
    now: float,
    new_id: Callable[[], str],
    memory: Memory = NO_MEMORY,
    *,
    hearing: Hearing = NO_HEARING,
    served: Mapping[str, Served] = NOTHING_SERVED,
    lost_after: float = LOST_AFTER,
    keys: Keys = Keys(),  # noqa: B008 - immutable
) -> Outcome:
    """What must be written so that what runs becomes what is desired, and when to look again.

    Args:
        view: what is desired, planned and observed.
        now: Unix seconds, by a clock that never jumps.
        new_id: four hex digits, to tell the replicas of a slot apart.
        memory: what this leader remembers (from the last `Outcome`).
        hearing: what direct probes say of the nodes.
        served: what canaries, by their id, were sent lately.
        lost_after: seconds from the end of a node's session to its replacement, where no probe tells more.
        keys: to tell what an unreadable key is about.
    """
    if blind := sorted(key for key in view.unreadable if key.startswith(keys.planned_nodes)):
        return Outcome(memory=memory, frozen=f"nothing is decided: {', '.join(blind)} cannot be read")
    unreadable = {key.removeprefix(keys.planned_services) for key in view.unreadable}
    planned, memory = rebalanced(view, memory, now)
    for _ in range(MAX_ROUNDS):
        memory = remember(planned, memory, now, hearing)
        hosts = survey(planned, memory, now, lost_after, keys, hearing)
        one = _Round(planned, hosts, replace(memory, hosts=hosts), served, now, unreadable)
        planned, memory = one.carry_out(new_id)
        if not one.allotment.evictions:
            break  # else look again: who was evicted wants another place
    return Outcome(
        services={name: plan for name, plan in planned.plans.items() if _differs(plan, view.plans.get(name))},
        nodes={node: plan for node, plan in planned.node_plans.items() if _differs(plan, view.node_plans.get(node))},
        removed_services=frozenset(view.plans.keys() - planned.plans.keys()),
        removed_nodes=frozenset(view.node_plans.keys() - planned.node_plans.keys()),
        wake_at=_earliest(one.wake_at(), next_at(view.config.rebalance, memory), after=now),
        memory=memory,
        cluster=hosts.cluster if hosts.cluster != view.cluster else None,
        frozen=hosts.frozen,
        pending=sum(len(plan.pending) for plan in planned.plans.values()),
        faults=tuple(one.faults),
    )


def _earliest(*times: float | None, after: float) -> float | None:
    return min((at for at in times if at is not None and at > after), default=None)


def _differs(new: object, old: object) -> bool:
    return new is not old and new != old


def decide(given: Input) -> Decision:
    """The first step of the decision on one service, by its kind."""
    buckets = classify(given.replicas)
    if given.wish is None:
        plan = msgspec.structs.replace(
            given.plan,
            deleted=True,
            desired=0,
            asleep=False,
            seats="",
            vacant="",
            pending=[],
            claims=[],
            errors=[],
            warnings=[],
            next_run=0.0,
        )
        gone = Removal(given, _without_command(given, plan), buckets, "deleted")
        if not given.plan.deleted:
            gone.story.tell("deleted: stopping all replicas", "", "the wish is gone")
        return gone
    known, scene = msgspec.structs.replace(given.plan, deleted=False), given.scene
    plan = releases.accept(known, given.wish, scene.configs, scene.now)
    if not plan.releases:
        return Removal(given, _without_command(given, plan), buckets, "no release")
    if plan.kind in ("job", "cron"):
        return JobDecision(given, _without_command(given, plan), buckets)
    return ServiceDecision(given, plan, buckets, given.wish)


def _without_command(given: Input, plan: ServicePlan) -> ServicePlan:
    """What an operator wants of a rollout, where there is none, must not be taken for a wish about a later one."""
    return msgspec.structs.replace(plan, command=given.command.index) if given.command else plan


class _Round:
    """One way through the picture; evictions ask for another."""

    def __init__(
        self,
        view: View,
        hosts: Hosts,
        memory: Memory,
        served: Mapping[str, Served],
        now: float,
        unreadable: set[str],
    ) -> None:
        self._view = view
        self._hosts = hosts
        self._memory = memory
        self._now = now
        self._unreadable = unreadable
        self._before = memory.look or Look()
        self._tenancies = tenancies(view, hosts, memory, self._before)
        self._musters = musters(self._tenancies, self._before)
        self._decisions: dict[str, Decision] = {}
        self._settled: dict[str, Settled] = {}
        self.allotment = Allotment()
        self.faults: list[str] = []
        busy = busy_nodes(self._tenancies, view.plans)
        self._scene = Scene(hosts, view.configs, self._alive, self._demands, busy, served, memory.since or now, now)

    def carry_out(self, new_id: Callable[[], str]) -> tuple[View, Memory]:
        """The picture as it is to be, and what is remembered."""
        self._decide()
        self._give_vips()
        nodes = self._place(new_id)
        self._settle()
        plans = {name: self._told(name, decision.plan) for name, decision in self._decisions.items()
                 if not decision.is_over and name not in self._unreadable}  # fmt: skip
        look = Look(self._tenancies, self._musters, self._settled, nodes, self.allotment.parked)
        planned = replace(self._view, plans=plans, node_plans=self._node_plans())
        return planned, replace(self._memory, look=look)

    def wake_at(self) -> float | None:
        """When to look again even if nothing happens."""
        times = [settled.until for settled in self._settled.values()]
        times += [at for name, decision in self._decisions.items() if name not in self._settled for at in decision.wake]
        times += [self._hosts.changes_at or 0.0, self.allotment.look_at]
        return min((at for at in times if self._now < at < float("inf")), default=None)

    # ── deciding ─────────────────────────────────────────────────────────────────────────────

    def _decide(self) -> None:
        view = self._view
        for name in sorted(view.wishes.keys() | view.plans.keys() | self._musters.keys()):
            muster = self._musters.get(name, NO_MUSTER)
            known = self._before.settled.get(name)
            if known is not None and known.holds(view, name, muster, self._scene):
                self._decisions[name], self._settled[name] = known.decision, known
                continue
            plan = view.plans.get(name) or ServicePlan(service=name)
            wish, scale, command = view.wishes.get(name), view.scale.get(name), view.commands.get(name)
            given = Input(plan, wish, scale, view.scaled.get(name), command, muster, self._scene)
            self._decisions[name] = Untouched(given) if name in self._unreadable else self._decided(given)

    def _decided(self, given: Input) -> Decision:
        """One poisonous service must not stop the others: it is left as it is, and says so."""
        try:
            return decide(given)
        except Exception as error:
            return self._spared(given, error)

    def _spared(self, given: Input, error: Exception) -> Decision:
        what = f"{type(error).__name__}: {error}"[:MAX_FAULT]
        fault = f"this service could not be decided on and stays as it is: {what}"
        self.faults.append(f"{given.plan.service}: {fault}")
        return Untouched(given, fault)

    def _settle(self) -> None:
        """Notes which decisions changed nothing, and need not be made again."""
        for name, decision in self._decisions.items():
            if name not in self._settled and (known := settled(decision, self._musters.get(name, NO_MUSTER))):
                self._settled[name] = known

    # ── placing ──────────────────────────────────────────────────────────────────────────────

    def _give_vips(self) -> None:
        """Every service that has a release has a virtual IP; without one nothing of it is placed."""
        pool = VipPool(self._view.config.vip_range)
        needy = [decision for decision in self._decisions.values() if not pool.keep(decision.plan.vip)]
        for decision in needy:
            if decision.plan.releases:
                decision.take_vip(pool.take(), pool.fault)

    def _place(self, new_id: Callable[[], str]) -> Mapping[str, Node]:
        """Places what all services ask for in one batch, and lets each finish its decision."""
        before = self._before.nodes
        fresh = {name: decision for name, decision in self._decisions.items() if name not in self._settled}
        touched = {node for name in fresh for node in self._musters.get(name, NO_MUSTER)}
        touched.update(node for node, tenancy in self._tenancies.items()
                       if self._before.tenancies.get(node) is not tenancy)  # fmt: skip
        nodes = {node: known for node, known in before.items() if node not in touched}
        if any(decision.fills for decision in fresh.values()):
            nodes = self._candidates(nodes)
            parked = self._before.parked
            if any(better(node, before.get(name)) for name, node in nodes.items()):
                parked = {}
            sizes = PlanSizes(self._lodgers)
            brake = StartBrake(self._view.config.replacements_per_node, self._tenancies, self._now)
            self.allotment = allot(fresh, nodes, self._view.config.strategy, parked, sizes, brake)
            self.faults += self.allotment.faults
        for name, decision in fresh.items():
            try:
                decision.finish(self.allotment.answers.get(name, ()), self._namer(decision, new_id))
            except Exception as error:
                self._decisions[name] = self._spared(decision.given, error)
        promised = {promise.node for decision in fresh.values() for promise in decision.promises}
        return {name: node for name, node in nodes.items() if name not in promised}

    def _candidates(self, known: Mapping[str, Node]) -> dict[str, Node]:
        """Every node with what lies on it, and what is promised there."""
        promises: dict[str, list[Holding]] = {}
        for name, decision in self._decisions.items():
            for promise in decision.promises:
                promises.setdefault(promise.node, []).append(
                    Holding(name, promise.demand, slot=promise.slot, priority=promise.priority)
                )
        nodes: dict[str, Node] = {}
        for name, host in self._hosts.by_name.items():
            node = known.get(name)
            if node is None or name in promises or not _is_of(node, host):
                services = self._tenancies[name].replicas if name in self._tenancies else ()
                held = (self._decisions[service].holdings(name) for service in services)
                holdings = [*itertools.chain.from_iterable(held), *promises.get(name, ())]
                node = Node(name, host.room, host.attributes, holdings, host.why)
            nodes[name] = node
        return nodes

    def _lodgers(self, node: str) -> Iterator[Blueprint | None]:
        """The blueprints of all that is in a node's plan."""
        for service in self._tenancies[node].replicas if node in self._tenancies else ():
            decision = self._decisions[service]
            for assignment in (*decision.kept.get(node, ()), *decision.records.get(node, ())):
                yield decision.blueprint(assignment.release)

    def _namer(self, decision: Decision, new_id: Callable[[], str]) -> Callable[[str, Slot], str]:
        """Makes ids of new replicas, which nothing that is planned or still runs has."""
        taken = {replica.id for replica in decision.given.replicas}
        strays = {id for sighting in self._memory.sightings.values() for id in sighting.strays}

        def name(service: str, slot: Slot) -> str:
            while (id := f"{service}-{_label(slot)}-{new_id()}") in taken or id in strays:
                pass
            taken.add(id)
            return id

        return name

    def _alive(self, node: str, id: str) -> bool:
        return node in self._tenancies and self._tenancies[node].alive(id)

    def _demands(self, node: str) -> Iterator[Demand]:
        """What the living replicas of a node take."""
        for service, replicas in self._tenancies[node].replicas.items():
            plan = self._view.plans.get(service)
            for replica in replicas:
                blueprint = blueprint_or_none(plan, replica.assignment.release) if plan else None
                if blueprint is not None and not replica.state.ended:
                    yield blueprint.demand

    # ── writing ──────────────────────────────────────────────────────────────────────────────

    def _told(self, service: str, plan: ServicePlan) -> ServicePlan:
        """The plan with the evictions of its replicas in its story."""
        story = Story(self._now)
        for id, eviction in self.allotment.evictions.items():
            if eviction.service == service:
                story.tell("stopping", f"{id} on {eviction.node}", eviction.cause)
        return story.added_to(plan)

    def _node_plans(self) -> dict[str, NodePlan]:
        """The plan of every node that is there or was; a node that was given up and whose report is gone needs none."""
        view, stale = self._view, self._stale_nodes()
        assigned: dict[str, list[tuple[Assignment, ServicePlan]]] = {node: [] for node in stale}
        for decision in self._decisions.values():
            for part in (decision.kept, decision.records):
                for node in part.keys() & stale:
                    assigned[node] += [(one, decision.plan) for one in part[node]]
        plans: dict[str, NodePlan] = {}
        for name, host in self._hosts.by_name.items():
            before = view.node_plans.get(name)
            lost = host.condition is Condition.LOST
            if lost and (before is None or not host.reported):
                continue
            if before is not None and name not in stale and before.lost == lost:
                plans[name] = before
            elif before is not None or host.condition is not Condition.GONE:
                plans[name] = self._node_plan(name, before, assigned.get(name, ()), lost=lost)
        return plans

    def _stale_nodes(self) -> set[str]:
        """Nodes whose plans may change."""
        stale = {node for node, tenancy in self._tenancies.items() if self._before.tenancies.get(node) is not tenancy}
        stale.update(eviction.node for eviction in self.allotment.evictions.values())
        for name, decision in self._decisions.items():
            if name not in self._settled:
                stale.update(decision.kept, decision.records, self._musters.get(name, NO_MUSTER))
        return stale

    def _node_plan(
        self, node: str, before: NodePlan | None, assigned: Iterable[tuple[Assignment, ServicePlan]], *, lost: bool
    ) -> NodePlan:
        replicas: list[Assignment] = []
        specs: dict[str, dict[str, Any]] = {}
        for assignment, plan in assigned:
            eviction = self.allotment.evictions.get(assignment.id)
            if eviction is not None:
                assignment = msgspec.structs.replace(assignment, want=Want.STOP, cause=eviction.cause)
            replicas.append(assignment)
            key = spec_key(assignment.service, assignment.release)
            if key not in specs:
                spec = before.specs.get(key) if before else None  # the same object compares at once
                if spec is None:
                    numbered = (one.spec for one in plan.releases if one.number == assignment.release)
                    spec = next(numbered, None)
                if spec is not None:
                    specs[key] = spec
        replicas.sort(key=lambda one: (one.service, str(one.slot), one.id))
        return NodePlan(node=node, lost=lost, replicas=replicas, specs=specs)


def _is_of(node: Node, host: Host) -> bool:
    return (node.capacity, node.attributes, node.barred) == (host.room, host.attributes, host.why)


def _label(slot: Slot) -> str:
    """A slot as a part of a DNS label: a global service's slots are named like nodes."""
    return re.sub("[^a-z0-9]+", "-", str(slot).lower()).strip("-")[:MAX_SLOT_LABEL]
