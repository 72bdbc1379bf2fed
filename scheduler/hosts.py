"""Which nodes may be given work, and which are gone: suspected at once, given up after a confirmation.

The leader's clock counts. What it remembers between two looks is a `Memory`; a new leader begins with an empty one,
so it watches a silent node for the whole grace itself before it replaces anything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from mesh.keys import Keys
from mesh.model import NodeReport, NodeSettings, ReplicaReport, ReplicaState
from mesh.scheduler.sentences import listed
from mesh.units import format_duration
from mesh.view import View

LOST_AFTER = 5.0
"""Seconds from the end of a node's session, which itself takes twice its TTL, until its replicas are replaced."""


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
    standing: Mapping[str, Standing] = field(default_factory=dict)


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
    report: NodeReport | None
    why: str = ""  # it gets nothing new: a sentence for the operator
    attributes: Mapping[str, str] = field(default_factory=dict)
    """What constraints may name: facts (`cpu` in cores, `memory` in bytes), and every label."""


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
    placed = {one.id: one.placed for plan in view.node_plans.values() for one in plan.replicas}
    standing = {
        replica.id: _standing(replica, memory.standing.get(replica.id), placed.get(replica.id, 0.0), now)
        for node in view.nodes.values()
        for replica in node.report.replicas
    }
    braked = bool(_brake(view, _suspects(view, gone)))
    return Memory(
        since=now if memory.since is None else memory.since,
        braked=braked,
        calm_since=now if braked or memory.braked else memory.calm_since,
        gone=gone,
        standing=standing,
    )


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
    planned = {one.id for plan in view.node_plans.values() for one in plan.replicas}
    hosts: dict[str, Host] = {}
    for name in sorted(view.nodes.keys() | view.node_plans.keys() | unreadable):
        seen = view.nodes.get(name)
        settings = view.settings.get(name, NodeSettings())
        report = seen.report if seen else None
        if name in unreadable and seen is None:
            condition, why = Condition.GONE, "its report cannot be read by this version"
        elif seen is not None and seen.held:
            condition, why = _availability(settings)
            why = why or _strays(seen.report, planned)
        elif name not in suspects or (name in due and now >= due[name]):
            condition, why = Condition.LOST, "does not answer"
        else:
            condition = Condition.GONE
            why = "does not answer" + ("" if frozen else f", is given up after {format_duration(lost_after)}")
        hosts[name] = Host(name, condition, report, why, _attributes(report, settings) if report else {})
    return Hosts(hosts, frozen, min((at for at in due.values() if at > now), default=None))


def _brake(view: View, suspects: Collection[str]) -> str:
    """Why no node may be given up now. A node that is drained was expected to go."""
    silent = sorted(node for node in suspects if view.settings.get(node, NodeSettings()).availability != "drain")
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
            return Condition.DRAINING, "is being drained"
        case "pause":
            return Condition.PAUSED, "is paused"
        case other:
            return Condition.PAUSED, f"has availability {other!r}, which is none of active, pause, drain"


def _strays(report: NodeReport, planned: Collection[str]) -> str:
    """A node that came back still stops what was replaced meanwhile: its room and its ports are not free before."""
    strays = [replica.id for replica in report.replicas if not replica.state.ended and replica.id not in planned]
    return f"still stops {listed(strays)}" if strays else ""


def _attributes(report: NodeReport, settings: NodeSettings) -> dict[str, str]:
    return {
        **report.labels,
        **settings.labels,
        **report.attributes,
        "name": report.node,
        "runtime": report.runtime,
        "cpu": f"{report.capacity.cpu / 1000:g}",
        "memory": str(report.capacity.memory),
    }
