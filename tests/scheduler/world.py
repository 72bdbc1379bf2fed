"""A cluster in memory on a virtual clock: the real `reconcile`, and agents of a dozen lines.

Tests change the wish or break something, let time pass, and look at what became of it. After each reconcile the
invariants are checked: no node over its capacity, no slot doubled beyond start-first, no state that goes back.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from mesh.model import (
    Assignment,
    Capacity,
    ClusterConfig,
    ClusterPlan,
    Exit,
    NodePlan,
    NodeReport,
    NodeSettings,
    ReplicaReport,
    ReplicaState,
    RolloutCommand,
    ScaleChange,
    ScaleState,
    ServicePlan,
    Want,
    may_follow,
)
from mesh.scheduler.hosts import NO_HEARING, Memory
from mesh.scheduler.look import Look
from mesh.scheduler.plan import Outcome
from mesh.scheduler.reconcile import reconcile
from mesh.scheduler.service.rollout import Served
from mesh.spec.errors import SpecError
from mesh.spec.service import ServiceSpec, parse_spec, trusted_spec
from mesh.view import Command, NodeView, View, Wish

GI = 2**30


@dataclass
class Behaviour:
    """How replicas of one command behave: seconds to get ready, to crash, to be done (None: never), to stop."""

    ready_after: float | None = 0.5
    crash_after: float | None = None
    done_after: float | None = None
    stop_after: float = 0.2


@dataclass
class FakeNode:
    """A node and its agent. `up`: its session is held; `replicas`: what really runs there."""

    name: str
    capacity: Capacity = field(default_factory=lambda: Capacity(cpu=4000, memory=4 * GI))
    reserved: Capacity = field(default_factory=Capacity)
    labels: dict[str, str] = field(default_factory=dict)
    up: bool = True
    runtime: str = "docker"
    replicas: dict[str, ReplicaReport] = field(default_factory=dict)
    reported: list[ReplicaReport] = field(default_factory=list)
    stopping: set[str] = field(default_factory=set)
    forgotten: bool = False  # its document was removed
    held: bool = True
    remembered: bool = False  # what it reports is of an earlier life of its agent


class World:
    """The whole cluster. `behave` maps a spec's image to how it runs."""

    def __init__(self, nodes: int = 3, *, seed: int = 1, delay: float = 0.01) -> None:
        self.now = 1_000_000.0
        self.random = random.Random(seed)
        self.delay = delay
        self.nodes = {name: FakeNode(name) for name in (f"n{number}" for number in range(1, nodes + 1))}
        self.settings: dict[str, NodeSettings] = {}
        self.wishes: dict[str, Wish] = {}
        self.scale: dict[str, int] = {}
        self.scaled: dict[str, ScaleState] = {}
        self.commands: dict[str, Command] = {}
        self.configs: dict[str, str] = {}
        self.config = ClusterConfig()
        self.plans: dict[str, ServicePlan] = {}
        self.node_plans: dict[str, NodePlan] = {}
        self.memory = Memory()
        self.hearing = NO_HEARING
        self.served: dict[str, Served] = {}
        self.behave: dict[str, Behaviour] = {}
        self.cluster = ClusterPlan()
        self.index = 10
        self._seen: dict[str, NodeView] = {}
        self.reconciles = 0
        self.last = Outcome()
        self.watch: Callable[[], None] | None = None
        self.faults_expected = False
        self.compared = False  # every look with one that remembers no decision
        self._next_id = 0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._states: dict[str, ReplicaState] = {}
        self._specs: dict[str, ServiceSpec] = {}
        self._dirty = True
        self._every_while()

    # ── what operators and fate do ───────────────────────────────────────────────────────────

    def apply(self, name: str = "web", **fields: Any) -> None:
        """Writes a spec; it begins with `image: <name>:1` and no minimum of health."""
        self.index += 1
        data = {"name": name, "image": f"{name}:1", "update": {"min_healthy": "1s"}, **fields}
        try:
            self.wishes[name] = Wish(parse_spec(data, name), (), self.index)
        except SpecError as error:
            self.wishes[name] = Wish(None, tuple(error.errors), self.index)
        self._dirty = True

    def delete(self, name: str) -> None:
        del self.wishes[name]
        self._dirty = True

    def rescale(self, name: str, count: int | None) -> None:
        if count is None:
            self.scale.pop(name, None)
        else:
            self.scale[name] = count
        self._dirty = True

    def command(self, action: Any, release: int = 0, to: int = 0, name: str = "web") -> None:
        """Writes what an operator wants of a rollout."""
        self.index += 1
        self.commands[name] = Command(RolloutCommand(action=action, release=release, to=to), self.index)
        self._dirty = True

    def set_config(self, name: str, value: str | None) -> None:
        if value is None:
            del self.configs[name]
        else:
            self.configs[name] = value
        self._dirty = True

    def set_node(self, name: str, availability: str = "active", deadline: float = 0.0, **labels: str) -> None:
        self.settings[name] = NodeSettings(availability=availability, deadline=deadline, labels=labels)
        self._dirty = True

    def lose(self, name: str, *, kill: bool = True) -> None:
        """The node's session ends; with `kill` what it runs dies too."""
        node = self.nodes[name]
        node.up = node.held = False
        if kill:
            node.replicas.clear()
            node.stopping.clear()
        self._dirty = True

    def claim(self, name: str) -> None:
        """The node's agent is there again, and has not seen its engine yet."""
        node = self.nodes[name]
        node.held = node.remembered = True
        self._dirty = True

    def bring_back(self, name: str) -> None:
        node = self.nodes[name]
        node.up = node.held = True
        node.remembered = False
        for assignment in self._planned(name):
            told = next((report for report in node.reported if report.id == assignment.id), None)
            if told is None or assignment.id in node.replicas:
                continue
            if told.state.ended:
                node.replicas[told.id] = told
            else:
                self._set(node, assignment, ReplicaState.FAILED, message="vanished")
        self._act(node)
        self._report(node)

    def crash(self, id: str, *, oom: bool = False) -> None:
        for node in self.nodes.values():
            if id in node.replicas and not node.replicas[id].state.ended:
                report = node.replicas[id]
                node.replicas[id] = msgspec.structs.replace(
                    report, state=ReplicaState.FAILED, since=self.now, exit=Exit(code=137, oom=oom)
                )
                self._report(node)

    def finish(self, id: str) -> None:
        """It exits with code 0: a job is done, anything else has failed."""
        for node in self.nodes.values():
            if id in node.replicas and not node.replicas[id].state.ended:
                report = node.replicas[id]
                is_job = self._specs[id].kind in ("job", "cron")
                state = ReplicaState.STOPPED if is_job else ReplicaState.FAILED
                if report.state is not ReplicaState.DRAINING:
                    node.replicas[id] = msgspec.structs.replace(report, state=state, since=self.now, exit=Exit(code=0))
                    self._report(node)

    def set_ready(self, id: str, ready: bool) -> None:
        for node in self.nodes.values():
            if (report := node.replicas.get(id)) and report.state in (ReplicaState.READY, ReplicaState.RUNNING):
                state = ReplicaState.READY if ready else ReplicaState.RUNNING
                node.replicas[id] = msgspec.structs.replace(report, state=state, since=self.now)
                self._report(node)

    def autoscale(self, name: str, replicas: int | None, why: str = "more load", *problems: str) -> None:
        """What an autoscaler would write."""
        change = ScaleChange(time=self.now, current=0, replicas=replicas or 0, why=why)
        self.scaled[name] = ScaleState(replicas=replicas, changes=[change], problems=list(problems))
        self._dirty = True

    def serve(self, release: int, requests: float, failures: float, name: str = "web") -> None:
        """So much was sent to each replica of a release lately, as the proxies tell."""
        served = {report.id: Served(requests, failures) for report in self.running(name) if report.release == release}
        self.served.update(served)
        self._dirty = True

    def change_leader(self) -> None:
        """A new leader knows only what is in the store."""
        self.memory = Memory()
        self._dirty = True

    # ── time ─────────────────────────────────────────────────────────────────────────────────

    def run(self, seconds: float) -> None:
        """Lets time pass."""
        end = self.now + seconds
        while True:
            if self._dirty:
                self._dirty = False
                self.reconcile()
            wake = self.last.wake_at
            due = min(self._timers[0][0] if self._timers else end, end, end if wake is None else max(wake, self.now))
            self.now = max(self.now, due)
            if wake is not None and wake <= self.now:
                self._dirty = True
            while self._timers and self._timers[0][0] <= self.now:
                heapq.heappop(self._timers)[2]()
            if self.now >= end and not self._dirty:
                return

    def run_until(self, condition: Callable[[], bool], within: float = 600.0) -> float:
        """Lets time pass until the condition holds; returns how long that took."""
        start = self.now
        while not condition():
            assert self.now - start < within, f"not within {within:g} s:\n{self.story()}"
            self.run(0.1)
        return self.now - start

    def reconcile(self) -> Outcome:
        """One look; what it decides is written, seen by the agents, and checked."""
        view = self.view()
        if self.compared:
            self._compare(view)
        outcome = self._reconcile(view, self.memory)
        self.reconciles += 1
        self.last, self.memory = outcome, outcome.memory
        assert self.faults_expected or not outcome.faults, outcome.faults
        self.plans.update(outcome.services)
        self.cluster = outcome.cluster or self.cluster
        self.node_plans.update(outcome.nodes)
        for service in outcome.removed_services:
            del self.plans[service]
        for node in outcome.removed_nodes:
            del self.node_plans[node]
        for name in outcome.nodes:
            if name in self.nodes:
                self._after(self.delay, lambda node=self.nodes[name]: self._act(node))  # type: ignore[misc]
        self._note_specs()
        self.check()
        if self.watch:
            self.watch()
        return outcome

    def view(self) -> View:
        self._seen = {node.name: self._sight(node) for node in self.nodes.values() if not node.forgotten}
        return View(
            index=self.index,
            config=self.config,
            wishes=dict(self.wishes),
            scale=dict(self.scale),
            scaled=dict(self.scaled),
            commands=dict(self.commands),
            configs=dict(self.configs),
            settings=dict(self.settings),
            plans=dict(self.plans),
            node_plans=dict(self.node_plans),
            nodes=dict(self._seen),
            cluster=self.cluster,
        )

    def _sight(self, node: FakeNode) -> NodeView:
        """The same object as before where nothing changed, as a reader of the store has it."""
        before, report = self._seen.get(node.name), self._document(node)
        same = before is not None and (before.report, before.held) == (report, node.held)
        return before if before is not None and same else NodeView(report, node.held, self.index)

    def _document(self, node: FakeNode) -> NodeReport:
        return NodeReport(
            node=node.name,
            address="127.0.0.1",
            runtime=node.runtime,
            labels=node.labels,
            capacity=node.capacity,
            reserved=node.reserved,
            replicas=list(node.reported),
            remembered=node.remembered,
        )

    def new_id(self) -> str:
        self._next_id += 1
        return f"{(self._next_id - 1) % 65536:04x}"

    def _compare(self, view: View) -> None:
        """What is remembered of the last look spares work, and changes nothing."""
        first, look = self._next_id, self.memory.look or Look()
        remembering = self._reconcile(view, self.memory)
        self._next_id = first
        forgetful = replace(self.memory, hosts=None, look=Look(nodes=look.nodes, parked=look.parked))
        anew = self._reconcile(view, forgetful)
        self._next_id = first
        assert (remembering.services, remembering.nodes) == (anew.services, anew.nodes), self.story()
        assert remembering.removed_services == anew.removed_services
        assert remembering.wake_at == anew.wake_at

    def _reconcile(self, view: View, memory: Memory) -> Outcome:
        return reconcile(view, self.now, self.new_id, memory, hearing=self.hearing, served=dict(self.served))

    def _every_while(self) -> None:
        """The leader's full look."""
        self._dirty = True
        self._after(45.0, self._every_while)

    # ── agents ───────────────────────────────────────────────────────────────────────────────

    def _after(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + seconds, next(self._order), do))

    def _planned(self, name: str) -> list[Assignment]:
        plan = self.node_plans.get(name)
        return list(plan.replicas) if plan else []

    def _behaviour(self, node: FakeNode, assignment: Assignment) -> Behaviour:
        spec = self.node_plans[node.name].specs[f"{assignment.service}@{assignment.release}"]
        return self.behave.get(spec.get("image", ""), Behaviour())

    def _act(self, node: FakeNode) -> None:
        """The agent looks at its plan."""
        if not node.up or node.name not in self.node_plans:
            return
        planned = {assignment.id: assignment for assignment in self._planned(node.name)}
        for id in list(node.replicas):
            if id not in planned and node.replicas[id].state.ended:
                del node.replicas[id]
            elif id not in planned or planned[id].want is not Want.RUN:
                self._stop(node, id)
        for id, assignment in planned.items():
            if id in node.replicas:
                continue
            if assignment.want is not Want.RUN:
                self._set(node, assignment, ReplicaState.STOPPED)
                continue
            behaviour = self._behaviour(node, assignment)
            self._set(node, assignment, ReplicaState.STARTING)
            self._after(0.1, lambda id=id: self._move(node, id, ReplicaState.RUNNING))  # type: ignore[misc]
            if behaviour.ready_after is not None:
                ready = max(0.1, behaviour.ready_after)
                self._after(ready, lambda id=id: self._move(node, id, ReplicaState.READY))  # type: ignore[misc]
            if behaviour.crash_after is not None:
                self._after(behaviour.crash_after, lambda id=id: self.crash(id))  # type: ignore[misc]
            if behaviour.done_after is not None:
                self._after(behaviour.done_after, lambda id=id: self.finish(id))  # type: ignore[misc]
        self._report(node)

    def _stop(self, node: FakeNode, id: str) -> None:
        if id in node.stopping or node.replicas[id].state.ended:
            return
        node.stopping.add(id)
        self._move(node, id, ReplicaState.DRAINING)
        self._after(0.2, lambda: self._move(node, id, ReplicaState.STOPPED))

    def _set(self, node: FakeNode, assignment: Assignment, state: ReplicaState, message: str = "") -> None:
        node.replicas[assignment.id] = ReplicaReport(
            id=assignment.id,
            service=assignment.service,
            slot=assignment.slot,
            release=assignment.release,
            state=state,
            since=self.now,
            message=message,
            address="127.0.0.1",
        )

    def _move(self, node: FakeNode, id: str, state: ReplicaState) -> None:
        report = node.replicas.get(id)
        if report is None or report.state.ended or not may_follow(report.state, state):
            return
        node.replicas[id] = msgspec.structs.replace(report, state=state, since=self.now)
        if state is ReplicaState.STOPPED:
            node.stopping.discard(id)
            if all(id != assignment.id for assignment in self._planned(node.name)):
                del node.replicas[id]
        self._report(node)

    def _report(self, node: FakeNode) -> None:
        """The report reaches the store a little later, if the node can reach it."""

        def arrive() -> None:
            if node.up:
                node.reported = list(node.replicas.values())
                self._dirty = True

        self._after(self.delay, arrive)

    # ── what a test looks at ─────────────────────────────────────────────────────────────────

    def running(self, service: str = "web") -> list[ReplicaReport]:
        """What really runs and is not on its way out, by slot."""
        states = (ReplicaState.STARTING, ReplicaState.RUNNING, ReplicaState.READY)
        found = [report for node in self.nodes.values() for report in node.replicas.values()
                 if report.service == service and report.state in states]  # fmt: skip
        return sorted(found, key=lambda report: (str(report.slot).zfill(8), report.id))

    def ready(self, service: str = "web") -> list[str]:
        return [report.id for report in self.running(service) if report.state is ReplicaState.READY]

    def node_of(self, id: str) -> str:
        return next(name for name, plan in self.node_plans.items() if any(one.id == id for one in plan.replicas))

    def spread(self, service: str = "web") -> dict[str, int]:
        """How many replicas of the service each node is planned to run."""
        counts = Counter(
            name for name in self.node_plans for one in self._planned(name)
            if one.service == service and one.want is Want.RUN
        )  # fmt: skip
        return dict(sorted(counts.items()))

    def settled(self) -> bool:
        """Every desired replica is ready, nothing else runs, and no rollout is under way."""
        for service in self.wishes:
            plan = self.plans.get(service)
            if plan is None or not plan.releases or plan.rollout.state != "idle":
                return False
            if len(self.ready(service)) != plan.desired or len(self.running(service)) != plan.desired:
                return False
        planned = sum(len(plan.replicas) for plan in self.node_plans.values())
        return planned == sum(plan.desired for plan in self.plans.values()) and self.plans.keys() == self.wishes.keys()

    def settle(self, within: float = 600.0) -> float:
        self.run(0.1)
        return self.run_until(self.settled, within)

    def events(self, service: str = "web") -> list[str]:
        return [event.text for event in self.plans[service].events]

    def story(self) -> str:
        lines = [f"t={self.now - 1_000_000:.2f}"]
        for plan in self.plans.values():
            lines.append(f"{plan.service}: {plan.desired} desired, {plan.rollout}, {plan.pending} {plan.errors}")
            lines += [f"   {event.time - 1_000_000:8.2f} {event.text} ({event.cause})" for event in plan.events[-12:]]
        for name, node_plan in self.node_plans.items():
            node = self.nodes.get(name)
            lines.append(f"{name}: lost={node_plan.lost} held={node.held if node else None}")
            for one in node_plan.replicas:
                state = node.replicas[one.id].state if node and one.id in node.replicas else "-"
                lines.append(f"   {one.id} {one.want} release {one.release} {state}")
        return "\n".join(lines)

    # ── what must always hold ────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """The invariants that hold after every reconcile."""
        slots: dict[tuple[str, object, int], list[Assignment]] = defaultdict(list)
        ids: set[str] = set()
        for name, plan in self.node_plans.items():
            self._check_capacity(name, plan)
            for assignment in plan.replicas:
                assert assignment.id not in ids, f"{assignment.id} is planned twice\n{self.story()}"
                ids.add(assignment.id)
                if assignment.want is Want.RUN and not plan.lost:
                    slots[assignment.service, assignment.slot, assignment.run].append(assignment)
        for (service, slot, _), assignments in slots.items():
            assert len(assignments) <= 2, f"{service} slot {slot} has {len(assignments)} replicas\n{self.story()}"
        for node in self.nodes.values():
            self._check_volumes(node)
            for report in node.reported:
                before = self._states.get(report.id, report.state)
                assert may_follow(before, report.state), f"{report.id} went from {before} to {report.state}"
                self._states[report.id] = report.state

    def _check_volumes(self, node: FakeNode) -> None:
        """Two replicas of one slot never hold one volume at once."""
        alive = [one for one in node.replicas.values() if not one.state.ended and self._specs[one.id].volumes]
        holders = Counter((one.service, one.slot) for one in alive)
        doubled = [holder for holder, count in holders.items() if count > 1]
        assert not doubled, f"{node.name} has the volumes of {doubled} in use twice\n{self.story()}"

    def _check_capacity(self, name: str, plan: NodePlan) -> None:
        """What is planned, and what really runs, fits together."""
        node = self.nodes.get(name)
        if node is None:
            return
        used: Counter[str] = Counter()
        ports: Counter[int] = Counter()
        running = {id for id, one in node.replicas.items() if not one.state.ended} if node.up else set()
        for id in {assignment.id for assignment in plan.replicas if assignment.want is not Want.KEEP} | running:
            spec = self._specs[id]
            used.update(spec.resources.counts, cpu=spec.resources.cpu, memory=spec.resources.memory)
            ports.update(port.host_port for port in spec.ports.values() if port.host_port)
        room = {"cpu": node.capacity.cpu, "memory": node.capacity.memory, **node.capacity.resources}
        over = {what: amount for what, amount in used.items() if amount > room.get(what, 0)}
        assert not over, f"{name} is over its capacity: {over} of {room}\n{self.story()}"
        doubled = [port for port, count in ports.items() if count > 1]
        assert not doubled, f"{name} has host port {doubled} twice\n{self.story()}"

    def _note_specs(self) -> None:
        """What each replica was placed with: release numbers begin anew when a service does."""
        for plan in self.node_plans.values():
            for one in plan.replicas:
                if one.id not in self._specs:
                    self._specs[one.id] = trusted_spec(plan.specs[f"{one.service}@{one.release}"])
