"""The oracle: what must hold whatever goes wrong, as one checker over the recorded history. Its rules:

e  no plan is written by a leader without the lock
c  a replica's state never goes back
b  no node is over capacity by its plan, no host port or volume is used twice
i  a replica runs once: what has ended is never started again
f  while nobody is in trouble, a rollout or drain leaves as many replicas available as was promised
d  an endpoint that is offered was fit for it a moment ago; what has been told to stop is offered no more
a  after the last trouble running equals desired, with one live replica per slot, and stays so
g  reconciling the final state changes nothing
h  no request fails while nobody is in trouble
j  a job's slot is done when one of its replicas has ended well, and is not begun again
k  a singleton never runs twice
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh.keys import Keys
from mesh.model import (
    Assignment,
    Capacity,
    NodePlan,
    NodeReport,
    NodeSettings,
    ReplicaState,
    RunState,
    ServicePlan,
    Slot,
    Want,
    may_follow,
)
from mesh.scheduler.decision import PREEMPTED
from mesh.scheduler.reconcile import reconcile
from mesh.spec.service import ServiceSpec, trusted_spec
from mesh.store import Entry
from mesh.units import parse_numbers, parse_share
from mesh.view import View, ViewReader, decode_document
from tests.simulation.history import Ended, Fact, Failed, Offered, Said, Started, ToldToStop, Trouble, Written

WORKING = ("job", "cron")
"""Kinds of services that run to their end."""

ENDED_WELL = "exit code 0"

CUT_OFF = "cut off from the store"
LOSSY = "loses 30 % of its messages"
"""How these troubles are called."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How stale what is offered may be, in seconds."""

    news: float = 3.0
    """From a replica's end or withdrawal to every other node's data plane, where all is well."""
    told: float = 0.1
    """From a program's end until the leader has heard of it: what it decides meanwhile, it decides without."""
    recovery: float = 10.0
    """From the end of a node's trouble until it is held to `news`: it backs off, reconnects, reads."""
    lost: float = 30.0
    """From the loss of its node: two TTLs of a session and the confirmation."""
    cut_off: float = 80.0
    """The same where the node is heard and reaches no store: what it runs may live, so its silence is waited for."""


@dataclass(frozen=True, slots=True)
class Violation:
    at: float
    rule: str
    text: str

    def __str__(self) -> str:
        return f"({self.rule}) {self.text}"


Work = tuple[str, int, Slot]
"""A job's name, the number of its run, and the slot."""

HELPLESS = ("agent", "frozen", "engine")
"""How trouble is called in which a node cannot stop what it runs."""


@dataclass(slots=True)
class _Instance:
    node: str
    service: str
    slot: Slot
    host_ports: frozenset[int]
    has_volumes: bool
    since: float


