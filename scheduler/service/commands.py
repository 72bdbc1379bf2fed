"""What operators may want of a rollout: pause, resume, promote, abort, undo. Each write is looked at once.

A command is meant for one release: one that comes too late does nothing, and the service's story says so.
"""

from __future__ import annotations

import msgspec

from mesh.model import Release, RolloutCommand, RolloutState, ServicePlan
from mesh.scheduler import releases
from mesh.scheduler.blueprint import blueprint_of
from mesh.scheduler.service import rollout
from mesh.view import Command


def obey(plan: ServicePlan, command: Command, now: float) -> tuple[ServicePlan, str]:
    """The plan once the command has been looked at, and the sentence for its story."""
    wish = command.wish
    plan = msgspec.structs.replace(plan, command=command.index)
    if why := why_not(plan, wish):
        return plan, f"{wish.action} ignored: {why}"
    newest, state = plan.releases[-1], plan.rollout
    match wish.action:
        case "pause":
            message = f"release {newest.number} was paused by an operator"
            state = msgspec.structs.replace(state, state=RolloutState.PAUSED, since=now, message=message)
            return msgspec.structs.replace(plan, rollout=state), f"release {newest.number}: paused"
        case "resume":
            return msgspec.structs.replace(plan, rollout=rollout.resumed(state, now)), (
                f"release {newest.number}: resumed"
            )
        case "promote":
            state = msgspec.structs.replace(rollout.resumed(state, now), promote=True)
            return msgspec.structs.replace(plan, rollout=state), f"release {newest.number}: to be promoted"
    again = _again(plan, wish)
    assert again is not None  # or it would have been refused
    cause = "aborted" if wish.action == "abort" else "undone"
    back = rollout.rollback(newest, again, now, f"release {newest.number} was {cause} by an operator")
    return releases.start(plan, back, now, back.cause), (
        f"release {newest.number} {cause}: release {back.number} is release {again.number} again"
    )


def why_not(plan: ServicePlan, wish: RolloutCommand) -> str:
    """Why a command makes no sense for the service as it is; empty if it does."""
    if not plan.releases:
        return "there is no release yet"
    newest, state = plan.releases[-1], plan.rollout.state
    if wish.release not in (0, newest.number):
        return f"it is meant for release {wish.release}, and release {newest.number} is the newest"
    match wish.action:
        case "pause" if state not in rollout.UNDER_WAY:
            return f"there is nothing to pause: the rollout of release {newest.number} is {state}"
        case "resume" if state not in (RolloutState.PAUSED, RolloutState.FAILED):
            return f"there is nothing to resume: the rollout of release {newest.number} is {state}"
        case "promote" if not waiting_canaries(plan):
            return f"there is nothing to promote: release {newest.number} has no canaries that wait"
        case "abort" if state is RolloutState.IDLE:
            return f"there is nothing to abort: release {newest.number} is in force (undo takes it back)"
        case "abort" if newest.rollback_of:
            return f"release {newest.number} is a rollback itself (undo takes it back)"
        case "abort" | "undo":
            return _why_none(plan, wish)
    return ""


def waiting_canaries(plan: ServicePlan) -> int:
    """How many canaries the newest release must have healthy until it may be promoted; 0: it needs none (any more)."""
    update = blueprint_of(plan.service, plan.releases[-1]).spec.update
    return rollout.canaries(plan.rollout, update, plan.desired, releases.last_good(plan))


def _again(plan: ServicePlan, wish: RolloutCommand) -> Release | None:
    """The release that comes back."""
    if wish.to:
        return next((release for release in plan.releases if release.number == wish.to), None)
    hash = plan.releases[-1].hash
    return next((release for release in reversed(plan.releases) if release.good and release.hash != hash), None)


def _why_none(plan: ServicePlan, wish: RolloutCommand) -> str:
    again, newest = _again(plan, wish), plan.releases[-1]
    if again is None and wish.to:
        return (
            f"there is no release {wish.to} (any more): {', '.join(str(one.number) for one in plan.releases)} are kept"
        )
    if again is None:
        return "there is no other good release to go back to"
    if again.hash == newest.hash:
        return f"release {newest.number}, the newest, equals release {again.number}"
    return ""
