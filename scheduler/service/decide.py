"""The decision on a service that runs until told to stop: its slots, its rollout, and who leaves when it shrinks."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

import msgspec

from mesh.model import Release, Rollout, RolloutState, ServicePlan, Slot, Want
from mesh.scheduler import backoff, releases
from mesh.scheduler.blueprint import Blueprint, blueprint_of, blueprint_or_none
from mesh.scheduler.classify import Buckets, Replica, Seat
from mesh.scheduler.count import Count, count_of
from mesh.scheduler.decision import Decision, Input, slot_order
from mesh.scheduler.forecast.cluster import Cluster, Room, Site
from mesh.scheduler.forecast.cluster import Replica as Lodger
from mesh.scheduler.hosts import Condition, Host
from mesh.scheduler.scale_down import first_to_go
from mesh.scheduler.service import commands, rollout
from mesh.scheduler.service.slots import BACKS_OFF, Moves, Rules, retire, settle
from mesh.units import format_numbers, parse_numbers
from mesh.view import Wish


class ServiceDecision(Decision):
    """For `kind: service` and `global`."""

    def __init__(self, given: Input, plan: ServicePlan, buckets: Buckets, wish: Wish) -> None:
        super().__init__(given, plan)
        self._obey_command()
        self._wish = wish
        self._count = self._counted_by()
        self._newest = blueprint_of(plan.service, plan.releases[-1])
        self._tell_of_warnings()
        self._goal: dict[Slot, Release] = {}
        self._beside: dict[Slot, Release] = {}
        self.update(claims=[], runs=[], next_run=0.0)
        vacated = self._count_failures(buckets)
        seats, surplus = self._seats(buckets)
        self.vacant &= {seat.slot for seat in seats if not (seat.live or seat.suspect)}
        for seat in seats:
            vacated.setdefault(seat.slot, self._size_cause() if seat.slot in self._added else "")
        blueprint = self._advance_rollout(seats)
        base = releases.last_good(self.plan)
        manner = rollout.manner(blueprint, self._in_play(blueprint), len(seats), nothing_to_lose=base is None)
        self._choose_goals(seats, manner)
        moves = self._settle(seats, manner, vacated)
        moves.stop.update(self._retired(seats, surplus))
        if self._newest.spec.kind == "service":
            moves.stop.update(self.overdue(buckets))
        self._await_return(buckets, seats)
        for seat in buckets.seats.values():
            self.carry_out((*seat.live, *seat.suspect, *seat.stopping), moves.stop, self._leaving)
        self._forget_old_failures(blueprint)
        self.plan = releases.publish(self.plan, blueprint, blueprint_of(self.plan.service, base) if base else None)

    def _leaving(self, replica: Replica) -> bool:
        kept = (self._goal.get(replica.slot), self._beside.get(replica.slot))
        return not any(replica.fits(release.hash) for release in kept if release is not None)

    # ── who failed, and which slots there should be ──────────────────────────────────────────

    def _count_failures(self, buckets: Buckets) -> dict[Slot, str]:
        """Remembers who failed, for the back-off; returns why slots have become empty."""
        vacated = {pending.slot: pending.cause for pending in self.plan.pending if pending.cause}
        vacated.update(self.preempted(buckets))
        for replica in buckets.failed:
            self.count_failure(replica)
            vacated[replica.slot] = f"{replica.id} failed"
        for seat in buckets.seats.values():
            vacated.update((seat.slot, f"drain of {late.node}") for late in seat.stopping if late.overdue)
            self.vacant.update(late.slot for late in seat.stopping if late.overdue)
        self.vacant.update(replica.slot for replica in (*buckets.failed, *buckets.lost))
        for replica in buckets.lost:
            vacated[replica.slot] = f"{replica.node} lost"
            self.story.tell("lost:", f"{replica.id} on {replica.node}", f"{replica.node} lost")
        return vacated

    def _seats(self, buckets: Buckets) -> tuple[list[Seat], list[Seat]]:
        """The slots that the service should have, and those that it should have no longer."""
        is_global = self._newest.spec.kind == "global"
        before = self._slots_before()
        wanted: Sequence[Slot] = self._eligible(buckets) if is_global else self._counted(before, buckets)
        if len(wanted) != self.plan.desired and self.given.plan.releases:
            why = f": {self._count.why}" if self._count.why else ""
            self.story.tell(f"scaled from {self.plan.desired} to {len(wanted)}{why}", "", self._size_cause())
        in_row = is_global or wanted == [*range(1, len(wanted) + 1)]
        numbers = [slot for slot in wanted if isinstance(slot, int)]
        asleep = not is_global and (self._count.asleep or self._wakes(wanted, buckets))
        self.update(desired=len(wanted), asleep=asleep, seats="" if in_row else format_numbers(numbers))
        self._added = set(wanted) - before
        surplus = [buckets.seats[slot] for slot in sorted(buckets.seats.keys() - set(wanted), key=slot_order)]
        return [buckets.seat(slot) for slot in wanted], surplus

    def _wakes(self, wanted: Collection[Slot], buckets: Buckets) -> bool:
        """It slept, and whoever asks for it waits on: none of those that are wanted now has become ready yet."""
        return self.plan.asleep and bool(wanted) and not any(seat.ready for seat in buckets.seats.values())

    def _slots_before(self) -> set[Slot]:
        if self.plan.seats:
            return {*parse_numbers(self.plan.seats)}
        return {*range(1, self.plan.desired + 1)}

    def _counted(self, before: Collection[Slot], buckets: Buckets) -> list[Slot]:
        """The slots it had; more are the lowest free ones, and of too many the least useful go."""
        count = self._count.replicas
        slots = {slot for slot in before if isinstance(slot, int)}
        free = (slot for slot in itertools.count(1) if slot not in slots)
        added = [*itertools.islice(free, max(0, count - len(slots)))]
        if len(slots) > count:
            slots -= self._first_to_go(slots, len(slots) - count, buckets)
        return sorted([*slots, *added])

    def _first_to_go(self, slots: Collection[int], count: int, buckets: Buckets) -> set[int]:
        """Slots without a replica, the highest first; then as `first_to_go` says."""
        sitting = {slot: best for slot in slots if slot in buckets.seats and (best := buckets.seats[slot].best())}
        empty = sorted((slot for slot in slots if slot not in sitting), reverse=True)[:count]
        hosts = self.given.scene.hosts.by_name
        sites = {
            node: Site(node, host.room, host.attributes, draining=host.condition.draining)
            for node in {replica.node for replica in sitting.values()}
            for host in [hosts[node]]
        }
        lodgers = [
            Lodger("", "", 0, node, demand=demand) for node in sites for demand in self.given.scene.demands(node)
        ]
        newest = self.plan.releases[-1].hash
        candidates = [
            Lodger(
                replica.id,
                self.plan.service,
                slot,
                replica.node,
                state=replica.state,
                current=replica.hash == newest,
                since=replica.assignment.placed,
                demand=self._newest.demand,
            )
            for slot, replica in sitting.items()
        ]
        spread = self._newest.spec.placement.spread
        label = spread[0].label if spread else "zone"
        going = first_to_go(candidates, count - len(empty), label, sites, Room(Cluster(sites, {}), lodgers))
        return {*empty, *(one.slot for one in going if isinstance(one.slot, int))}

    def _eligible(self, buckets: Buckets) -> list[Slot]:
        hosts = self.given.scene.hosts.by_name.values()
        return [host.name for host in hosts if _belongs(host, self._newest, buckets)]

    def _retired(self, seats: Sequence[Seat], surplus: Sequence[Seat]) -> dict[str, str]:
        """Who stops because the service should not have its slot: id → cause. A drain stops globals last."""
        if self._newest.spec.kind != "global":
            return retire(surplus, seats, self._size_cause(), all_at_once=False).stop
        stop: dict[str, str] = {}
        for seat in surplus:
            host = self.given.scene.hosts.by_name.get(str(seat.slot))
            drained = host is not None and host.condition.draining
            if not drained or seat.slot not in self.given.scene.busy:
                cause = f"drain of {seat.slot}" if drained else f"{seat.slot} is not eligible"
                stop.update(retire([seat], seats, cause, all_at_once=True).stop)
        return stop

    def _await_return(self, buckets: Buckets, seats: Sequence[Seat]) -> None:
        """Keeps the plan of replicas whose node was given up, where the old copy is wanted when it returns.

        A singleton's has stopped itself meanwhile.
        """
        spec = self._newest.spec
        if spec.on_return == "keep-new" or spec.singleton:
            return
        wanted = {seat.slot for seat in seats}
        for replica in (*buckets.lost, *buckets.away):
            runs = replica.assignment.want is Want.RUN and not replica.state.ended
            if runs and (replica.slot in wanted or spec.kind == "global"):
                self.keep(replica.node, replica.assignment)

    def _size_cause(self) -> str:
        """What says how many replicas there should be."""
        return self._count.by or f"spec@{self._wish.index}"

    def _counted_by(self) -> Count:
        spec = None if self.plan.errors else self._wish.spec
        return count_of(spec, self.given.scale, self.given.scaled, self.plan.desired)

    def _tell_of_warnings(self) -> None:
        """What keeps the autoscaler from its work, when it begins and when it ends."""
        warnings = self.given.scaled.problems if self.given.scaled else []
        for new in (each for each in warnings if each not in self.plan.warnings):
            self.story.tell("autoscaler:", new, "")
        for old in (each for each in self.plan.warnings if each not in warnings):
            self.story.tell("autoscaler: no longer so:", old, "")
        self.update(warnings=warnings)

    # ── the rollout ──────────────────────────────────────────────────────────────────────────

    def _obey_command(self) -> None:
        """What an operator wrote before the spec of the newest release is not about this one."""
        command, before = self.given.command, self.given.plan.releases
        if command is None or command.index == self.plan.command:
            return
        is_new = bool(before) and before[-1].number != self.plan.releases[-1].number
        if not before or (is_new and self.given.wish is not None and command.index < self.given.wish.index):
            self.update(command=command.index)
            return
        self.plan, sentence = commands.obey(self.plan, command, self.given.scene.now)
        self.story.tell(sentence, "", f"rollout@{command.index}")

    def _advance_rollout(self, seats: Sequence[Seat]) -> Blueprint:
        """Moves the rollout on; returns the blueprint of the release that the service should run from now on."""
        plan, now = self.plan, self.given.scene.now
        target, base = plan.releases[-1], releases.last_good(plan)
        blueprint = blueprint_of(plan.service, target)
        update = blueprint.spec.update
        tried = self.tried(target.hash)
        healthy = {seat.slot for seat in seats if seat.healthy(update.min_healthy, now, target.hash)}
        trying_since = [
            tried[str(seat.slot)].since if str(seat.slot) in tried else self._begun(seat, target)
            for seat in seats
            if seat.slot not in healthy and (str(seat.slot) in tried or seat.has(target.hash))
        ]
        canaries = rollout.canaries(plan.rollout, update, len(seats), base)
        served = self._served(seats, target.hash) if canaries else rollout.NOTHING
        watched_since = self.given.scene.watched_since
        seen = rollout.Progress(len(healthy), len(seats), trying_since, watched_since, canaries, served)
        state, why = rollout.advance(plan.rollout, update, seen, now)
        self._tell_of_canaries(state, seen)
        if why and base is not None and rollout.may_roll_back(update, target, base):
            release = rollout.rollback(target, base, now, f"release {target.number} failed")
            self.plan = releases.start(self.plan, release, now, f"release {target.number}: {why}; rolled back")
            self.story.tell(f"release {target.number} failed: {why}; rolling back to release {base.number}", "")
            return self._advance_rollout(seats)
        if why:
            state = rollout.fail(state, update, target, base, why, now)
            self.story.tell(state.message, "")
        elif state.state is RolloutState.IDLE:
            if plan.rollout.state is not RolloutState.IDLE:
                self.story.tell(f"release {target.number} is in force", "", target.cause)
            if target.rollback_of:  # why it came to this stays to be read
                state = msgspec.structs.replace(state, message=plan.rollout.message)
            self.plan = releases.mark_good(self.plan)
        self.update(rollout=state)
        if state.promoted and not plan.rollout.promoted:
            return self._advance_rollout(seats)
        deadline = rollout.next_deadline(state, update, seen)
        self.wake.extend([deadline] if deadline is not None else [])
        return blueprint

    def _begun(self, seat: Seat, target: Release) -> float:
        """Since when a slot that is not healthy is tried: from the start, however often it was ready for a moment.

        One that has been healthy since (of canaries it is known while none has been) has its time anew.
        """
        state, residents = self.plan.rollout, (*seat.live, *seat.suspect)
        is_handed = all(one.hash == target.hash for one in residents) or state.state is RolloutState.CANARY
        new = (one for one in residents if one.hash == target.hash)
        return min(one.since if state.healthy and is_handed else one.assignment.placed for one in new)

    def _served(self, seats: Sequence[Seat], hash: str) -> rollout.Served:
        """What the living replicas of a release have been sent lately."""
        known = self.given.scene.served
        parts = [known[one.id] for seat in seats for one in seat.live if one.hash == hash and one.id in known]
        return rollout.Served(sum(part.requests for part in parts), sum(part.failures for part in parts))

    def _tell_of_canaries(self, state: Rollout, seen: rollout.Progress) -> None:
        before, canaries = self.plan.rollout, f"release {state.release}: {_canaries(seen.canaries)}"
        if state.promoted and not before.promoted:
            self.story.tell(f"{canaries} healthy: promoted", "")
        elif seen.tried and before.healthy < seen.canaries:
            self.story.tell(f"{canaries} healthy: waits to be promoted", "")

    def _in_play(self, newest: Blueprint) -> list[Blueprint]:
        """The blueprints of all releases that run, or may be started."""
        numbers = {replica.assignment.release for replica in self.given.replicas}
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
        now, tried = self.given.scene.now, self.tried(target.hash)
        count = rollout.canaries(plan.rollout, self._newest.spec.update, len(seats), base)
        beside = count > 0 and manner.side_by_side
        if beside:
            inside = rollout.canary_slots(seats, plan.rollout, target, tried, count)
        else:
            inside = rollout.admitted(seats, plan.rollout, target, tried, manner, now, count or len(seats))
        numbered = {release.number: release for release in plan.releases}
        for seat in seats:
            old = rollout.old_replica(seat, target, base)
            stays = base if old is None else numbered.get(old.assignment.release, base)
            self._goal[seat.slot] = target if seat.slot in inside else stays
            if beside and seat.slot in inside:
                self._beside[seat.slot] = stays

    def _settle(self, seats: Sequence[Seat], manner: rollout.Manner, vacated: Mapping[Slot, str]) -> Moves:
        scene = self.given.scene
        in_play = (*self._goal.values(), *self._beside.values())
        tried = {hash: self.tried(hash) for hash in {release.hash for release in in_play}}

        def retry_at(slot: Slot, release: Release) -> float:
            return backoff.retry_at(tried[release.hash].get(str(slot)), scene.now)

        pending = self.given.plan.pending
        waiting = {one.slot for one in pending if not any(why.startswith(BACKS_OFF) for why in one.reasons)}
        moves = settle(seats, Rules(self._goal, self._beside, manner, retry_at, vacated, waiting, scene.now))
        moved = {replica.slot: replica.assignment for seat in seats for replica in seat.live
                 if replica.assignment.target}  # fmt: skip
        for slot, (release, cause) in moves.fill.items():
            self.ask(slot, release, cause, moved=moved.get(slot))
        for slot, why in moves.wait.items():
            self.wait(slot, self.explained(slot, why), vacated.get(slot, ""))
        for seat in seats:
            if seat.suspect and not seat.live:
                host = scene.hosts.by_name[seat.suspect[0].node]
                self.wait(seat.slot, scene.hosts.frozen or f"{host.name} {host.why}")
        self.wake.extend(moves.wake)
        return moves

    def _forget_old_failures(self, blueprint: Blueprint) -> None:
        """A slot's failures count until it has been well for long, has another goal, or is no more."""
        hashes = {release.number: release.hash for release in self.plan.releases}
        wanted = {(str(slot), release.hash) for kept in (self._goal, self._beside) for slot, release in kept.items()}
        same = {slot for slot, state in self.plan.slots.items() if (slot, hashes.get(state.release)) in wanted}
        self.keep_failures(blueprint.spec.restart, same)


def _canaries(count: int) -> str:
    return "its canary is" if count == 1 else f"its {count} canaries are"


def _belongs(host: Host, blueprint: Blueprint, buckets: Buckets) -> bool:
    """True for a node that should have a replica of a global service; a silent or paused one keeps what it has."""
    if host.condition is Condition.LOST or host.condition.draining:
        return False
    if host.condition is not Condition.ACTIVE:
        seat = buckets.seats.get(host.name)
        return seat is not None and bool(seat.live or seat.suspect)
    return not blueprint.refuses(host.attributes.get("runtime", "")) and all(
        constraint.allows(host.attributes) for constraint in blueprint.constraints
    )