@dataclass
class Oracle:
    """Show it every fact in order; `violations` is what it found."""

    limits: Limits = field(default_factory=Limits)
    keys: Keys = field(default_factory=Keys)
    wall: float = 0.0
    """Unix seconds at the time 0 of the facts."""
    violations: list[Violation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now = 0.0
        self.entries: dict[str, Entry] = {}
        self.index = 0
        self.running: dict[str, _Instance] = {}
        self.reports: dict[str, NodeReport] = {}
        self.plans: dict[str, ServicePlan] = {}
        self.node_plans: dict[str, NodePlan] = {}
        self.offered: dict[str, Mapping[str, str]] = {}
        self.troubles: dict[str, set[str]] = defaultdict(set)
        self._calm_since: dict[str, float] = {}
        self._reached_store: dict[str, float] = {}
        self._engine_back: dict[str, float] = {}
        self._states: dict[str, ReplicaState] = {}
        self._nodes: dict[str, str] = {}  # replica → its node
        self._unfit_since: dict[str, float] = {}
        self._begun: set[str] = set()  # replicas that have run
        self._work: dict[str, Work] = {}  # replica → which part of which run it does
        self._done: set[Work] = set()
        self._helpless_until: dict[str, float] = {}  # node → when its agent could act again, or its engine
        self._deadlines: dict[str, float] = {}  # node → when its drain ends, Unix seconds
        self._specs: dict[str, ServiceSpec] = {}
        self._owed: dict[str, int] = {}
        self._recovers_at: dict[str, float] = {}  # services of which a program ended: until the leader knows
        self._plans_changed = False

    # ── taking facts in ──────────────────────────────────────────────────────────────────────

    def observe(self, fact: Fact) -> None:
        if self._plans_changed and not (isinstance(fact, Written) and fact.index == self.index):
            self._check_slots()  # a transaction is seen as a whole
        self.now = fact.at
        match fact:
            case Written():
                self._see_write(fact)
            case Started():
                self._see_start(fact)
            case Ended():
                self.running.pop(fact.id, None)
                if fact.how == ENDED_WELL and fact.id in self._work:
                    self._done.add(self._work[fact.id])
                self._weigh(fact.id)
                if not fact.asked:
                    self._disturb(fact.id)
            case ToldToStop():
                state = self.offered.get(fact.node, {}).get(fact.id)
                if state is not None and not self._is_disturbed(fact.node, self.limits.recovery):
                    self.violated("d", f"{fact.id} gets {fact.signal} while its own node offers it as {state}")
            case Offered():
                self.offered[fact.node] = fact.endpoints
            case Failed(_, node, began, how):
                if not any(self.troubles.values()) and began > max(self._calm_since.values(), default=-math.inf):
                    self.violated("h", f"a request on {node} failed: {how}")
            case Trouble(_, who, what, begins):
                (self.troubles[who].add if begins else self.troubles[who].discard)(what)
                self._calm_since[who] = fact.at
                if what in (CUT_OFF, LOSSY):
                    self._reached_store[who] = math.inf if begins else fact.at
                if "engine" in what:
                    self._engine_back[who] = fact.at
                if any(word in what for word in HELPLESS):
                    self._helpless_until[who] = math.inf if begins else fact.at
                if CUT_OFF in self.troubles[who] and any("session" in one for one in self.troubles[who]):
                    self._helpless_until[who] = math.inf  # somebody ended it, and its agent cannot know
                elif what == CUT_OFF and self._helpless_until.get(who) == math.inf:
                    self._helpless_until[who] = fact.at
                self._owed.clear()
            case Said(_, who, text, is_error):
                if is_error:
                    self.violated("log", f"{who}: {text}")

    def violated(self, rule: str, text: str) -> None:
        self.violations.append(Violation(self.now, rule, text))

    def _see_write(self, fact: Written) -> None:
        keys, key = self.keys, fact.key
        self.index = max(self.index, fact.index)
        if key.startswith(keys.planned) and key != keys.leader and fact.as_leader is False:
            self.violated("e", f"{fact.writer} wrote {key} and does not hold the lock")
        if fact.value is None:
            self.entries.pop(key, None)
        else:
            before = self.entries.get(key)
            created = before.create_index if before else fact.index
            self.entries[key] = Entry(key, fact.value, fact.index, created, fact.session)
            if before is not None and before.value == fact.value:
                return
        if key.startswith(keys.observed_nodes):
            self._see_report(key.removeprefix(keys.observed_nodes), fact.value)
        elif key.startswith(keys.planned_nodes):
            self._see_node_plan(key.removeprefix(keys.planned_nodes), fact.value)
        elif key.startswith(keys.planned_services):
            self._see_plan(key.removeprefix(keys.planned_services), fact.value)
        elif key.startswith(keys.desired):
            if key.startswith(settings := keys.node_settings("")):
                wish = decode_document(fact.value, NodeSettings) if fact.value else NodeSettings()
                self._deadlines[key.removeprefix(settings)] = wish.deadline or math.inf
            self._lower_promises()

    # ── rule c: states go forward; rule f: what is available ─────────────────────────────────

    def _see_report(self, node: str, value: bytes | None) -> None:
        report = decode_document(value, NodeReport) if value else NodeReport(node=node, address="")
        self.reports[node] = report
        for replica in report.replicas:
            before = self._states.get(replica.id, replica.state)
            if not may_follow(before, replica.state):
                self.violated("c", f"{replica.id} went from {before} back to {replica.state}")
            if before is ReplicaState.READY and replica.state is ReplicaState.RUNNING:
                self._owed.pop(replica.service, None)  # its health check failed: no fault of ours
            if before is ReplicaState.READY and replica.state is ReplicaState.FAILED:
                self._recovers_at[replica.service] = self.now + self.limits.told
            self._states[replica.id] = replica.state
            self._nodes[replica.id] = node
            self._weigh(replica.id)
        self._count_available()

    def _count_available(self) -> None:
        if any(self.troubles.values()):
            return
        if min(self._deadlines.values(), default=math.inf) <= self.wall + self.now + 1.0:
            self._owed.clear()  # a drain is over: what has not moved is stopped
            return
        if any(self._is_missing(node) for node in self.reports):
            self._owed.clear()  # it may be given up, although its trouble is over
            return
        planned = {one.id: one.want for plan in self.node_plans.values() for one in plan.replicas}
        ready = [one for report in self.reports.values() for one in report.replicas
                 if one.state is ReplicaState.READY and one.id in self.running and one.id in planned]  # fmt: skip
        evicted = {id for plan in self.plans.values() for claim in plan.claims for id in claim.evicts}
        preempted = {one.service for plan in self.node_plans.values() for one in plan.replicas
                     if one.id in evicted or one.cause.startswith(PREEMPTED)}  # fmt: skip
        preempted |= {name for name, plan in self.plans.items()
                      if any(one.cause.startswith(PREEMPTED) for one in plan.pending)}  # fmt: skip
        mistaken = {one.service for report in self.reports.values() for one in report.replicas
                    if one.state is ReplicaState.READY and one.id not in self.running}  # fmt: skip
        available = Counter(one.service for one in ready)
        filled = Counter(service for service, _ in {
            (one.service, one.slot) for one in ready
            if planned[one.id] is Want.RUN and not (isinstance(one.slot, str) and self._is_drained(one.slot))
        })  # fmt: skip
        for service, plan in self.plans.items():
            if plan.kind in WORKING or service in preempted:
                self._owed.pop(service, None)
                continue
            floor = self._owed.get(service)
            if floor is not None and available[service] < floor:
                self.violated("f", f"{service} has {available[service]} replicas available and owes {floor}")
                del self._owed[service]
            elif (filled[service] >= plan.desired and plan.releases and not plan.deleted
                  and service not in mistaken and self.now >= self._recovers_at.get(service, 0.0)):  # fmt: skip
                self._owed[service] = self._promise(plan)

    def _is_missing(self, node: str) -> bool:
        """It was in trouble, and its agent has not taken its key again."""
        entry = self.entries.get(self.keys.node_report(node))
        return entry is not None and entry.session is None and self._is_disturbed(node, self.limits.recovery)

    def _is_drained(self, node: str) -> bool:
        """A global service's replica there stands in for no other."""
        entry = self.entries.get(self.keys.node_settings(node))
        return entry is not None and decode_document(entry.value, NodeSettings).availability == "drain"

    def _promise(self, plan: ServicePlan) -> int:
        """The least that must be available: by the strictest wish of those that may be in force now."""
        floors = [plan.desired]
        for release in (*plan.releases[-2:],):
            spec = self._spec(plan.service, release.number, release.spec)
            allowed = spec.update.max_unavailable
            missing = allowed if isinstance(allowed, int) else math.floor(parse_share(allowed) * plan.desired + 1e-6)
            if spec.singleton or spec.volumes or any(port.host_port for port in spec.ports.values()):
                missing = max(missing, 1)
            floors.append(plan.desired - missing)
        return max(0, min(floors))

    def _see_plan(self, service: str, value: bytes | None) -> None:
        if value is None:
            self.plans.pop(service, None)
            self._owed.pop(service, None)
            return
        plan = decode_document(value, ServicePlan)
        self.plans[service] = plan
        for run in plan.runs:
            for slot in parse_numbers(run.completed):
                if (service, run.number, slot) not in self._done:
                    self.violated("j", f"slot {slot} of run {run.number} of {service} has not ended well and counts")
        self._lower_promises()

    def _lower_promises(self) -> None:
        """A wish for fewer is at once in force."""
        for service in list(self._owed):
            plan, wish = self.plans.get(service), self.entries.get(self.keys.service(service))
            if plan is None or plan.deleted or wish is None:
                del self._owed[service]
            else:
                self._owed[service] = min(self._owed[service], self._promise(plan))

    def _disturb(self, id: str) -> None:
        """Its program ended by itself: nothing is owed to its service until it has recovered."""
        assignment = next((one for plan in self.node_plans.values() for one in plan.replicas if one.id == id), None)
        if assignment is not None:
            self._owed.pop(assignment.service, None)
            self._recovers_at[assignment.service] = self.now + self.limits.told

    # ── rule b: room, ports, volumes ─────────────────────────────────────────────────────────

    def _see_node_plan(self, node: str, value: bytes | None) -> None:
        if value is None:
            self.node_plans.pop(node, None)
            return
        plan = decode_document(value, NodePlan)
        self.node_plans[node] = plan
        for one in plan.replicas:
            if one.run and one.id not in self._work:
                self._see_work(one)
        used: Counter[str] = Counter()
        ports: Counter[int] = Counter()
        for one in plan.replicas:
            if one.want is Want.KEEP:
                continue
            spec = self._spec(one.service, one.release, plan.specs.get(f"{one.service}@{one.release}"), one.id)
            used.update(cpu=spec.resources.cpu, memory=spec.resources.memory)
            ports.update(port.host_port for port in spec.ports.values() if port.host_port)
        report = self.reports.get(node)
        room = report.capacity if report else Capacity()
        if report and (used["cpu"] > room.cpu or used["memory"] > room.memory):
            self.violated("b", f"{node} is over its capacity: {dict(used)} of {room}")
        if doubled := [port for port, count in ports.items() if count > 1]:
            self.violated("b", f"{node} has host ports {doubled} twice in its plan")
        self._plans_changed = True

    def _see_work(self, one: Assignment) -> None:
        """A job's replica is planned."""
        self._work[one.id] = (one.service, one.run, one.slot)
        runs = self.plans[one.service].runs if one.service in self.plans else []
        completed = next((parse_numbers(run.completed) for run in runs if run.number == one.run), ())
        if one.slot in completed:
            self.violated("j", f"{one.id} is planned though slot {one.slot} of run {one.run} is done")

    def _check_slots(self) -> None:
        self._plans_changed = False
        slots: Counter[Work] = Counter()
        ids: Counter[str] = Counter()
        for plan in self.node_plans.values():
            ids.update(one.id for one in plan.replicas)
            if not plan.lost:  # what is kept there for its return counts when it is back
                slots.update((one.service, one.run, one.slot) for one in plan.replicas if one.want is Want.RUN)
        for id, count in ids.items():
            if count > 1:
                self.violated("b", f"{id} is planned on {count} nodes")
        for (service, _, slot), count in slots.items():
            if count > 2:
                self.violated("b", f"slot {slot} of {service} is planned {count} times")

    def _spec(self, service: str, release: int, spec: Mapping[str, object] | None, id: str = "") -> ServiceSpec:
        """By replica where there is one: release numbers begin anew when a service does."""
        name = id or f"{service}@{release}@{hash(str(spec))}"
        if name not in self._specs:
            assert spec is not None, f"the plan has no spec for {name}"
            self._specs[name] = trusted_spec(dict(spec))
        return self._specs[name]

    def _see_start(self, fact: Started) -> None:
        if fact.id in self._begun:
            self.violated("i", f"{fact.id} is started once more")
        self._begun.add(fact.id)
        spec = self._specs.get(fact.id)
        if spec is not None and spec.singleton:
            self._see_singleton(fact)
        for id, other in self.running.items():
            if other.node != fact.node:
                continue
            if ports := other.host_ports & fact.host_ports:
                self.violated("b", f"{fact.id} starts on {fact.node} while {id} has host port {min(ports)}")
            if other.has_volumes and fact.has_volumes and (other.service, other.slot) == (fact.service, fact.slot):
                self.violated("b", f"{fact.id} starts on {fact.node} while {id} has its volume")
        self.running[fact.id] = _Instance(
            fact.node, fact.service, fact.slot, fact.host_ports, fact.has_volumes, fact.at
        )  # fmt: skip
        self._nodes[fact.id] = fact.node
        self._weigh(fact.id)

    def _see_singleton(self, fact: Started) -> None:
        """A node that could not act has not stopped its own; all others have, also where nobody reached them."""
        for id, other in self.running.items():
            helpless = self.now - self._helpless_until.get(other.node, -math.inf) < self.limits.lost
            if other.service == fact.service and not helpless:
                self.violated("k", f"{fact.id} starts on {fact.node} while {id} runs on {other.node}")

    # ── rule d: what is offered ──────────────────────────────────────────────────────────────

    def _weigh(self, id: str) -> None:
        """Whether it is fit to be offered."""
        if id in self.running and self._states.get(id) is ReplicaState.READY:
            self._unfit_since.pop(id, None)
        else:
            self._unfit_since.setdefault(id, self.now)

    def _is_disturbed(self, who: str, within: float = 0.0) -> bool:
        """In trouble now, or not out of it for long."""
        return any(
            self.troubles.get(one) or self.now - self._calm_since.get(one, -math.inf) < within
            for one in (who, "store")
        )  # fmt: skip

    def _blind_until(self, node: str) -> float:
        """When its engine could be asked again (what an agent cannot see it keeps as it was), or the store."""
        if any("engine" in what for what in self.troubles.get(node, ())):
            return math.inf
        return max(self._engine_back.get(node, -math.inf), self._calm_since.get("store", -math.inf))

    def look(self, now: float) -> None:
        """To be called now and then: staleness is no event."""
        self.now = now
        limits = self.limits
        for node, endpoints in self.offered.items():
            if self._is_disturbed(node, limits.recovery):
                continue
            for id, state in endpoints.items():
                owner = self._nodes.get(id, "")
                unfit = now - max(self._unfit_since.get(id, now), self._blind_until(owner))
                if state != "ready" or unfit <= limits.news or (owner == node and id in self.running):
                    continue
                was_cut_off = now - self._reached_store.get(owner, -math.inf) < limits.recovery
                lost = limits.cut_off if was_cut_off else limits.lost
                if unfit > lost or not self._is_disturbed(owner, lost):
                    self.violated("d", f"{node} offers {id}, which has not been fit for {unfit:.1f} s")

    # ── rules a and g: the end ───────────────────────────────────────────────────────────────

    def view(self) -> View:
        return ViewReader(self.keys).read(self.entries, self.index)

    def differences(self) -> list[str]:
        """What is not as desired: empty when the cluster has converged."""
        view = self.view()
        found: list[str] = []
        live: dict[tuple[str, Slot], list[str]] = defaultdict(list)
        for id, one in self.running.items():
            live[one.service, one.slot].append(id)
        for name in sorted(view.wishes.keys() | view.plans.keys() | {service for service, _ in live}):
            plan, wish = view.plans.get(name), view.wishes.get(name)
            have = {slot: ids for (service, slot), ids in live.items() if service == name}
            found += [f"{name} slot {slot} has {len(ids)} live replicas: {', '.join(sorted(ids))}"
                      for slot, ids in have.items() if len(ids) > 1]  # fmt: skip
            if wish is None or wish.spec is None:
                found += [f"{name} was deleted and still has a plan"] if plan else []
                found += [f"{name} was deleted and {sorted(have)} still run"] if have else []
                continue
            if wish.spec.kind in WORKING:
                found += [f"{name} does not answer spec@{wish.index}"] if plan and plan.spec_index != wish.index else []
                found += [f"run {run.number} of {name} has not ended" for run in plan.runs
                          if run.state is RunState.RUNNING] if plan else [f"{name} has no plan"]  # fmt: skip
                found += [f"{name} still runs: {sorted(map(str, have))}"] if have else []
                continue
            count = _desired(view, name, wish.spec)
            if plan is None or plan.desired != count:
                found.append(f"{name} desires {plan.desired if plan else None} instead of {count}")
                continue
            if plan.spec_index != wish.index:
                found.append(f"{name} answers spec@{plan.spec_index} and not spec@{wish.index}")
            if len(have) != count:
                found.append(f"{name} has {len(have)} of {count} slots running: {sorted(map(str, have))}")
            if plan.rollout.state != "idle":
                found.append(f"{name}'s rollout is {plan.rollout.state}: {plan.rollout.message}")
            found += [f"{name} slot {one.slot} is pending: {'; '.join(one.reasons)}" for one in plan.pending]
            hashes = {release.number: release.hash for release in plan.releases}
            newest = plan.releases[-1].hash if plan.releases else ""
            found += [f"{name} still runs release {one.release}: {one.id}" for node in view.node_plans.values()
                      for one in node.replicas if one.service == name and one.want is Want.RUN
                      and hashes.get(one.release) != newest]  # fmt: skip
        for node, endpoints in self.offered.items():
            ready = {id for id, state in endpoints.items() if state == "ready"}
            if ready != self.running.keys():
                odd = sorted(ready ^ self.running.keys())
                found.append(f"{node} offers other replicas than run: {', '.join(odd)}")
        return found

    def check_fixpoint(self) -> None:
        """Rule g; `now` on the cluster's clock."""
        numbers = iter(range(65536))
        outcome = reconcile(self.view(), self.wall + self.now, lambda: f"{next(numbers):04x}")
        if outcome.changes:
            changed = [*outcome.services, *outcome.nodes, *outcome.removed_services, *outcome.removed_nodes]
            self.violated("g", f"reconciling the final state changes {', '.join(changed)}")


def _desired(view: View, name: str, spec: ServiceSpec) -> int:
    if spec.kind == "global":
        return sum(1 for node in view.nodes if view.settings.get(node, NodeSettings()).availability == "active")
    if name not in view.scale and spec.scale is not None:
        return plan.desired if (plan := view.plans.get(name)) and plan.desired <= spec.scale.max else spec.scale.max
    return view.scale.get(name, spec.replicas)
