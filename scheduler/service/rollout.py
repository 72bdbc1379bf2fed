"""How a new release takes the slots over: a small state machine of (rollout, what is healthy, now).

    canary ──all canaries healthy, and promoted──► rolling ──all slots healthy──► idle

    canary, rolling
       │ no slot became healthy in time, or the canaries answer too many requests with an error
       ├─ on_failure: rollback ──► rolling, to a new release equal to the last good one (never a rollback of a rollback)
       ├─ on_failure: pause ─────► paused      (a new spec, or all slots healthy after all, ends it)
       ├─ on_failure: continue ──► rolling, with a message
       └─ nothing to go back to ─► failed      (goes on trying, with back-off)

A rollout does not touch replicas. It *admits* slots to the new release, a few at a time; a slot that is not admitted
stays with what it runs. What happens in an admitted slot is the same as in any other slot (see `slots.py`), but for
canaries: they run beside the old replica of their slot until they are promoted. Where two replicas cannot live side by
side (a static port, a volume, a singleton), canaries take the places of old ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

from mesh.model import Release, Rollout, RolloutState, Slot, SlotState
from mesh.scheduler.blueprint import Blueprint
from mesh.scheduler.classify import Replica, Seat, keep_first
from mesh.spec.service import Update
from mesh.units import format_duration, format_share, parse_share

UNDER_WAY = (RolloutState.ROLLING, RolloutState.CANARY)
"""States in which deadlines run."""

TRYING = (*UNDER_WAY, RolloutState.FAILED)
"""States in which slots are admitted: what failed goes on as well, in other slots when those that it tried are gone."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many replicas above, and how many available ones below the desired count a replacement may use."""

    surge: int
    unavailable: int

    @property
    def at_once(self) -> int:
        return self.surge + self.unavailable


def allowance(update: Update, desired: int, *, stop_first: bool) -> Allowance:
    """Shares of `desired`: surge rounds up, unavailable rounds down; never both zero."""
    surge = _count(update.max_surge, desired, up=True)
    unavailable = _count(update.max_unavailable, desired, up=False)
    if stop_first:
        return Allowance(0, max(unavailable, 1))
    return Allowance(surge, unavailable) if surge or unavailable else Allowance(1, 0)


@dataclass(frozen=True, slots=True)
class Manner:
    """How the replicas of one service may be replaced."""

    may: Allowance
    may_move: Allowance  # off a drained node, where a static port is in nobody's way
    immovable: bool  # its volumes are where they are
    side_by_side: bool  # two replicas of a slot may live at once
    nothing_to_lose: bool  # no release has been good yet: what is not ready makes way at once
    min_healthy: float


def manner(newest: Blueprint, in_play: Collection[Blueprint], desired: int, *, nothing_to_lose: bool) -> Manner:
    """The newest release sets the pace; what forbids two replicas side by side counts for any release in play."""
    update = newest.spec.update
    stop_first = any(one.stop_first for one in in_play)
    return Manner(
        may=allowance(update, desired, stop_first=stop_first),
        may_move=allowance(update, desired, stop_first=any(one.spec.singleton for one in in_play)),
        immovable=any(one.spec.volumes for one in in_play),
        side_by_side=not stop_first,
        nothing_to_lose=nothing_to_lose,
        min_healthy=update.min_healthy,
    )


def _count(value: int | str, desired: int, *, up: bool) -> int:
    if isinstance(value, int):
        return value
    exact = round(parse_share(value) * desired, 6)  # 7 % of 100 is 7, not 7.000000000000001
    return math.ceil(exact) if up else math.floor(exact)


def begin(release: Release, now: float, message: str = "") -> Rollout:
    """A release that comes back needs no canaries: it has been tried."""
    return Rollout(
        state=RolloutState.ROLLING,
        release=release.number,
        since=now,
        progress=now,
        message=message,
        promoted=bool(release.rollback_of),
    )


