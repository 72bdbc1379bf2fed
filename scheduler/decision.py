"""One service's decision: from its wish, its plan and its replicas to what changes, and what needs a place.

It is made in two steps, because all services are placed in one batch: first it keeps, stops and asks for replicas; then
`finish` takes the placements in. What the kinds of services have in common is here; `service.py` decides on those that
run until told to stop, `jobs.py` on those that end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from mesh.model import Assignment, Claim, Pending, Release, ScaleState, ServicePlan, Slot, SlotState, Want
from mesh.scheduler import backoff, releases
from mesh.scheduler.blueprint import NO_DEMAND, Blueprint, Demand, blueprint_of, blueprint_or_none
from mesh.scheduler.classify import Buckets, Replica
from mesh.scheduler.hosts import Condition, Hosts
from mesh.scheduler.placement import Holding, Placement, Refusal, Request
from mesh.scheduler.plan import MAX_PENDING, Story
from mesh.scheduler.sentences import ending, how_ended, listed
from mesh.scheduler.service.rollout import Served
from mesh.spec.service import Restart
from mesh.units import format_numbers, parse_numbers
from mesh.view import Command, Wish

PREEMPTED = "preempted by"
"""How the cause of an eviction begins."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What all services of one reconcile have in common.

    `configs` are the values that specs may name; `alive` tells whether a replica of a node has not ended yet, `demands`
    what lies on a node; `busy` are drained nodes that run more than global services; `served`: what replicas of which
    that is of interest were sent lately; `watched_since`: when this leader began to look.
    """

    hosts: Hosts
    configs: Mapping[str, str]
    alive: Callable[[str, str], bool]
    demands: Callable[[str], Iterable[Demand]]
    busy: Collection[str]
    served: Mapping[str, Served]
    watched_since: float
    now: float


@dataclass(frozen=True, slots=True)
class Input:
    """All that a decision about one service looks at; `wish` None: it was deleted; `scale`: the count that an operator
    holds by hand; `scaled`: the autoscaler's; `command`: what an operator wants of its rollout."""

    plan: ServicePlan
    wish: Wish | None
    scale: int | None
    scaled: ScaleState | None
    command: Command | None
    muster: Mapping[str, Sequence[Replica]]  # its replicas by node
    scene: Scene

    @property
    def replicas(self) -> list[Replica]:
        return [replica for node in sorted(self.muster) for replica in self.muster[node]]


@dataclass(frozen=True, slots=True)
class Fill:
    """A replica that needs a place, and what becomes of it when it has one."""

    request: Request
    release: int
    cause: str
    run: int = 0
    replaces: bool = False  # its slot has lost its replica
    moves: str = ""  # the replica whose successor this is, if it stays should there be no place


@dataclass(frozen=True, slots=True)
class Promise:
    """Room on a node that nobody else may have: somebody is made to leave it for this demand."""

    node: str
    slot: Slot
    demand: Demand
    priority: int


