"""A rollout rehearsed on a virtual clock: the scheduler's own `reconcile`, with nodes that do as the script says."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from mesh.model import (
    Assignment,
    Capacity,
    Event,
    NodePlan,
    NodeReport,
    Release,
    ReplicaReport,
    ReplicaState,
    RolloutState,
    ServicePlan,
    Slot,
    Want,
    may_follow,
    spec_key,
)
from mesh.scheduler import releases
from mesh.scheduler.hosts import Memory
from mesh.scheduler.plan import Outcome
from mesh.scheduler.reconcile import reconcile
from mesh.scheduler.service.rollout import NOTHING, Served
from mesh.scheduler.service.script import MAX_REPLICAS as MAX_REPLICAS
from mesh.scheduler.service.script import Happening, Script
from mesh.spec.service import ServiceSpec
from mesh.units import format_share
from mesh.view import Command, NodeView, View, Wish

MAX_STEPS = 5000


_EPOCH = 1_000_000.0
"""Where the clock begins: no time in a plan may be zero, which means never."""

_ROOM = Capacity(cpu=10**9, memory=2**50)
_OLD = 1


class Action(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`place` or `stop` of a replica; `release`, `rollback`, `promote`, `done`, `pause`, `fail` or `resume` of all."""

    action: str
    release: int
    text: str
    replica: str = ""
    slot: Slot = 0
    node: str = ""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A replica after a step."""

    id: str
    slot: Slot
    release: int
    state: str


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One look at which something was decided, or before which something happened; `at`: seconds."""

    at: float
    happened: list[str]
    actions: list[Action]
    said: list[str]  # the service's story
    state: str
    release: int
    desired: int
    ready: int
    healthy: int  # slots that are, on the newest release
    replicas: list[Seen]
    next: float | None  # when it looks again even if nothing happens


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """All steps, and how it ended."""

    steps: list[Step]
    state: str
    release: int
    at: float  # of the last step
    cut: bool = False  # there was more: the time, or the number of steps, was up


def rehearse(script: Script) -> Rehearsal:
    """Plays a script."""
    stage = _Stage(script)
    steps = [*itertools.islice(stage.play(), MAX_STEPS)]
    last = steps[-1]
    return Rehearsal(
        steps=steps, state=last.state, release=last.release, at=last.at, cut=stage.cut or len(steps) == MAX_STEPS
    )


@dataclass(order=True, slots=True)
class _Due:
    at: float
    order: int
    happening: Happening = field(compare=False)
    told: bool = field(compare=False, default=True)  # by the script, not by how replicas behave