def canaries(rollout: Rollout, update: Update, desired: int, base: Release | None) -> int:
    """How many replicas must be healthy before the rollout goes on; 0: it needs none (any more)."""
    if rollout.promoted or rollout.state is RolloutState.IDLE or base is None:
        return 0
    return min(_count(update.canary, desired, up=True), desired)


def resumed(rollout: Rollout, now: float, *, promoted: bool = False) -> Rollout:
    """The rollout as it goes on, with all of its time before it."""
    return msgspec.structs.replace(
        rollout,
        state=RolloutState.ROLLING,
        since=now,
        progress=now,
        message="",
        promoted=promoted or rollout.promoted,
    )


class Served(NamedTuple):
    """What the proxies have sent to replicas lately, and how much of that was answered with an error."""

    requests: float = 0.0
    failures: float = 0.0

    @property
    def ratio(self) -> float:
        return 1 - self.failures / self.requests


NOTHING = Served()


@dataclass(frozen=True, slots=True)
class Progress:
    """What a rollout is judged by; `trying_since`: for each admitted slot that is not healthy, since when it is tried.

    `canaries`: of which it waits for so many, `served`: what they have answered. `watched_since`: nothing from before
    this leader began to watch counts against it.
    """

    healthy: int
    desired: int
    trying_since: Collection[float]
    watched_since: float
    canaries: int = 0
    served: Served = NOTHING

    @property
    def tried(self) -> bool:
        """All canaries are healthy."""
        return 0 < self.canaries <= self.healthy


def advance(rollout: Rollout, update: Update, seen: Progress, now: float) -> tuple[Rollout, str]:
    """The rollout as it stands now, and why it has failed (empty if it has not)."""
    if rollout.state is RolloutState.IDLE:
        return rollout, ""
    if rollout.state is RolloutState.FAILED and seen.healthy > rollout.healthy:
        rollout = resumed(rollout, now)  # what it went on trying has come to life
    if rollout.state in UNDER_WAY:
        state = RolloutState.CANARY if seen.canaries else RolloutState.ROLLING
        rollout = msgspec.structs.replace(rollout, state=state)
    if rollout.state is RolloutState.CANARY and (why := _unwell(rollout, update, seen)):
        return rollout, why
    if rollout.state is RolloutState.CANARY and seen.tried and (update.auto_promote or rollout.promote):
        return advance(resumed(rollout, now, promoted=True), update, replace(seen, canaries=0), now)
    if seen.healthy >= seen.desired and not seen.canaries:
        done = Rollout(
            state=RolloutState.IDLE,
            release=rollout.release,
            since=now,
            healthy=seen.desired,
            progress=now,
            promoted=rollout.promoted,
        )
        return done, ""
    if seen.healthy > rollout.healthy:
        rollout = msgspec.structs.replace(rollout, healthy=seen.healthy, progress=now)
    why = next((why for at, why in _deadlines(rollout, update, seen) if now >= at), "")
    return msgspec.structs.replace(rollout, healthy=seen.healthy) if why else rollout, why


def _unwell(rollout: Rollout, update: Update, seen: Progress) -> str:
    """Why the canaries are no good, by what they answer; empty if they are, or too little is known."""
    served = seen.served
    if served.requests < update.min_requests or served.ratio >= update.success_ratio or _goes_on(rollout, update):
        return ""
    got, wanted = format_share(math.floor(1000 * served.ratio) / 1000), format_share(update.success_ratio)
    return (
        f"its canaries answered {got} of {served.requests:.0f} requests well, {wanted} should be (update.success_ratio)"
    )


def _goes_on(rollout: Rollout, update: Update) -> bool:
    """It has failed before, and goes on all the same."""
    return bool(rollout.message) and update.on_failure == "continue"


def next_deadline(rollout: Rollout, update: Update, seen: Progress) -> float | None:
    """When `advance` must be asked again even if nothing happens."""
    return min((at for at, _ in _deadlines(rollout, update, seen)), default=None)


