"""Which nodes may be given work, and which are gone: suspected at once, given up after a confirmation.

Direct probes say it first (`hearing`); the end of a node's session is the last word, and the only one on a node that
no probe has ever reached. The leader's clock counts. What it remembers between two looks is a `Memory`; a new leader
begins with an empty one, and watches a silent node for the whole grace itself, unless it has probed it all along.

    active ─silent─► gone (suspected) ─confirmed─► lost ─heard─► active      what is wrong, and why: `doubts`
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from msgspec.structs import replace

from mesh.hearing import PACES, Pace, Sight, Sign
from mesh.keys import Keys
from mesh.model import Capacity, ClusterPlan, NodeDoubt, NodePlan, NodeReport, NodeSettings, ReplicaReport, ReplicaState
from mesh.scheduler.sentences import listed
from mesh.units import MAX_CPU, MAX_MEMORY, format_duration
from mesh.view import NodeView, View

if TYPE_CHECKING:
    from mesh.scheduler.look import Look

LOST_AFTER = 5.0
"""Seconds from the end of a node's session, which itself takes twice its TTL, until its replicas are replaced."""

UP_GRACE = 45.0
"""Seconds for which a host whose kernel answers is waited for when its agent does not, its session too being over:
longer than an upgrade takes, or a stopped process (an agent that is continued finds all as it was)."""

SAYS = {
    Sign.ANSWERS: "is cut off from the store; it answers others, and what it runs serves on",
    Sign.REFUSES: "runs no agent; what it runs may serve",
    Sign.ACCEPTS: "takes connections and answers nothing: it is frozen, or its agent hangs",
    Sign.DEAF: "sends, but nothing reaches it: a one-way fault",
    Sign.SILENT: "does not answer",
}

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
    lapsed: Mapping[str, float] = field(default_factory=dict)  # since when sessions are over, heard or not
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
    OVERDUE = "overdue"  # draining, and its deadline has passed: what is still there stops
    GONE = "gone"  # silent: suspected, not yet given up
    LOST = "lost"  # given up: what it ran is replaced

    @property
    def draining(self) -> bool:
        return self in (Condition.DRAINING, Condition.OVERDUE)


_SEVERITY = (*Condition,)
"""Ordered: each allows less than the one before."""

LOSSY = "many probes of it are lost: its network drops packets"


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
    """All nodes, by name; `frozen` says why nothing is replaced, if so; `changes_at`: when the next one's condition
    changes by itself: it is given up, or its drain is overdue."""

    by_name: Mapping[str, Host]
    frozen: str
    changes_at: float | None
    cluster: ClusterPlan = field(default_factory=ClusterPlan)
    """What is doubtful, for people and for every node's Table."""


@dataclass(frozen=True, slots=True)
class Hearing:
    """What direct probes say of the nodes; nothing of those that were never heard."""

    sights: Mapping[str, Sight] = field(default_factory=dict)
    pace: Pace = PACES["normal"]

    def sign(self, node: str) -> Sign | None:
        sight = self.sights.get(node)
        return sight.sign if sight else None

    def is_silent(self, node: str, seen: NodeView | None) -> bool:
        """It is to be suspected. One that refuses is not, as long as its session lives: its agent may be restarting."""
        held = seen is not None and seen.held
        match self.sign(node):
            case None | Sign.REFUSES:
                return not held
            case Sign.ANSWERS:
                return seen is None
            case _:
                return True

    def may_run(self, node: str) -> bool:
        """What the node runs may live, and nobody there would stop it: its kernel answers, its agent does not."""
        return self.sign(node) in (Sign.REFUSES, Sign.ACCEPTS)

    def give_up_at(self, node: str, gone: float, held: bool, calm: float, lost_after: float) -> float:
        """When a node may be replaced at the earliest, silent since `gone` by our memory; no brake since `calm`."""
        by_session = max(gone, calm) + lost_after
        sight = self.sights.get(node)
        if sight is None or sight.sign is Sign.ANSWERS:
            return by_session
        if self.may_run(node):
            return float("inf") if held else max(by_session, sight.since + UP_GRACE)
        return max(sight.since, calm) + self.pace.give_up