class _Stage:
    """The cluster of a rehearsal."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._service = script.spec.name
        self._now = _EPOCH
        self._order = itertools.count()
        self._ids = itertools.count()
        self._due = [_Due(_EPOCH + one.at, next(self._order), one) for one in script.happenings]
        heapq.heapify(self._due)
        self._index = 2
        self._wish = Wish(script.spec, (), self._index)
        specs = [
            one for one in (script.old, script.spec, *(each.spec for each in script.happenings)) if one is not None
        ]
        self._configs = {name: name for spec in specs for name in releases.config_names(spec).values()}
        self._command: Command | None = None
        self._scale: int | None = None
        self._served = NOTHING
        self._reports: dict[str, dict[str, ReplicaReport]] = {f"n{n}": {} for n in range(1, script.nodes + 1)}
        self._plans: dict[str, NodePlan] = {}
        self._plan: ServicePlan | None = None
        self._old_hash = ""
        self._memory = Memory()
        self._wake_at: float | None = None
        self._reported = False  # nodes have told what they began, and the scheduler has not looked since
        self.cut = False
        if script.old is not None:
            self._settle_in(script.old)

    def _settle_in(self, old: ServiceSpec) -> None:
        """The old release is in force."""
        old = releases.resolved(old, self._configs)
        release = Release(number=_OLD, hash=old.digest(), spec=old.canonical(), good=True, cause="spec@1")
        self._old_hash = release.hash
        seated = [*zip(self._script.residents, itertools.cycle(self._reports), strict=False)]
        self._plan = ServicePlan(
            service=self._service,
            spec_index=1,
            desired=old.replicas,
            releases=[release],
            pins={str(resident.slot): node for resident, node in seated} if old.volumes else {},
        )
        for resident, node in seated:
            id, since = f"{self._service}-{resident.slot}-{self._new_id()}", self._now - resident.age
            before = self._plans.get(node) or NodePlan(node=node, specs={spec_key(self._service, _OLD): release.spec})
            assignment = Assignment(id=id, service=self._service, slot=resident.slot, release=_OLD, placed=since)
            self._plans[node] = msgspec.structs.replace(before, replicas=[*before.replicas, assignment])
            self._reports[node][id] = ReplicaReport(
                id=id, service=self._service, slot=resident.slot, release=_OLD, state=resident.state, since=since
            )

    def _new_id(self) -> str:
        return f"{next(self._ids):04x}"

    # ── time ─────────────────────────────────────────────────────────────────────────────────

    def play(self) -> Iterator[Step]:
        """Looks, lets time pass, looks."""
        happened = [f"{self._service}: the spec was written"]
        while True:
            step = self._look(happened)
            if happened or step.actions or step.said:
                yield step
            times = [self._due[0].at if self._due else math.inf, self._now if self._reported else math.inf]
            times.append(math.inf if self._wake_at is None or self._is_over(step) else self._wake_at)
            self._now, before = min(times), self._now
            if self._now - _EPOCH > self._script.until or self._now == math.inf:
                self.cut = self._now != math.inf
                self._now = before
                return
            happened = []
            while self._due and self._due[0].at <= self._now:
                due = heapq.heappop(self._due)
                if due.told or self._lives(due.happening.replica):
                    happened.append(self._happen(due.happening))

    def _is_over(self, step: Step) -> bool:
        """Nothing but what a replica forgets in time is left."""
        return step.state == RolloutState.IDLE and step.ready == step.desired == len(step.replicas)

    def _lives(self, id: str) -> bool:
        return any(id in reports and not reports[id].state.ended for reports in self._reports.values())

    def _happen(self, one: Happening) -> str:
        """Carries it out; says what it was."""
        if one.command is not None:
            self._index += 1
            self._command = Command(one.command, self._index)
            return f"an operator: {one.command.action}"
        if one.spec is not None:
            self._index += 1
            self._wish = Wish(one.spec, (), self._index)
            return f"{self._service}: another spec was written"
        if one.replicas is not None:
            self._scale = one.replicas
            return f"{self._service}: scaled to {one.replicas}"
        if one.served is not None:
            self._served = one.served
            return f"{self._service}: its canaries answer {format_share(one.served.ratio)} of their requests well"
        assert one.state is not None
        return self._enter(one, one.state)

    def _enter(self, one: Happening, state: ReplicaState) -> str:
        """A replica enters a state, if it may."""
        found = [
            (report.release, node, report)
            for node, reports in self._reports.items()
            for report in reports.values()
            if not report.state.ended and (report.id == one.replica if one.replica else report.slot == one.slot)
        ]
        if not found:
            return f"{one.replica or f'slot {one.slot}'}: there is no such replica"
        _, node, report = max(found, key=lambda each: each[0])
        if not may_follow(report.state, state):
            return f"{report.id}: is {report.state}, cannot become {state}"
        self._reports[node][report.id] = msgspec.structs.replace(report, state=state, since=self._now)
        return f"{report.id}: {state}"

    # ── one look ─────────────────────────────────────────────────────────────────────────────

    def _look(self, happened: list[str]) -> Step:
        before, known = self._plan, {one.id: one for plan in self._plans.values() for one in plan.replicas}
        outcome = reconcile(self._view(), self._now, self._new_id, self._memory, served=self._served_each())
        self._memory, self._wake_at = outcome.memory, outcome.wake_at
        self._plan = outcome.services.get(self._service, self._plan)
        assert self._plan is not None
        self._plans = {**self._plans, **outcome.nodes}
        actions = [*_turns(before, self._plan), *self._moves(known)]
        self._obey()
        return self._step(outcome, before, happened, actions)

    def _view(self) -> View:
        return View(
            wishes={self._service: self._wish},
            configs=self._configs,
            scale={} if self._scale is None else {self._service: self._scale},
            commands={} if self._command is None else {self._service: self._command},
            plans={self._service: self._plan} if self._plan else {},
            node_plans=dict(self._plans),
            nodes={
                node: NodeView(
                    NodeReport(node=node, address=node, runtime="", capacity=_ROOM, replicas=[*reports.values()]),
                    held=True,
                    index=1,
                )
                for node, reports in self._reports.items()
            },
        )

    def _served_each(self) -> dict[str, Served]:
        """It is all the same which of the newest release were sent it."""
        newest = self._plan.releases[-1].number if self._plan and self._plan.releases else 0
        living = [report.id for reports in self._reports.values() for report in reports.values()
                  if report.release == newest and not report.state.ended]  # fmt: skip
        requests, failures = self._served
        return {id: Served(requests / len(living), failures / len(living)) for id in living}

    def _moves(self, known: dict[str, Assignment]) -> Iterator[Action]:
        """What is placed and stopped that was not before."""
        for node, plan in self._plans.items():
            for one in plan.replicas:
                before = known.get(one.id)
                if before is None or (before.want is Want.RUN and one.want is Want.STOP):
                    yield Action(
                        action="place" if before is None else "stop",
                        release=one.release,
                        text=one.cause,
                        replica=one.id,
                        slot=one.slot,
                        node=node,
                    )

    def _obey(self) -> None:
        """The nodes do what their plans say, and tell."""
        before = {node: {**reports} for node, reports in self._reports.items()}
        for node, plan in self._plans.items():
            reports, planned = self._reports[node], {one.id: one for one in plan.replicas}
            for id in [id for id, report in reports.items() if id not in planned and report.state.ended]:
                del reports[id]
            for id, assignment in planned.items():
                if id not in reports:
                    reports[id] = self._started(assignment)
            for id, report in reports.items():
                told = id in planned and planned[id].want is Want.RUN
                if not told and not report.state.ended and report.state is not ReplicaState.DRAINING:
                    reports[id] = msgspec.structs.replace(report, state=ReplicaState.DRAINING, since=self._now)
                    self._expect(id, ReplicaState.STOPPED, self._script.stops_after)
        self._reported = before != self._reports

    def _started(self, assignment: Assignment) -> ReplicaReport:
        assert self._plan is not None
        hashes = {release.number: release.hash for release in self._plan.releases}
        is_old = hashes.get(assignment.release) == self._old_hash
        ready_after, fails_after = (1.0, None) if is_old else (self._script.ready_after, self._script.fails_after)
        if ready_after is not None:
            self._expect(assignment.id, ReplicaState.READY, ready_after)
        if fails_after is not None:
            self._expect(assignment.id, ReplicaState.FAILED, fails_after)
        return ReplicaReport(
            id=assignment.id,
            service=self._service,
            slot=assignment.slot,
            release=assignment.release,
            state=ReplicaState.STARTING,
            since=self._now,
        )

    def _expect(self, id: str, state: ReplicaState, after: float) -> None:
        due = _Due(self._now + after, next(self._order), Happening(0.0, replica=id, state=state), told=False)
        heapq.heappush(self._due, due)

    def _step(self, outcome: Outcome, before: ServicePlan | None, happened: list[str], actions: list[Action]) -> Step:
        plan = self._plan
        assert plan is not None
        newest = plan.releases[-1].hash if plan.releases else ""
        hashes = {release.number: release.hash for release in plan.releases}
        reports = sorted((report for reports in self._reports.values() for report in reports.values()),
                         key=lambda report: (str(report.slot).zfill(8), report.id))  # fmt: skip
        living = [report for report in reports if not report.state.ended]
        ready = [report for report in living if report.state is ReplicaState.READY]
        ripe = self._script.spec.update.min_healthy if self._wish.spec is None else self._wish.spec.update.min_healthy
        return Step(
            at=round(self._now - _EPOCH, 3),
            happened=happened,
            actions=actions,
            said=[event.text for event in _new_events(before, plan)] + plan.errors,
            state=plan.rollout.state,
            release=plan.releases[-1].number if plan.releases else 0,
            desired=plan.desired,
            ready=len(ready),
            healthy=len({one.slot for one in ready
                         if hashes.get(one.release) == newest and self._now >= one.since + ripe}),
            replicas=[Seen(id=one.id, slot=one.slot, release=one.release, state=one.state) for one in living],
            next=None if outcome.wake_at is None else round(outcome.wake_at - _EPOCH, 3),
        )  # fmt: skip


def _new_events(before: ServicePlan | None, plan: ServicePlan) -> list[Event]:
    known = {id(event) for event in before.events} if before else set()
    return [event for event in plan.events if id(event) not in known]


_TURNS = {RolloutState.IDLE: "done", RolloutState.PAUSED: "pause", RolloutState.FAILED: "fail"}


def _turns(before: ServicePlan | None, plan: ServicePlan) -> Iterator[Action]:
    """What became of the rollout as a whole."""
    count = len(before.releases) if before else 0
    for release in plan.releases[count:]:
        kind = "rollback" if release.rollback_of else "release"
        yield Action(action=kind, release=release.number, text=release.cause)
    if not plan.releases:
        return
    number, state = plan.releases[-1].number, plan.rollout
    old = before.rollout if before else None
    if state.promoted and not plan.releases[-1].rollback_of and (old is None or not old.promoted):
        yield Action(action="promote", release=number, text="all canaries are healthy")
    if old is None or (state.release, state.state) != (old.release, old.state):
        if state.state in _TURNS:
            text = state.message or f"release {number} is in force"
            yield Action(action=_TURNS[state.state], release=number, text=text)
        elif old is not None and old.release == number and old.state in (RolloutState.PAUSED, RolloutState.FAILED):
            yield Action(action="resume", release=number, text=f"release {number} goes on")