class Decision:
    """What is decided for one service; this one leaves everything as it is.

    `kept` are its assignments by node, `records` those that have ended and are kept for their output;
    `outgoing` are ids of replicas that hold their room but are about to leave; `vacant` are slots that have lost their
    replica.
    """

    def __init__(self, given: Input, plan: ServicePlan) -> None:
        self.given = given
        self.plan = plan
        self.kept: dict[str, list[Assignment]] = {}
        self.records: dict[str, list[Assignment]] = {}
        self.outgoing: set[str] = set()
        self.vacant: set[Slot] = {*parse_numbers(plan.vacant)}
        self.fills: list[Fill] = []
        self.promises: list[Promise] = []
        self.wake: list[float] = []
        self.story = Story(given.scene.now)
        self.pending: dict[Slot, Pending] = {}
        self._blueprints: dict[int, Blueprint | None] = {}
        self._holdings: dict[str, list[Holding]] = {}
        self._tell_of_wish()

    def _tell_of_wish(self) -> None:
        before, plan = self.given.plan, self.plan
        if plan.errors and plan.errors != before.errors:
            self.story.tell("refused the spec:", "; ".join(plan.errors), f"spec@{plan.spec_index}")
        for release in plan.releases[len(before.releases) :]:
            self.story.tell(f"release {release.number}", "", release.cause)

    @property
    def requests(self) -> list[Request]:
        return [fill.request for fill in self.fills]

    @property
    def is_over(self) -> bool:
        """The wish is gone and so are its replicas: the plan may go too."""
        return self.plan.deleted and not self.kept

    @property
    def changes_nothing(self) -> bool:
        """Decided again on the same, it would be the same, until the earliest time in `wake`."""
        given = self.given
        kept = {id(assignment) for part in (self.kept, self.records) for held in part.values() for assignment in held}
        before = {id(replica.assignment) for replica in given.replicas}
        return not self.fills and not self.promises and kept == before and self.plan == given.plan

    # ── what the kinds of services are made of ───────────────────────────────────────────────

    def update(self, **fields: object) -> None:
        self.plan = msgspec.structs.replace(self.plan, **fields)

    def carry_out(
        self, replicas: Iterable[Replica], stop: Mapping[str, str], leaving: Callable[[Replica], bool]
    ) -> None:
        """Keeps what has not ended; tells those to stop that must (id → cause); `leaving`: will be told so soon."""
        for replica in replicas:
            assignment = replica.assignment
            cause = stop.get(replica.id)
            if cause is not None and assignment.want is Want.RUN:
                assignment = msgspec.structs.replace(assignment, want=Want.STOP, cause=cause)
                self.story.tell("stopping", f"{replica.id} on {replica.node}", cause)
            if assignment.want is Want.STOP or leaving(replica):
                self.outgoing.add(replica.id)
            self.keep(replica.node, assignment)

    def overdue(self, buckets: Buckets) -> dict[str, str]:
        """Who must stop because it did not leave its drained node in time: id → cause."""
        late = (replica for seat in buckets.seats.values() for replica in seat.stopping if replica.overdue)
        return {replica.id: f"drain of {replica.node}, whose deadline has passed" for replica in late}

    def keep(self, node: str, assignment: Assignment) -> None:
        self.kept.setdefault(node, []).append(assignment)

    def blueprint(self, release: int) -> Blueprint | None:
        if release not in self._blueprints:
            self._blueprints[release] = blueprint_or_none(self.plan, release)
        return self._blueprints[release]

    def holdings(self, node: str) -> list[Holding]:
        """What it has on a node so far."""
        if node not in self._holdings:
            self._holdings[node] = [self._holding(assignment) for assignment in self.kept.get(node, ())]
        return self._holdings[node]

    def _holding(self, assignment: Assignment) -> Holding:
        blueprint = self.blueprint(assignment.release)
        stays = assignment.id not in self.outgoing
        return Holding(
            self.plan.service,
            blueprint.demand if blueprint else NO_DEMAND,
            stays,
            assignment.id,
            assignment.slot,
            blueprint.spec.placement.priority if blueprint else 50,
            evictable=stays and assignment.want is Want.RUN,
        )

    def ask(self, slot: Slot, release: Release, cause: str, *, run: int = 0, moved: Assignment | None = None) -> None:
        """Asks for a replica; where room is being made for one, waits for that.

        `moved`: it is to take the place of this one, on that one's target.
        """
        blueprint = blueprint_of(self.plan.service, release)
        claim = next((claim for claim in self.given.plan.claims
                      if (claim.slot, claim.release, claim.run) == (slot, release.number, run)), None)  # fmt: skip
        if claim is not None and (left := self._still_there(claim)):
            self.wait(slot, f"waits for room on {claim.node}: {listed(left)} must stop first", cause)
            self.promises.append(Promise(claim.node, slot, blueprint.demand, blueprint.spec.placement.priority))
            self.update(claims=[*self.plan.claims, claim])
            return
        pinned = self.plan.pins.get(str(slot)) if blueprint.spec.volumes else None
        only = moved.target if moved else slot if isinstance(slot, str) else pinned
        request = Request(self.plan.service, slot, blueprint, only=only, avoid=self._failed_on(release))
        self.fills.append(Fill(request, release.number, cause, run, slot in self.vacant, moved.id if moved else ""))

    def _still_there(self, claim: Claim) -> list[str]:
        scene = self.given.scene
        if scene.hosts.by_name[claim.node].condition is not Condition.ACTIVE:
            return []
        return [id for id in claim.evicts if scene.alive(claim.node, id)]

    def _failed_on(self, release: Release) -> frozenset[str]:
        """Nodes that failed a replica of the release lately."""
        return frozenset(node for state in self.tried(release.hash).values() for node in state.nodes)

    def tried(self, hash: str) -> dict[str, SlotState]:
        """The memory of slots that failed on releases with this hash."""
        numbers = {release.number for release in self.plan.releases if release.hash == hash}
        return {slot: state for slot, state in self.plan.slots.items() if state.release in numbers}

    def preempted(self, buckets: Buckets) -> dict[Slot, str]:
        """Slots that were emptied for more important services, and have no replica yet; with the cause."""
        causes = {pending.slot: pending.cause for pending in self.given.plan.pending}
        causes.update(
            (replica.slot, replica.assignment.cause) for seat in buckets.seats.values() for replica in seat.stopping
        )
        return {slot: cause for slot, cause in causes.items() if cause.startswith(PREEMPTED)}

    def count_failure(self, replica: Replica) -> None:
        """Remembers one more failed attempt to fill its slot, for the back-off."""
        slot, number = str(replica.slot), replica.assignment.release
        release = next((one for one in self.plan.releases if one.number == number), self.plan.releases[-1])
        state = backoff.after_failure(
            self.plan.slots.get(slot),
            blueprint_of(self.plan.service, release).spec.restart,
            release=number,
            node=replica.node,
            placed=replica.assignment.placed,
            unready_since=replica.since,
            now=self.given.scene.now,
            why=how_ended(replica.report),
        )
        self.update(slots={**self.plan.slots, slot: state})
        self.story.tell("failed:", f"{replica.id} on {replica.node}{ending(replica.report)}")

    def keep_failures(self, restart: Restart, slots: Collection[str]) -> None:
        """Forgets the failures of other slots, and of those that have been well for long."""
        kept = {slot: state for slot, state in self.plan.slots.items()
                if slot in slots and not backoff.is_over(state, restart, self.given.scene.now)}  # fmt: skip
        self.wake.extend(state.last_failure + restart.reset_after for state in kept.values())
        self.update(slots=kept)

    def explained(self, slot: Slot, why: str) -> str:
        """Why it waits, with its failures if it had some."""
        state = self.plan.slots.get(str(slot))
        if state is None:
            return why
        times = "once" if state.failures == 1 else f"{state.failures} times"
        return f"{why}: failed {times}, last on {state.node}{state.why and f' ({state.why})'}"

    def wait(self, slot: Slot, why: str, cause: str = "") -> None:
        self.pending[slot] = Pending(slot=slot, reasons=[why], cause=cause)

    # ── the second step ──────────────────────────────────────────────────────────────────────

    def take_vip(self, vip: str | None, why_none: str) -> None:
        """Takes its virtual IP; without one nothing is placed."""
        self.update(vip=vip or "")
        if vip is None:
            for fill in self.fills:
                self.wait(fill.request.slot, why_none)
            self.fills = []

    def finish(self, answers: Sequence[Placement | Refusal], new_replica_id: Callable[[str, Slot], str]) -> None:
        """Takes in where the requested replicas go, who must leave for them first, or why they go nowhere."""
        now = self.given.scene.now
        pins = dict(self.plan.pins)
        claims = list(self.plan.claims)
        were_pending = {pending.slot for pending in self.given.plan.pending}
        for fill, answer in zip(self.fills, answers, strict=True):
            slot = fill.request.slot
            if fill.moves and not _is_better(answer):
                self._stay(fill.moves)
                continue
            if isinstance(answer, Refusal):
                if len(self.pending) >= MAX_PENDING:
                    continue
                reasons = answer.sentences()
                if fill.cause.startswith(PREEMPTED):
                    reasons.insert(0, fill.cause)
                self.pending[slot] = Pending(slot=slot, reasons=reasons, cause=fill.cause)
                if slot not in were_pending:
                    self.story.tell("pending:", f"slot {slot}: {'; '.join(reasons)}", fill.cause)
                continue
            if answer.evicts:
                claims.append(Claim(slot=slot, release=fill.release, node=answer.node, evicts=[*answer.evicts],
                                    run=fill.run))  # fmt: skip
                self.wait(slot, f"waits for room on {answer.node}: {listed(answer.evicts)} must stop first", fill.cause)
                continue
            assignment = Assignment(
                id=new_replica_id(self.plan.service, slot),
                service=self.plan.service,
                slot=slot,
                release=fill.release,
                run=fill.run,
                cause=fill.cause,
                placed=now,
                replacement=fill.replaces,
            )
            self.vacant -= {slot}
            self.keep(answer.node, assignment)
            self._holdings.pop(answer.node, None)
            self.story.tell("placed", f"{assignment.id} on {answer.node}", assignment.cause)
            if fill.request.blueprint.spec.volumes:
                pins[str(slot)] = answer.node
        pending = [self.pending[slot] for slot in sorted(self.pending, key=slot_order)]
        vacant = format_numbers(slot for slot in self.vacant if isinstance(slot, int))
        self.update(pending=pending[:MAX_PENDING], pins=pins, claims=claims, vacant=vacant)
        in_use = {one.release for part in (self.kept, self.records) for held in part.values() for one in held}
        in_use.update(run.release for run in self.plan.runs if not run.ended)
        self.plan = self.story.added_to(releases.prune(self.plan, in_use))

    def _stay(self, id: str) -> None:
        """Takes the mark off a replica that was to be moved."""
        for node, held in self.kept.items():
            self.kept[node] = [msgspec.structs.replace(one, target="") if one.id == id else one for one in held]
        self.outgoing.discard(id)
        self._holdings.clear()


