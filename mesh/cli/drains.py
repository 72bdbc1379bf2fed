"""How far the drain of a node has come, and why each replica that is left is still there: a digest of a View."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import msgspec

from mesh import console
from mesh.cli.base import Failed, Mesh
from mesh.model import Assignment, NodeSettings, ReplicaState, Slot, Want
from mesh.units import format_duration
from mesh.view import View

_LISTED = 20
"""Replicas that are named one by one."""

_ENDS = ("job", "cron")


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that a drained node still has."""

    replica: str
    service: str
    slot: Slot
    state: str
    why: str


class Drain(msgspec.Struct, frozen=True, kw_only=True):
    """A drained node. Its struct is the shape that `--json` prints."""

    node: str
    deadline: float  # when what is left is stopped; 0: never
    left: list[Left]

    def text(self, now: float) -> str:
        """`drain (3 left, 12m)`, `drain (empty)`."""
        if not self.left:
            return "drain (empty)"
        rest = f", {console.age(self.deadline - now)}" if self.deadline else ""
        return f"drain ({len(self.left)} left{rest})"


def drain_of(view: View, node: str) -> Drain | None:
    """None for a node that is not drained."""
    settings = view.settings.get(node, NodeSettings())
    if settings.availability != "drain":
        return None
    return Drain(node=node, deadline=settings.deadline, left=list(_left(view, node)))


def _left(view: View, node: str) -> Iterator[Left]:
    seen, plan = view.nodes.get(node), view.node_plans.get(node)
    if plan is not None and plan.lost:
        return
    planned = {one.id: one for one in plan.replicas} if plan else {}
    reports = {one.id: one for one in seen.report.replicas} if seen else {}
    living = {id: report.state for id, report in reports.items() if not report.state.ended}
    living |= {id: ReplicaState.ASSIGNED for id, one in planned.items() if id not in reports and one.want is Want.RUN}
    for id in sorted(living):
        told = planned.get(id)
        service = told.service if told else reports[id].service
        slot = told.slot if told else reports[id].slot
        yield Left(replica=id, service=service, slot=slot, state=living[id], why=_why(view, node, told))


def _why(view: View, node: str, told: Assignment | None) -> str:
    if told is None or told.want is not Want.RUN:
        return "is stopping"
    if told.service not in view.plans:
        return "the scheduler does not know its service"
    plan = view.plans[told.service]
    if plan.kind == "global":
        return "of kind global: leaves when all else has left"
    if plan.kind in _ENDS:
        return f"of kind {plan.kind}: may run to its end"
    if successor := _successor(view, node, told):
        return successor
    if waits := next((pending for pending in plan.pending if pending.slot == told.slot), None):
        return "; ".join(waits.reasons)
    return "waits for its turn (update.max_surge, update.max_unavailable)"


def _successor(view: View, node: str, told: Assignment) -> str:
    """Who is to take its place, and how far that one is."""
    for other, plan in view.node_plans.items():
        for one in plan.replicas:
            if other != node and (one.service, one.slot, one.want) == (told.service, told.slot, Want.RUN):
                reports = view.nodes[other].report.replicas if other in view.nodes else ()
                state = next((report.state for report in reports if report.id == one.id), ReplicaState.ASSIGNED)
                if state is ReplicaState.READY:
                    return f"until {one.id} on {other} has been ready for update.min_healthy"
                return f"until {one.id} on {other} is ready; it is {state}"
    return ""


def show(drain: Drain, now: float) -> None:
    """What is left, one line each."""
    if not drain.left:
        console.say(f"{drain.node}: nothing is left on it")
        return
    rest = f"; in {format_duration(max(0, round(drain.deadline - now)))} it is stopped" if drain.deadline else ""
    console.say(f"{drain.node}: {len(drain.left)} left{rest}")
    for one in drain.left[:_LISTED]:
        console.say(f"  {one.replica}: {one.why}")
    if len(drain.left) > _LISTED:
        console.say(f"  and {len(drain.left) - _LISTED} more: mesh nodes --json")


async def follow(mesh: Mesh, nodes: Sequence[str], longest: float) -> None:
    """Prints how far the drains have come until nothing is left on any of the nodes.

    Raises:
        Failed: if a drain was taken back, or something is left after `longest` seconds.
    """
    said: dict[str, str] = {}
    drains: list[Drain] = []
    try:
        async with asyncio.timeout(longest):
            async for view in mesh.views():
                drains = [drain for node in nodes if (drain := drain_of(view, node)) is not None]
                if taken_back := set(nodes) - {drain.node for drain in drains}:
                    raise Failed(*(f"{node}: its drain was taken back" for node in sorted(taken_back)))
                for drain in drains:
                    _tell(drain, said)
                if not any(drain.left for drain in drains):
                    return
    except TimeoutError:
        stuck = [f"{drain.node}: {one.replica}: {one.why}" for drain in drains for one in drain.left[:_LISTED]]
        again = f"mesh drain {' '.join(nodes)} --wait"
        raise Failed(*stuck, f"not done after {longest:g} s; it goes on: {again}") from None


def _tell(drain: Drain, said: dict[str, str]) -> None:
    """What is new since the last time."""
    count = f"{len(drain.left)} left" if drain.left else "nothing is left"
    if said.get(drain.node) != count:
        said[drain.node] = count
        console.note(f"{drain.node}: {count}")
    for one in drain.left[:_LISTED]:
        if said.get(one.replica) != one.why:
            said[one.replica] = one.why
            console.note(f"  {one.replica}: {one.why}")
