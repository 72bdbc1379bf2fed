"""What happens in a service's slots: each is filled, kept, or handed from one replica to the next.

A slot has a *goal*: the release it should run. In a settled slot one replica of that release lives on a node that may
keep it. A replica of another release, on a node that is drained, or marked to be moved, is outdated: start-first means
that its successor must be healthy before it is told to stop. Where a canary runs *beside* an old replica, neither makes
way for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from mesh.model import Release, Slot
from mesh.scheduler.classify import Replica, Seat, keep_first
from mesh.scheduler.service.rollout import Manner

BACKS_OFF = "backs off after its last failure"
"""Why a slot is pending that waits for its next attempt: how the sentence begins."""


@dataclass(slots=True)
class Moves:
    """What to do: whom to stop (id → cause), which slots to fill (slot → with which release, and the cause), which must
    wait (slot → why)."""

    stop: dict[str, str] = field(default_factory=dict)
    fill: dict[Slot, tuple[Release, str]] = field(default_factory=dict)
    wait: dict[Slot, str] = field(default_factory=dict)
    wake: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the moves of one service must respect."""

    goal: Mapping[Slot, Release]
    beside: Mapping[Slot, Release]  # of slots whose goal is tried by a canary: what the old replica runs
    manner: Manner
    retry_at: Callable[[Slot, Release], float]  # for slots that failed on that release
    vacated_by: Mapping[Slot, str]  # why a slot has just become empty: `web-1-6f3a failed`
    waiting: Collection[Slot]  # slots whose new replica found no place at the last look
    now: float


def settle(seats: Sequence[Seat], rules: Rules) -> Moves:
    """The moves for the slots that the service should have."""
    manner, now = rules.manner, rules.now
    moves = Moves()
    surging = 0
    replaced: list[str] = []
    replaceable: list[tuple[Seat, Replica]] = []
    for seat in seats:
        ripe = [replica.since + manner.min_healthy for replica in seat.live if replica.ready]
        moves.wake.extend(at for at in ripe if at > now)
        if seat.slot in rules.beside:
            _keep_both(seat, rules, moves)
            continue
        goal = rules.goal[seat.slot].hash
        fresh = sorted((replica for replica in seat.live if replica.fits(goal)), key=keep_first)
        outdated = sorted((replica for replica in seat.live if not replica.fits(goal)), key=keep_first)
        moves.stop.update((extra.id, "its slot is taken") for extra in (*fresh[1:], *outdated[1:]))
        if fresh and (outdated or seat.suspect):
            if fresh[0].healthy(manner.min_healthy, now):
                moves.stop.update((old.id, f"replaced by {fresh[0].id}") for old in (*outdated[:1], *seat.suspect))
                replaced.extend(old.id for old in outdated[:1] if old.ready and old.hash != goal)
            else:
                surging += 1
        elif outdated and not seat.suspect:
            replaceable.append((seat, outdated[0]))
        elif not fresh and not seat.suspect:
            _fill(seat, rules, moves)
    for id in replaced[: _stand_ins(seats, rules)] if replaced else ():
        del moves.stop[id]
        surging += 1
    available = sum(1 for seat in seats if seat.healthy(manner.min_healthy, now))
    for seat, old in sorted(replaceable, key=lambda pair: pair[1].ready):
        goes_away = old.hash == rules.goal[seat.slot].hash
        may = manner.may_move if goes_away else manner.may
        cause = _why_away(old) if goes_away else rules.goal[seat.slot].cause
        serves_nobody = manner.nothing_to_lose and not old.ready
        starves = seat.slot in rules.waiting  # no node has room beside the old one
        is_spare = available > len(seats) - may.unavailable or (not old.ready and may.unavailable > 0)
        if goes_away and manner.immovable:
            moves.wait[seat.slot] = f"its volumes are on {old.node}, so it cannot move"
        elif surging < may.surge and not serves_nobody and not (is_spare and not goes_away and starves):
            surging += 1
            _begin(seat, rules.goal[seat.slot], cause, rules, moves)
        elif serves_nobody or is_spare:
            available -= old.healthy(manner.min_healthy, now)
            moves.stop[old.id] = cause
            if may.surge:
                _begin(seat, rules.goal[seat.slot], cause, rules, moves)
            else:
                moves.wait[seat.slot] = f"waits until {old.id} has stopped"
    return moves


def _stand_ins(seats: Sequence[Seat], rules: Rules) -> int:
    """How many replaced replicas stay for now, in the stead of slots whose replica is on its way.

    So that a crash in mid-rollout takes away no more than `max_unavailable` either. Where a slot has no place or no
    successor yet, nobody stays: the room may be what it waits for.
    """
    unready = [seat for seat in seats if not seat.healthy(rules.manner.min_healthy, rules.now)]
    awaited = [seat for seat in unready if seat.slot not in rules.waiting
               and (not seat.live or seat.has(rules.goal[seat.slot].hash))]  # fmt: skip
    return max(0, min(len(awaited), len(unready) - rules.manner.may.unavailable))


def _why_away(old: Replica) -> str:
    return f"drain of {old.node}" if old.condition.draining else f"rebalanced to {old.assignment.target}"


def _keep_both(seat: Seat, rules: Rules, moves: Moves) -> None:
    """A canary and the old replica of its slot; the old one is replaced first if both are missing."""
    old, new = rules.beside[seat.slot], rules.goal[seat.slot]
    for release, cause in ((old, rules.vacated_by.get(seat.slot) or old.cause), (new, new.cause)):
        held = sorted((one for one in (*seat.live, *seat.suspect) if one.hash == release.hash), key=keep_first)
        moves.stop.update((extra.id, "its slot is taken") for extra in held[1:])
        if not held and seat.slot not in moves.fill:
            _begin(seat, release, cause, rules, moves)
    others = (one for one in (*seat.live, *seat.suspect) if one.hash not in (old.hash, new.hash))
    moves.stop.update((other.id, new.cause) for other in others)


def _fill(seat: Seat, rules: Rules, moves: Moves) -> None:
    """An empty slot; without surge, not before the last one in it has ended."""
    if seat.stopping and not rules.manner.may.surge:
        moves.wait[seat.slot] = f"waits until {seat.stopping[0].id} has stopped"
    else:
        goal = rules.goal[seat.slot]
        _begin(seat, goal, rules.vacated_by.get(seat.slot) or goal.cause, rules, moves)


def _begin(seat: Seat, release: Release, cause: str, rules: Rules, moves: Moves) -> None:
    """Asks for a replica, unless the slot still backs off."""
    retry = rules.retry_at(seat.slot, release)
    if retry > rules.now:
        moves.wake.append(retry)
        moves.wait[seat.slot] = BACKS_OFF
    else:
        moves.fill[seat.slot] = (release, cause)


def retire(surplus: Sequence[Seat], kept: Sequence[Seat], cause: str, *, all_at_once: bool) -> Moves:
    """The moves for the slots that the service should no longer have.

    Unless all must go at once, surplus replicas stay while those that remain are not ready in their stead.
    """
    missing = 0 if all_at_once else sum(1 for seat in kept if not seat.ready)
    moves = Moves()
    for seat in surplus:
        if missing and seat.ready:
            missing -= 1
            continue
        moves.stop.update((replica.id, cause) for replica in (*seat.live, *seat.suspect, *seat.stopping))
    return moves