class Removal(Decision):
    """For a service that was deleted, or that never had a usable release: all of it stops."""

    def __init__(self, given: Input, plan: ServicePlan, buckets: Buckets, cause: str) -> None:
        super().__init__(given, plan)
        stop = {replica.id: cause for replica in given.replicas}
        for seat in buckets.seats.values():
            self.carry_out((*seat.live, *seat.suspect, *seat.stopping), stop, lambda _: True)


class Untouched(Decision):
    """For a service that cannot be decided on: all it has stays as it is, and it says so."""

    def __init__(self, given: Input, error: str = "") -> None:
        super().__init__(given, given.plan)
        if error:
            self.update(errors=[error])
        for replica in given.replicas:
            self.keep(replica.node, replica.assignment)

    @property
    def changes_nothing(self) -> bool:
        return False  # it is tried again at every look

    def take_vip(self, vip: str | None, why_none: str) -> None:
        """It keeps the one it has."""

    def finish(self, answers: Sequence[Placement | Refusal], new_replica_id: Callable[[str, Slot], str]) -> None:
        """Nothing was asked for."""


def _is_better(answer: Placement | Refusal) -> bool:
    """A move is worth making: there is room, nobody must leave for it, and the node has not just failed it."""
    return isinstance(answer, Placement) and not answer.evicts and answer.node not in answer.request.avoid


def slot_order(slot: Slot) -> tuple[bool, int, str]:
    return (True, 0, slot) if isinstance(slot, str) else (False, slot, "")
