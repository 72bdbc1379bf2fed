"""What `mesh simulate` and `plan` say of an end state: JSON, and tables for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mesh import console, units
from mesh.model import Slot
from mesh.scheduler import placement
from mesh.scheduler.forecast.cluster import Cluster, Replica, Room
from mesh.scheduler.forecast.end_state import Forecast, Waiting
from mesh.scheduler.sentences import listed, size_text

MAX_ROWS = 60
"""Of one table; more are counted."""

MAX_REASONS = 10
"""Told of one service; more are counted."""


def forecast_json(cluster: Cluster, outcome: Forecast, warnings: Sequence[str]) -> dict[str, Any]:
    """The shape of `mesh simulate --json`."""
    return {
        "placements": [{"service": one.service, "slot": one.slot, "node": one.node} for one in outcome.placed],
        "stops": [{"service": one.replica.service, "slot": one.replica.slot, "node": one.replica.node, "why": one.why}
                  for one in outcome.stopped],
        "pending": waiting_json(outcome.waiting),
        "warnings": list(warnings),
        "nodes": nodes_json(cluster, outcome.replicas),
    }  # fmt: skip


def warnings(cluster: Cluster) -> list[str]:
    """What will hardly be meant, but stops nothing."""
    sites = [site for site in cluster.sites.values() if not site.lost]
    return [f"{name}: {warning}" for name, service in sorted(cluster.services.items()) if service.blueprint
            for warning in placement.warnings(service.blueprint, sites)]  # fmt: skip


def waiting_json(waiting: Iterable[Waiting]) -> list[dict[str, Any]]:
    return [{"service": one.service, "slots": list(one.slots), "reasons": dict(one.reasons), "why": one.why}
            for one in waiting]  # fmt: skip


def nodes_json(cluster: Cluster, replicas: Iterable[Replica]) -> dict[str, Any]:
    room = Room(cluster, replicas)
    return {
        name: {"cpu_free": room.cpu[name], "memory_free": room.memory[name], "resources_free": room.resources[name]}
        for name in sorted(room.cpu)
    }


# ── for people ───────────────────────────────────────────────────────────────────────────────


def show_forecast(cluster: Cluster, outcome: Forecast, warnings: Sequence[str]) -> None:
    """What changes, what waits and why, and what the nodes have left."""
    rows = _changes(outcome)
    if rows:
        console.print_table(["service", "slots", "change", "node", "why"], rows[:MAX_ROWS])
        if len(rows) > MAX_ROWS:
            console.say(f"and {len(rows) - MAX_ROWS} more lines: --json has them all")
        console.say()
    show_nodes(cluster, outcome.replicas)
    show_waiting(outcome.waiting)
    for warning in warnings:
        console.note(f"warning: {warning}")


def _changes(outcome: Forecast) -> list[list[object]]:
    """Placed, replaced and stopped slots, those of one service that fare alike in one line."""
    handed_over = {(one.replica.service, one.replica.slot): one for one in outcome.stopped}
    groups: dict[tuple[str, str, str, str], list[Slot]] = defaultdict(list)
    for new in outcome.placed:
        old = handed_over.pop((new.service, new.slot), None)
        where = new.node if old is None or old.replica.node == new.node else f"{old.replica.node} → {new.node}"
        groups[new.service, "replace" if old else "place", where, old.why if old else ""].append(new.slot)
    for stopped in handed_over.values():
        groups[stopped.replica.service, "stop", stopped.replica.node, stopped.why].append(stopped.replica.slot)
    return [[service, slots_text(slots), change, where, why]
            for (service, change, where, why), slots in sorted(groups.items())]  # fmt: skip


def show_waiting(waiting: Iterable[Waiting]) -> None:
    for one in waiting:
        console.say(f"\n{one.service}{f' {slots_text(one.slots)}' if one.slots else ''} waits:")
        for sentence in reasons_text(one.reasons, one.why):
            console.say(f"  {sentence}")


def reasons_text(reasons: Mapping[str, str], why: str) -> list[str]:
    """Each reason once, with its nodes counted, the commonest first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for node, reason in reasons.items():
        groups[reason].append(node)
    common = sorted(groups.items(), key=lambda group: -len(group[1]))
    told = [f"{nodes[0] if len(nodes) == 1 else f'{len(nodes)} nodes ({listed(nodes)})'}: {reason}"
            for reason, nodes in common[:MAX_REASONS]]  # fmt: skip
    told += [f"and {len(common) - MAX_REASONS} more reasons"] if len(common) > MAX_REASONS else []
    return [why, *told] if why else told


def show_nodes(cluster: Cluster, replicas: Sequence[Replica]) -> None:
    room = Room(cluster, replicas)
    counts: dict[str, int] = defaultdict(int)
    for replica in replicas:
        counts[replica.node] += 1
    names = sorted(room.cpu)
    resources = sorted({name for free in room.resources.values() for name in free})
    if names:
        console.print_table(
            ["node", "replicas", "cpu free", "memory free", *(f"{name} free" for name in resources)],
            [[name, counts[name], units.format_cpu(room.cpu[name]), size_text(room.memory[name]),
              *(room.resources[name].get(resource) for resource in resources)] for name in names[:MAX_ROWS]],
        )  # fmt: skip
    if len(names) > MAX_ROWS:
        console.say(f"and {len(names) - MAX_ROWS} more nodes: --json has them all")


def slots_text(slots: Iterable[Slot]) -> str:
    """`1-3,7`, or the names of nodes."""
    known = list(slots)
    numbers = units.format_numbers(slot for slot in known if isinstance(slot, int))
    return ", ".join([*([numbers] if numbers else []), *sorted(slot for slot in known if isinstance(slot, str))])
