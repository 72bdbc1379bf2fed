"""Which nodes may be given work, and which are gone: suspected at once, given up after a confirmation.

The leader's clock counts. What it remembers between two looks is a `Memory`; a new leader begins with an empty one,
so it watches a silent node for the whole grace itself before it replaces anything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from mesh.keys import Keys
from mesh.model import Capacity, NodePlan, NodeReport, NodeSettings, ReplicaReport, ReplicaState
from mesh.scheduler.sentences import listed
from mesh.units import MAX_CPU, MAX_MEMORY, format_duration
from mesh.view import NodeView, View

if TYPE_CHECKING:
    from mesh.scheduler.look import Look

LOST_AFTER = 5.0
"""Seconds from the end of a node's session, which itself takes twice its TTL, until its replicas are replaced."""

NO_ROOM = Capacity()
NO_SETTINGS = NodeSettings()

MAX_COUNT = 10**9
"""Of any other resource."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A replica is ready, or is not, since then."""

    ready: bool
    since: float


@dataclass(frozen=True, slots=True)
class Memory:
    """What a leader has seen with its own eyes: since when nodes are gone, and replicas ready or not."""

    since: float | None = None  # when it began to look; None: it has not
    braked: bool = False  # more than half of the nodes were gone at the last look
    calm_since: float = 0.0  # since when they are not
    gone: Mapping[str, float] = field(default_factory=dict)
    sightings: Mapping[str, Sighting] = field(default_factory=dict)
    hosts: Hosts | None = None
    rebalanced: float = 0.0  # when what runs was last looked at for better places
    look: Look | None = None  # what was decided last; it spares work and changes no decision


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a node's report says, beside its plan: `strays` run without being planned, `fault` keeps the node closed."""

    seen: NodeView
    plan: NodePlan | None
    standing: Mapping[str, Standing]
    strays: Sequence[str]
    fault: str


class Condition(StrEnum):
    ACTIVE = "active"
    PAUSED = "paused"  # keeps what it runs, gets nothing new
    DRAINING = "draining"  # what it runs moves away
    GONE = "gone"  # silent: suspected, not yet given up
    LOST = "lost"  # given up: what it ran is replaced