NO_HEARING = Hearing()


def remember(view: View, memory: Memory, now: float, hearing: Hearing = NO_HEARING) -> Memory:
    """What has been seen by now."""
    gone = {node: memory.gone.get(node, now)
            for node in view.nodes.keys() | view.node_plans.keys()
            if hearing.is_silent(node, view.nodes.get(node))}  # fmt: skip
    lapsed = {node: memory.lapsed.get(node, now) for node in gone if not _is_held(view, node)}
    sightings = {
        name: _sighting(seen, view.node_plans.get(name), memory.sightings.get(name), now)
        for name, seen in view.nodes.items()
    }
    braked = bool(_brake(view, _suspects(view, gone), gone))
    return Memory(
        since=now if memory.since is None else memory.since,
        braked=braked,
        calm_since=now if braked or memory.braked else memory.calm_since,
        gone=gone,
        lapsed=lapsed,
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


def survey(
    view: View, memory: Memory, now: float, lost_after: float, keys: Keys, hearing: Hearing = NO_HEARING
) -> Hosts:
    """The condition of every node.

    If more than half of the nodes vanish together, none of them is given up: the store, or the way to it, is the
    likelier culprit; and where no node is left, giving up would stop on its return what nobody had replaced.
    When enough of them are back, the others have the whole grace again. An operator who knows better confirms the loss.
    """
    suspects = _suspects(view, memory.gone)
    prefix = keys.observed_nodes
    unreadable = {key.removeprefix(prefix) for key in view.unreadable if key.startswith(prefix)}
    frozen = _brake(view, suspects, memory.gone)
    due: dict[str, float] = {}
    for node, since in suspects.items():
        if node in unreadable:
            continue
        if _is_confirmed(view, node):
            due[node] = now
        elif not frozen:
            due[node] = hearing.give_up_at(node, since, _is_held(view, node), memory.calm_since, lost_after)
            if _has_singleton(view.node_plans[node]):
                lapsed = memory.lapsed.get(node, float("inf"))
                due[node] = float("inf") if hearing.may_run(node) else max(due[node], lapsed + lost_after)
    before = memory.hosts
    hosts: dict[str, Host] = {}
    doubts: dict[str, NodeDoubt] = {}
    for name in sorted(view.nodes.keys() | view.node_plans.keys() | unreadable):
        seen = view.nodes.get(name)
        settings = view.settings.get(name, NO_SETTINGS)
        report = seen.report if seen else None
        sign = hearing.sign(name)
        says = SAYS[sign if sign not in (None, Sign.ANSWERS) else Sign.SILENT]
        since = memory.gone.get(name, now)
        if name in unreadable and seen is None:
            condition, why = Condition.GONE, "its report cannot be read by this version"
        elif seen is not None and name not in memory.gone and (seen.is_back or not _is_given_up(view, name)):
            condition, why = _availability(settings, now)
            if not seen.held:
                condition, why = max(condition, Condition.PAUSED, key=_SEVERITY.index), SAYS[Sign.ANSWERS]
                doubts[name] = NodeDoubt(state="degraded", why=why)
            elif sign is Sign.REFUSES:
                doubts[name] = NodeDoubt(state="degraded", why=SAYS[sign])
            elif name in hearing.sights and hearing.sights[name].lossy:
                doubts[name] = NodeDoubt(state="degraded", why=LOSSY)
            why = why or memory.sightings[name].fault
            if view.cluster.has_lost(name) and memory.sightings[name].strays:
                doubts[name] = NodeDoubt(state="lost", why=f"is back, and {_stopping(memory.sightings[name].strays)}")
        elif name not in suspects or (name in due and now >= due[name]):
            if seen is not None and seen.held and name not in memory.gone:
                says = "is back, and has not seen its engine yet"
            condition, why = Condition.LOST, says
            doubts[name] = NodeDoubt(state="lost", why=f"{says}: what it ran is replaced")
        else:
            condition = Condition.GONE
            grace = due[name] - since if name in due else 0.0
            why = says
            if 0 < grace < float("inf"):
                why = f"{says}, is given up after {format_duration(max(1, round(grace)))}"
            elif grace and not _is_held(view, name):
                why = f"{says}; it had a singleton, which must not run twice: if it is gone: mesh confirm-loss {name}"
            doubts[name] = NodeDoubt(state="suspected", why=why)
        hosts[name] = _host(name, condition, report, why, settings, before.by_name.get(name) if before else None)
    deadlines = (one.deadline for one in view.settings.values() if one.availability == "drain")
    changes_at = min((at for at in (*due.values(), *deadlines) if now < at < float("inf")), default=None)
    cluster = ClusterPlan(frozen=frozen, nodes=_dated(doubts, view.cluster, now), returned=_returned(view, doubts))
    if (
        before is not None
        and (before.frozen, before.changes_at, before.cluster) == (frozen, changes_at, cluster)
        and _same(before, hosts)
    ):
        return before
    return Hosts(hosts, frozen, changes_at, cluster)


def _dated(doubts: Mapping[str, NodeDoubt], before: ClusterPlan, now: float) -> dict[str, NodeDoubt]:
    """With the time since when each node is so."""
    return {
        name: replace(doubt, since=old.since if (old := before.nodes.get(name)) and old.state == doubt.state else now)
        for name, doubt in doubts.items()
    }


def _returned(view: View, doubts: Mapping[str, NodeDoubt]) -> dict[str, int]:
    """For nodes that may hear of a return before they have read the report that it goes by."""
    back = {name: seen.index for name, seen in view.nodes.items() if view.cluster.has_lost(name)}
    return {name: index for name, index in (view.cluster.returned | back).items()
            if name in view.nodes and not (name in doubts and doubts[name].state == "lost")}  # fmt: skip


def _is_held(view: View, node: str) -> bool:
    return node in view.nodes and view.nodes[node].held


def _is_given_up(view: View, node: str) -> bool:
    """It stays so until it has reported again: what its last report says is of before."""
    return node in view.node_plans and view.node_plans[node].lost


def _has_singleton(plan: NodePlan) -> bool:
    """It runs what must never run twice. Cut off, its agent stops that before the session ends, and not sooner."""
    return any(spec.get("singleton") for spec in plan.specs.values())


def _is_confirmed(view: View, node: str) -> bool:
    """An operator has said that this life of the node is over. When it returns it reports anew, and that lapses."""
    seen = view.nodes.get(node)
    return seen is not None and view.settings.get(node, NO_SETTINGS).lost == seen.index


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


def _brake(view: View, suspects: Collection[str], gone: Collection[str]) -> str:
    """Why no node may be given up now. One that is drained, or confirmed to be lost, was expected to go."""
    silent = sorted(node for node in suspects if not _is_expected(view, node))
    living = sum(1 for node in view.nodes if node not in gone)
    if len(silent) <= living:
        return ""
    if not living:
        return f"replacement is frozen: no node answers ({listed(silent)})"
    return f"replacement is frozen: {len(silent)} of {len(silent) + living} nodes vanished together ({listed(silent)})"


def _is_expected(view: View, node: str) -> bool:
    return view.settings.get(node, NO_SETTINGS).availability == "drain" or _is_confirmed(view, node)


def _suspects(view: View, gone: Mapping[str, float]) -> dict[str, float]:
    """Silent nodes that are not given up yet; one that never had a plan has nothing to lose."""
    return {node: since for node, since in gone.items() if node in view.node_plans and not _is_given_up(view, node)}


def _availability(settings: NodeSettings, now: float) -> tuple[Condition, str]:
    match settings.availability:
        case "active":
            return Condition.ACTIVE, ""
        case "drain":
            overdue = 0 < settings.deadline <= now
            return Condition.OVERDUE if overdue else Condition.DRAINING, "is draining"
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
