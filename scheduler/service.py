"""One service's decision: from its wish, its plan and its replicas to what changes, and what needs a place.

`Decision` is made in two steps, because all services are placed in one batch: first `decide`, which keeps, stops and
asks for replicas; then `finish`, which takes the placements in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from mesh.model import Assignment, Pending, Release, RolloutState, ServicePlan, Slot, SlotState, Want
from mesh.scheduler import backoff, releases, rollout
from mesh.scheduler.blueprint import Blueprint, blueprint_of, blueprint_or_none
from mesh.scheduler.classify import Buckets, Replica, Seat, classify
from mesh.scheduler.hosts import Condition, Host, Hosts
from mesh.scheduler.placement import Placement, Refusal, Request
from mesh.scheduler.plan import MAX_PENDING, Story
from mesh.scheduler.sentences import ending
from mesh.scheduler.slots import Moves, Rules, retire, settle
from mesh.view import Wish


@dataclass(frozen=True, slots=True)
class Input:
    """All that a decision about one service looks at; `wish` None: it was deleted; `scale` overrides its replicas."""

    plan: ServicePlan
    wish: Wish | None
    scale: int | None
    replicas: Sequence[Replica]
    hosts: Hosts
    watched_since: float  # when this leader began to look
    now: float


class Decision:
    """What is decided for one service; `kept` are its assignments so far, by node."""

    def __init__(self, given: Input) -> None:
        self._given = given
        self._now = given.now
        self._story = Story(given.now)
        self._pending: dict[Slot, list[str]] = {}
        self._goal: dict[Slot, Release] = {}
        self._cause: dict[Slot, str] = {}
        self.plan = given.plan
        self.kept: list[tuple[str, Assignment]] = []
        self.outgoing: set[str] = set()
        """Ids of replicas that hold their room but are about to leave."""
        self.requests: list[Request] = []
        self.wake: list[float] = []
        self._decide()

    @property
    def is_over(self) -> bool:
        """The wish is gone and so are its replicas: the plan may go too."""
        return self.plan.deleted and not self.kept

    # ── the first step ───────────────────────────────────────────────────────────────────────

    def _decide(self) -> None:
        before = self.plan
        buckets = classify(self._given.replicas)
        wish = self._given.wish
        if wish is None:
            self._update(deleted=True, desired=0, pending=[], errors=[])
            if not before.deleted:
                self._story.tell("deleted: stopping all replicas", "", "the wish is gone")
            self._carry_out(buckets, retire([*buckets.seats.values()], [], "deleted", all_at_once=True))
            return
        self._update(deleted=False)
        self.plan = releases.accept(self.plan, wish, self._now)
        self._tell_of_wish(before)
        if not self.plan.releases:
            self._carry_out(buckets, retire([*buckets.seats.values()], [], "no release", all_at_once=True))
            return
        vacated = self._count_failures(buckets)
        seats, surplus = self._seats(buckets, wish)
        for seat in seats[before.desired :]:
            vacated.setdefault(seat.slot, self._size_cause(wish))
        blueprint = self._advance_rollout(seats)
        base = releases.last_good(self.plan)
        manner = rollout.manner(blueprint, self._in_play(blueprint), len(seats), nothing_to_lose=base is None)
        self._choose_goals(seats, manner)
        moves = self._settle(seats, manner, vacated)
        leaving = retire(surplus, seats, self._size_cause(wish), all_at_once=blueprint.spec.kind == "global")
        moves.stop.update(leaving.stop)
        self._carry_out(buckets, moves)
        self._forget_old_failures(blueprint)
        self.plan = releases.publish(self.plan, blueprint, blueprint_of(self.plan.service, base) if base else None)

    def _update(self, **fields: object) -> None:
        self.plan = msgspec.structs.replace(self.plan, **fields)

    def _tell_of_wish(self, before: ServicePlan) -> None:
        plan = self.plan
        if plan.errors and plan.errors != before.errors:
            self._story.tell("refused the spec:", "; ".join(plan.errors), f"spec@{plan.spec_index}")
        for release in plan.releases[len(before.releases) :]:
            self._story.tell(f"release {release.number}", "", release.cause)

    def _count_failures(self, buckets: Buckets) -> dict[Slot, str]:
        """Remembers who failed, for the back-off; returns why slots have become empty."""
        vacated: dict[Slot, str] = {}
        slots = dict(self.plan.slots)
        for replica in buckets.failed:
            number = replica.assignment.release
            release = next((one for one in self.plan.releases if one.number == number), self.plan.releases[-1])
            slots[str(replica.slot)] = backoff.after_failure(
                slots.get(str(replica.slot)),
                blueprint_of(self.plan.service, release).spec.restart,
                release=number,
                node=replica.node,
                placed=replica.assignment.placed,
                unready_since=replica.since,
                now=self._now,
            )
            vacated[replica.slot] = f"{replica.id} failed"
            self._story.tell("failed:", f"{replica.id} on {replica.node}{ending(replica.report)}")
        for replica in buckets.lost:
            vacated[replica.slot] = f"{replica.node} lost"
            self._story.tell("lost:", f"{replica.id} on {replica.node}", f"{replica.node} lost")
        self._update(slots=slots)
        return vacated

    def _seats(self, buckets: Buckets, wish: Wish) -> tuple[list[Seat], list[Seat]]:
        """The slots that the service should have, and those beyond."""
        newest = blueprint_of(self.plan.service, self.plan.releases[-1])
        if newest.spec.kind == "global":
            wanted: Sequence[Slot] = [host.name for host in self._given.hosts.by_name.values()
                                      if _belongs(host, newest, buckets)]  # fmt: skip
        else:
            asked = self.plan.desired if wish.spec is None or self.plan.errors else wish.spec.replicas
            wanted = range(1, (asked if self._given.scale is None else self._given.scale) + 1)
        if len(wanted) != self.plan.desired and self._given.plan.releases:
            self._story.tell(f"scaled from {self.plan.desired} to {len(wanted)}", "", self._size_cause(wish))
        self._update(desired=len(wanted))
        inside = set(wanted)
        surplus = [buckets.seats[slot] for slot in sorted(buckets.seats.keys() - inside, key=_order)]
        return [buckets.seat(slot) for slot in wanted], surplus

    def _size_cause(self, wish: Wish) -> str:
        """What says how many replicas there should be."""
        return f"spec@{wish.index}" if self._given.scale is None else f"scale={self._given.scale}"

    def _advance_rollout(self, seats: Sequence[Seat]) -> Blueprint:
        """Moves the rollout on; returns the blueprint of the release that the service should run from now on."""
        plan, now = self.plan, self._now
        target, base = plan.releases[-1], releases.last_good(plan)
        blueprint = blueprint_of(plan.service, target)
        update = blueprint.spec.update
        tried = self._tried(target.hash)
        healthy = {seat.slot for seat in seats if seat.healthy(update.min_healthy, now, target.hash)}
        trying_since = [
            tried[str(seat.slot)].since if str(seat.slot) in tried else min(
                replica.since for replica in (*seat.live, *seat.suspect) if replica.hash == target.hash
            )
            for seat in seats
            if seat.slot not in healthy and (str(seat.slot) in tried or seat.has(target.hash))
        ]  # fmt: skip
        seen = rollout.Progress(len(healthy), len(seats), trying_since, self._given.watched_since)
        state, why = rollout.advance(plan.rollout, update, seen, now)
        if why and base is not None and rollout.may_roll_back(update, target, base):
            release = rollout.rollback(target, base, now)
            self.plan = releases.start(self.plan, release, now, f"release {target.number}: {why}; rolled back")
            self._story.tell(f"release {target.number} failed: {why}; rolling back to release {base.number}", "")
            return self._advance_rollout(seats)
        if why:
            state = rollout.fail(state, update, target, base, why, now)
            self._story.tell(state.message, "")
        elif state.state is RolloutState.IDLE:
            if plan.rollout.state is not RolloutState.IDLE:
                self._story.tell(f"release {target.number} is in force", "", target.cause)
            if target.rollback_of:  # why it came to this stays to be read
                state = msgspec.structs.replace(state, message=plan.rollout.message)
            self.plan = releases.mark_good(self.plan)
        self._update(rollout=state)
        deadline = rollout.next_deadline(state, update, seen)
        self.wake.extend([deadline] if deadline is not None else [])
        return blueprint

    def _tried(self, hash: str) -> dict[str, SlotState]:
        """The memory of slots that failed on releases with this hash."""
        numbers = {release.number for release in self.plan.releases if release.hash == hash}
        return {slot: state for slot, state in self.plan.slots.items() if state.release in numbers}

    def _in_play(self, newest: Blueprint) -> list[Blueprint]:
        """The blueprints of all releases that run, or may be started."""
        numbers = {replica.assignment.release for replica in self._given.replicas}
        if (base := releases.last_good(self.plan)) is not None:
            numbers.add(base.number)
        known = (blueprint_or_none(self.plan, number) for number in numbers)
        return [newest, *(one for one in known if one is not None)]

    def _choose_goals(self, seats: Sequence[Seat], manner: rollout.Manner) -> None:
        plan = self.plan
        target, base = plan.releases[-1], releases.last_good(plan)
        if plan.rollout.state is RolloutState.IDLE or base is None:
            self._goal = {seat.slot: target for seat in seats}
            return
        inside = rollout.admitted(seats, plan.rollout, target, self._tried(target.hash), manner, self._now)
        numbered = {release.number: release for release in plan.releases}
        for seat in seats:
            best = seat.best()
            stays = base if best is None else numbered.get(best.assignment.release, base)
            self._goal[seat.slot] = target if seat.slot in inside else stays

    def _settle(self, seats: Sequence[Seat], manner: rollout.Manner, vacated: Mapping[Slot, str]) -> Moves:
        plan, now = self.plan, self._now
        tried = {release.hash: self._tried(release.hash) for release in self._goal.values()}
        retry_at = {slot: backoff.retry_at(tried[goal.hash].get(str(slot)), now) for slot, goal in self._goal.items()}
        moves = settle(seats, Rules(self._goal, manner, retry_at, vacated, now))
        for slot, cause in moves.fill.items():
            self._cause[slot] = cause
            failed = plan.slots.get(str(slot))
            needed = blueprint_of(plan.service, self._goal[slot])
            pinned = plan.pins.get(str(slot)) if needed.spec.volumes else None
            only = slot if isinstance(slot, str) else pinned
            avoid = frozenset([failed.node] if failed else [])
            self.requests.append(Request(plan.service, slot, needed, only=only, avoid=avoid))
        for slot, why in moves.wait.items():
            self._pending[slot] = [self._explained(slot, why)]
        for seat in seats:
            if seat.suspect and not seat.live:
                host = self._given.hosts.by_name[seat.suspect[0].node]
                self._pending[seat.slot] = [self._given.hosts.frozen or f"{host.name} {host.why}"]
        self.wake.extend(moves.wake)
        return moves

    def _explained(self, slot: Slot, why: str) -> str:
        state = self.plan.slots.get(str(slot))
        if state is None:
            return why
        times = "once" if state.failures == 1 else f"{state.failures} times"
        return f"{why}: failed {times}, last on {state.node}"

    def _carry_out(self, buckets: Buckets, moves: Moves) -> None:
        """Keeps what has not ended; tells those to stop that must."""
        for seat in buckets.seats.values():
            for replica in (*seat.live, *seat.suspect, *seat.stopping):
                assignment = replica.assignment
                cause = moves.stop.get(replica.id)
                if cause is not None:
                    assignment = msgspec.structs.replace(assignment, want=Want.STOP, cause=cause)
                    self._story.tell("stopping", f"{replica.id} on {replica.node}", cause)
                goal = self._goal.get(replica.slot)
                if assignment.want is Want.STOP or goal is None or not replica.fits(goal.hash):
                    self.outgoing.add(replica.id)
                self.kept.append((replica.node, assignment))

    def _forget_old_failures(self, blueprint: Blueprint) -> None:
        """A slot's failures count until it has been well for long, has another goal, or is no more."""
        hashes = {release.number: release.hash for release in self.plan.releases}
        goals = {str(slot): goal.hash for slot, goal in self._goal.items()}
        self._update(slots={
            slot: state for slot, state in self.plan.slots.items()
            if slot in goals and hashes.get(state.release) == goals[slot]
            and not backoff.is_over(state, blueprint.spec.restart, self._now)
        })  # fmt: skip

    def take_vip(self, vip: str | None, why_none: str) -> None:
        """Takes its virtual IP; without one nothing is placed."""
        self._update(vip=vip or "")
        if vip is None:
            for request in self.requests:
                self._pending[request.slot] = [why_none]
            self.requests = []

    # ── the second step ──────────────────────────────────────────────────────────────────────

    def finish(self, answers: Sequence[Placement | Refusal], new_replica_id: Callable[[str, Slot], str]) -> None:
        """Takes in where the requested replicas go, or why nowhere."""
        pins = dict(self.plan.pins)
        were_pending = {pending.slot for pending in self.plan.pending}
        for answer in answers:
            slot = answer.request.slot
            if isinstance(answer, Refusal):
                self._pending[slot] = answer.sentences()
                if slot not in were_pending:
                    self._story.tell("pending:", f"slot {slot}: {'; '.join(self._pending[slot])}")
                continue
            assignment = Assignment(
                id=new_replica_id(self.plan.service, slot),
                service=self.plan.service,
                slot=slot,
                release=self._goal[slot].number,
                cause=self._cause[slot],
                placed=self._now,
            )
            self.kept.append((answer.node, assignment))
            self._story.tell("placed", f"{assignment.id} on {answer.node}", assignment.cause)
            if answer.request.blueprint.spec.volumes:
                pins[str(slot)] = answer.node
        pending = [Pending(slot=slot, reasons=self._pending[slot]) for slot in sorted(self._pending, key=_order)]
        self._update(pending=pending[:MAX_PENDING], pins=pins)
        in_use = {assignment.release for _, assignment in self.kept}
        self.plan = self._story.added_to(releases.prune(self.plan, in_use))


def _belongs(host: Host, blueprint: Blueprint, buckets: Buckets) -> bool:
    """True for a node that should have a replica of a global service; a silent or paused one keeps what it has."""
    if host.condition in (Condition.LOST, Condition.DRAINING):
        return False
    if host.condition is not Condition.ACTIVE:
        seat = buckets.seats.get(host.name)
        return seat is not None and bool(seat.live or seat.suspect)
    return not blueprint.refuses(host.attributes.get("runtime", "")) and all(
        constraint.allows(host.attributes) for constraint in blueprint.constraints
    )


def _order(slot: Slot) -> tuple[bool, int, str]:
    return (True, 0, slot) if isinstance(slot, str) else (False, slot, "")