@dataclass(frozen=True, slots=True)
class Host:
    """A node as the scheduler sees it."""

    name: str
    condition: Condition
    reported: bool = False  # its agent has said something of it
    why: str = ""  # it gets nothing new: a sentence for the operator
    room: Capacity = NO_ROOM
    """What is there for replicas: the capacity without what the node keeps for itself."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """What constraints may name: facts (`cpu` in cores, `memory` in bytes), and every label."""
    facts: tuple[object, ...] = ()
    """All that it was made of."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """All nodes, by name; `frozen` says why nothing is replaced, if so; `give_up_at`: when the next is given up."""

    by_name: Mapping[str, Host]
    frozen: str
    give_up_at: float | None


def remember(view: View, memory: Memory, now: float) -> Memory:
    """What has been seen by now."""
    gone = {node: memory.gone.get(node, now)
            for node in view.nodes.keys() | view.node_plans.keys()
            if node not in view.nodes or not view.nodes[node].held}  # fmt: skip
    sightings = {
        name: _sighting(seen, view.node_plans.get(name), memory.sightings.get(name), now)
        for name, seen in view.nodes.items()
    }
    braked = bool(_brake(view, _suspects(view, gone)))
    return Memory(
        since=now if memory.since is None else memory.since,
        braked=braked,
        calm_since=now if braked or memory.braked else memory.calm_since,
        gone=gone,
        sightings=sightings,
        hosts=memory.hosts,
        rebalanced=memory.rebalanced,
        look=memory.look,
    )


def _sighting(seen: NodeView, plan: NodePlan | None, before: Sighting | None, now: float) -> Sighting:
    if before is not None and before.seen is seen and before.plan is plan:
        return before
    known = before.standing if before else {}
    placed = {one.id: one.placed for one in plan.replicas} if plan else {}
    standing = {
        replica.id: _standing(replica, known.get(replica.id), placed.get(replica.id, 0.0), now)
        for replica in seen.report.replicas
    }
    strays = [replica.id for replica in seen.report.replicas if not replica.state.ended and replica.id not in placed]
    return Sighting(seen, plan, standing, strays, _nonsense(seen.report) or _stopping(strays))


def _standing(replica: ReplicaReport, before: Standing | None, placed: float, now: float) -> Standing:
    """Changes that we saw count by our clock; else its agent is believed, within reason: its clock may be wrong."""
    ready = replica.state is ReplicaState.READY
    if before is None:
        return Standing(ready, min(max(replica.since, placed), now))
    return before if before.ready == ready else Standing(ready, now)


def survey(view: View, memory: Memory, now: float, lost_after: float, keys: Keys) -> Hosts:
    """The condition of every node.

    If more than half of the nodes vanish together, none of them is given up: the store, or the way to it, is the
    likelier culprit; and where no node is left, giving up would stop on its return what nobody had replaced.
    When enough of them are back, the others have the whole grace again.
    """
    suspects = _suspects(view, memory.gone)
    prefix = keys.observed_nodes
    unreadable = {key.removeprefix(prefix) for key in view.unreadable if key.startswith(prefix)}
    frozen = _brake(view, suspects)
    due = {
        node: max(since, memory.calm_since) + lost_after
        for node, since in suspects.items()
        if node not in unreadable and not frozen
    }
    before = memory.hosts
    hosts: dict[str, Host] = {}
    for name in sorted(view.nodes.keys() | view.node_plans.keys() | unreadable):
        seen = view.nodes.get(name)
        settings = view.settings.get(name, NO_SETTINGS)
        report = seen.report if seen else None
        if name in unreadable and seen is None:
            condition, why = Condition.GONE, "its report cannot be read by this version"
        elif seen is not None and seen.held:
            condition, why = _availability(settings)
            why = why or memory.sightings[name].fault
        elif name not in suspects or (name in due and now >= due[name]):
            condition, why = Condition.LOST, "does not answer"
        else:
            condition = Condition.GONE
            why = "does not answer" + ("" if frozen else f", is given up after {format_duration(lost_after)}")
        hosts[name] = _host(name, condition, report, why, settings, before.by_name.get(name) if before else None)
    give_up_at = min((at for at in due.values() if at > now), default=None)
    if before is not None and (before.frozen, before.give_up_at) == (frozen, give_up_at) and _same(before, hosts):
        return before
    return Hosts(hosts, frozen, give_up_at)


def _same(before: Hosts, hosts: Mapping[str, Host]) -> bool:
    return len(before.by_name) == len(hosts) and all(before.by_name.get(name) is host for name, host in hosts.items())


def _host(
    name: str, condition: Condition, report: NodeReport | None, why: str, settings: NodeSettings, before: Host | None
) -> Host:
    """The same object as before, if nothing about it changed."""
    facts = (condition, why, settings, report and (report.capacity, report.reserved, report.runtime,
                                                   report.labels, report.attributes))  # fmt: skip
    if before is not None and before.facts == facts:
        return before
    attributes = _attributes(name, report, settings) if report else {}
    return Host(name, condition, report is not None, why, _room(report) if report else NO_ROOM, attributes, facts)


def _brake(view: View, suspects: Collection[str]) -> str:
    """Why no node may be given up now. A node that is drained was expected to go."""
    silent = sorted(node for node in suspects if view.settings.get(node, NO_SETTINGS).availability != "drain")
    living = sum(1 for node in view.nodes.values() if node.held)
    if len(silent) <= living:
        return ""
    if not living:
        return f"replacement is frozen: no node answers ({listed(silent)})"
    return f"replacement is frozen: {len(silent)} of {len(silent) + living} nodes vanished together ({listed(silent)})"


def _suspects(view: View, gone: Mapping[str, float]) -> dict[str, float]:
    """Silent nodes that are not given up yet; one that never had a plan has nothing to lose."""
    return {node: since for node, since in gone.items() if node in view.node_plans and not view.node_plans[node].lost}


def _availability(settings: NodeSettings) -> tuple[Condition, str]:
    match settings.availability:
        case "active":
            return Condition.ACTIVE, ""
        case "drain":
            return Condition.DRAINING, "is draining"
        case "pause":
            return Condition.PAUSED, "is paused"
        case other:
            return Condition.PAUSED, f"has availability {other!r}, which is none of active, pause, drain"


def _stopping(strays: Sequence[str]) -> str:
    """A node that came back still stops what was replaced meanwhile: its room and its ports are not free before."""
    return f"still stops {listed(strays)}" if strays else ""


def _nonsense(report: NodeReport) -> str:
    """What cannot be of what a node reports: it gets nothing before that is mended."""
    capacity = report.capacity
    amounts = {"cpu": (capacity.cpu, MAX_CPU), "memory": (capacity.memory, MAX_MEMORY),
               **{name: (count, MAX_COUNT) for name, count in capacity.resources.items()}}  # fmt: skip
    wrong = [f"{name} {amount}" for name, (amount, most) in amounts.items() if not 0 <= amount <= most]
    return f"reports what cannot be: {listed(wrong)}" if wrong else ""


def _room(report: NodeReport) -> Capacity:
    capacity, reserved = report.capacity, report.reserved
    if reserved == NO_ROOM:
        return capacity
    return Capacity(
        cpu=max(0, capacity.cpu - reserved.cpu),
        memory=max(0, capacity.memory - reserved.memory),
        resources={name: max(0, count - reserved.resources.get(name, 0)) for name, count in capacity.resources.items()},
    )


def _attributes(name: str, report: NodeReport, settings: NodeSettings) -> dict[str, str]:
    return {
        **report.labels,
        **settings.labels,
        **report.attributes,
        "name": name,
        "runtime": report.runtime,
        "cpu": f"{report.capacity.cpu / 1000:g}",
        "memory": str(report.capacity.memory),
    }