def _deadlines(rollout: Rollout, update: Update, seen: Progress) -> list[tuple[float, str]]:
    """When it fails unless something happens before, and the sentence for it."""
    if rollout.state not in UNDER_WAY or _goes_on(rollout, update):
        return []
    begun = max(rollout.since, seen.watched_since)
    healthy, progress = update.healthy_deadline, update.progress_deadline
    found = [(max(since, begun) + healthy, f"a replica was not healthy within {format_duration(healthy)}")
             for since in seen.trying_since]  # fmt: skip
    if not 0 < seen.canaries <= rollout.healthy:  # canaries may wait for long until they are promoted
        why = f"no replica became healthy within {format_duration(progress)}"
        found.append((max(rollout.progress, begun) + progress, why))
    return found


def fail(rollout: Rollout, update: Update, target: Release, base: Release | None, why: str, now: float) -> Rollout:
    """What becomes of a rollout that failed and is not rolled back."""
    if target.rollback_of:
        state, what = RolloutState.FAILED, "this was a rollback already; still trying"
    elif base is None or base.hash == target.hash:
        state, what = RolloutState.FAILED, "there is no good release to go back to; still trying"
    elif update.on_failure == "pause":
        state, what = RolloutState.PAUSED, "paused, as on_failure says"
    else:
        state, what = rollout.state, "going on, as on_failure says"
    since = rollout.since if state is rollout.state else now
    return msgspec.structs.replace(rollout, state=state, since=since, message=f"release {target.number}: {why}; {what}")


def rollback(target: Release, base: Release, now: float, cause: str) -> Release:
    """The new release that puts `base` back in force."""
    return Release(
        number=target.number + 1,
        hash=base.hash,
        spec=base.spec,
        created=now,
        cause=cause,
        rollback_of=target.number,
    )


def may_roll_back(update: Update, target: Release, base: Release | None) -> bool:
    return update.on_failure == "rollback" and base is not None and base.hash != target.hash and not target.rollback_of


def admitted(
    seats: Sequence[Seat],
    rollout: Rollout,
    target: Release,
    tried: Mapping[str, SlotState],
    manner: Manner,
    now: float,
    most: int,
) -> set[Slot]:
    """The slots that belong to the new release: those it has begun, and as many more as may move at once.

    `tried`: slots that failed on the new release; `most`: so many altogether. Slots without a replica come first, then
    those not ready.
    """
    inside = {seat.slot for seat in seats if seat.has(target.hash) or str(seat.slot) in tried}
    if rollout.state not in TRYING:
        return inside
    moving = sum(1 for seat in seats if seat.slot in inside and not seat.healthy(manner.min_healthy, now, target.hash))
    waiting = [seat for seat in seats if seat.slot not in inside]
    waiting.sort(key=lambda seat: (bool(seat.live or seat.suspect), seat.ready))
    more = min(manner.may.at_once - moving, most - len(inside))
    return inside | {seat.slot for seat in waiting[: max(0, more)]}


def canary_slots(
    seats: Sequence[Seat], rollout: Rollout, target: Release, tried: Mapping[str, SlotState], count: int
) -> set[Slot]:
    """Where canaries run beside old replicas: where they have begun, then where the old one is ready.

    Not where the old one must leave its node: its successor would be a third one.
    """
    begun = {seat.slot for seat in seats if seat.has(target.hash) or str(seat.slot) in tried}
    fit = [seat for seat in seats if (seat.slot in begun or rollout.state in TRYING)
           and not any(one.must_move for one in seat.live)]  # fmt: skip
    fit.sort(key=lambda seat: (seat.slot not in begun, not seat.ready))
    return {seat.slot for seat in fit[:count]}


def old_replica(seat: Seat, target: Release, base: Release) -> Replica | None:
    """Who sat in the slot before the new release came: of the last good release, or else the best of what is there."""
    old = (one for one in (*seat.live, *seat.suspect) if one.hash != target.hash)
    return min(old, key=lambda one: (one.hash != base.hash, *keep_first(one)), default=None)
