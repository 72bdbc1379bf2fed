"""What `mesh rollout status` shows, and how the other `mesh rollout` commands reach the scheduler."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Literal

import msgspec

from mesh import console
from mesh.cli import status
from mesh.cli.base import Failed, Invalid, Mesh
from mesh.model import ReplicaState, RolloutCommand, RolloutState, ServicePlan
from mesh.scheduler.releases import last_good
from mesh.scheduler.service.commands import waiting_canaries, why_not
from mesh.store import Op
from mesh.view import View, encode_document

Action = Literal["pause", "resume", "promote", "abort", "undo"]

_DONE = {
    "pause": "release {} is paused",
    "resume": "release {} goes on",
    "promote": "release {} takes over as soon as its canaries are healthy",
    "abort": "release {} is taken back",
    "undo": "release {} is taken back",
}


class RolloutStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far the newest release of a service has come. Its struct is the shape that `--json` prints."""

    service: str
    state: str  # idle | rolling | canary | paused | failed; waiting: the scheduler has not seen the service
    release: int  # the newest
    good: int  # the last one that was healthy everywhere: what a rollback goes back to; 0: none
    since: float  # when the state began
    desired: int
    ready: int  # replicas of any release
    updated: int  # slots with a ready replica of the newest release
    canaries: int  # that must be healthy before it goes on
    promotable: bool  # all of them are, and it waits for `mesh rollout promote`
    ready_by_release: dict[str, int]
    message: str = ""
    pending: list[status.PendingStatus] = []

    @property
    def text(self) -> str:
        """One sentence."""
        if not self.release:
            return "there is no release yet"
        if self.state == RolloutState.IDLE:
            return f"release {self.release} is in force"
        if self.state == RolloutState.CANARY and self.promotable:
            waits = f"waits for mesh rollout promote {self.service}"
            return f"release {self.release}: {self.canaries} of {self.canaries} canaries healthy; {waits}"
        if self.state == RolloutState.CANARY:
            return f"release {self.release}: {self.updated} of {self.canaries} canaries ready"
        return f"release {self.release}: {self.updated} of {self.desired} ready"


def rollout_status(view: View, name: str) -> RolloutStatus:
    found = status.service_status(view, name)
    plan = view.plans.get(name) or ServicePlan(service=name)
    hashes = {release.number: release.hash for release in plan.releases}
    ready = [one for one in found.replicas if one.state == ReplicaState.READY]
    newest = hashes.get(found.release)
    good = last_good(plan)
    canaries = waiting_canaries(plan) if plan.releases else 0
    return RolloutStatus(
        service=name,
        state=found.rollout,
        release=found.release,
        good=good.number if good else 0,
        since=plan.rollout.since,
        desired=found.desired,
        ready=found.ready,
        updated=len({one.slot for one in ready if newest and hashes.get(one.release) == newest}),
        canaries=canaries,
        promotable=canaries > 0 and plan.rollout.healthy >= canaries,
        ready_by_release={
            str(release): count for release, count in sorted(Counter(one.release for one in ready).items())
        },
        message="; ".join(filter(None, [plan.rollout.message, *status.refusals(view, name)])),
        pending=found.pending,
    )


def show(found: RolloutStatus) -> None:
    age = f" for {console.age(time.time() - found.since)}" if found.since else ""
    console.say(f"{found.service}: {found.state}{age}: {found.text}")
    if found.message:
        console.say(f"  {found.message}")
    for release, count in found.ready_by_release.items():
        console.say(f"  release {release}: {count} ready")
    for pending in found.pending:
        console.say(f"  slot {pending.slot} waits: {'; '.join(pending.reasons)}")


async def tell(
    mesh: Mesh, service: str, action: Action, *, to: int = 0, longest: float = 0.0, as_json: bool = False
) -> None:
    """Writes what is wanted of a rollout, and with `longest` (seconds) follows what becomes of it.

    Raises:
        Failed: if it makes no sense for the service as it is, or the rollout failed, or is not done by then.
        Invalid: for a kind of service that has no rollouts.
    """
    view = await mesh.view()
    mesh.known_services(view, [service])
    plan = view.plans.get(service) or ServicePlan(service=service)
    if plan.kind not in ("service", "global"):
        raise Invalid(f"{service}: only kinds service and global are rolled out, it is of kind {plan.kind}")
    newest = plan.releases[-1].number if plan.releases else 0
    wish = RolloutCommand(action=action, release=newest, to=to, at=time.time())
    if why := why_not(plan, wish):
        raise Failed(f"{service}: {why}")
    result = await mesh.store.txn([Op("set", mesh.keys.rollout(service), encode_document(wish))])
    if not result.ok:
        raise Failed(f"the store refused: {'; '.join(result.errors)}")
    if as_json:
        console.print_json({"service": service, "action": action, "release": newest, **({"to": to} if to else {})})
    else:
        console.say(f"{service}: {_DONE[action].format(newest)}")
    mesh.warn_without_leader()
    if longest:
        aim = newest + 1 if action in ("abort", "undo") else newest
        await _follow(mesh, service, aim, result.entries[0].modify_index, longest)


async def _follow(mesh: Mesh, service: str, aim: int, index: int, longest: float) -> None:
    """Prints how far the rollout of release `aim` has come until it has ended.

    Raises:
        Failed: if it fails, another release takes its place, or it is not done after `longest` seconds.
    """
    said = ""
    try:
        async with asyncio.timeout(longest):
            async for view in mesh.views():
                plan = view.plans.get(service)
                if plan is None or plan.command < index:
                    continue
                found = rollout_status(view, service)
                if found.text != said:
                    said = found.text
                    console.note(f"{service}: {said}")
                if found.release > aim:
                    raise Failed(f"{service}: {found.message or f'release {found.release} took its place'}")
                if found.state in (RolloutState.PAUSED, RolloutState.FAILED):
                    raise Failed(f"{service}: rollout {found.state}: {found.message}")
                if found.state == RolloutState.IDLE and found.ready == found.updated >= found.desired:
                    return
    except TimeoutError:
        raise Failed(f"{service}: {said or 'the scheduler has not looked at it'}",
                     f"not done after {longest:g} s; it goes on: mesh rollout status {service}") from None  # fmt: skip
