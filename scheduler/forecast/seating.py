"""Which replicas of a service stay, which go, and which slots wait for a new one: one service's wish, slot by slot."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mesh.model import Slot
from mesh.scheduler.blueprint import Blueprint
from mesh.scheduler.forecast.cluster import Replica, Room, Service, Site
from mesh.scheduler.scale_down import first_to_go


@dataclass(slots=True)
class Seating:
    """Whom to stop for good, who hands over to a successor in the same slot (each with the reason), whom to place.

    `after_others`: stopped when nothing else is left on their node, for a drain stops globals last.
    """

    stop: list[tuple[Replica, str]] = field(default_factory=list)
    after_others: list[tuple[Replica, str]] = field(default_factory=list)
    hand_over: list[tuple[Replica, str]] = field(default_factory=list)
    fill: list[Slot] = field(default_factory=list)


def seat(service: Service, held: Sequence[Replica], sites: Mapping[str, Site], room: Callable[[], Room]) -> Seating:
    """The seating of a service; `held`: its replicas that hold a slot, on living nodes."""
    seating = Seating()
    if service.blueprint is None:
        return seating
    keepers: dict[Slot, Replica] = {}
    serving: dict[Slot, Replica] = {}
    for replica in held:
        serving[replica.slot] = min(serving.get(replica.slot, replica), replica, key=_serves_first)
        if (other := keepers.setdefault(replica.slot, replica)) is not replica:
            keepers[replica.slot], loser = sorted((other, replica), key=lambda one: _keep_first(one, sites))
            seating.stop.append((loser, "its slot is taken"))
    if service.kind == "global":
        _seat_globally(service.blueprint, keepers, sites, seating)
    elif service.kind != "cron":  # what runs of a cron service ends by itself, of whichever release
        _seat_counted(service, service.blueprint, keepers, serving, sites, room, seating)
    for replica in keepers.values():
        if sites[replica.node].draining:
            seating.hand_over.append((replica, f"drain of {replica.node}"))
        elif not replica.current and service.rolls and service.kind != "cron":
            seating.hand_over.append((replica, f"replaced by release {service.release}"))
    return seating


def _keep_first(replica: Replica, sites: Mapping[str, Site]) -> tuple[bool, bool, bool, float, str]:
    """Sort key for those in one slot: what need not be replaced, then ready before not ready, old before new."""
    return (not replica.current, sites[replica.node].draining, not replica.ready, replica.since, replica.id)


def _serves_first(replica: Replica) -> tuple[bool, float, str]:
    """Sort key for those in one slot, as they are now: ready before not ready, old before new."""
    return (not replica.ready, replica.since, replica.id)


def _seat_counted(
    service: Service,
    blueprint: Blueprint,
    keepers: dict[Slot, Replica],
    serving: Mapping[Slot, Replica],
    sites: Mapping[str, Site],
    room: Callable[[], Room],
    seating: Seating,
) -> None:
    """As many as are desired: the lowest free slots are filled, or the surplus is stopped, by what serves in it now."""
    missing = service.desired - len(keepers)
    if missing >= 0:
        others = (slot for slot in itertools.count(1) if slot not in service.slots)
        free = (slot for slot in itertools.chain(sorted(service.slots), others)
                if slot not in keepers and slot not in service.done)  # fmt: skip
        seating.fill += itertools.islice(free, missing)
        return
    spread = blueprint.spec.placement.spread
    label = spread[0].label if spread else "zone"
    for going in first_to_go([serving[slot] for slot in keepers], -missing, label, sites, room()):
        keeper = keepers.pop(going.slot)
        seating.stop.append((keeper, f"not needed: {service.desired} of {len(keepers) - missing} are desired"))


def _seat_globally(
    blueprint: Blueprint, keepers: dict[Slot, Replica], sites: Mapping[str, Site], seating: Seating
) -> None:
    """One on each eligible node; a paused node keeps what it has."""
    eligible = {name: why_not(blueprint, site) for name, site in sites.items() if not site.lost}
    for slot, replica in list(keepers.items()):
        if sites[replica.node].draining:
            seating.after_others.append((keepers.pop(slot), f"drain of {replica.node}"))
        elif why := eligible.get(str(slot), "there is no such node"):
            seating.stop.append((keepers.pop(slot), f"{slot} is not eligible: {why}"))
    seating.fill += [
        name for name, why in eligible.items() if not why and not sites[name].barred and name not in keepers
    ]


def why_not(blueprint: Blueprint, site: Site) -> str:
    """Why no replica of a global service belongs on a node, whatever room there is; empty if one does."""
    if why := blueprint.refuses(site.attributes.get("runtime", "")):
        return why
    for constraint in blueprint.constraints:
        if not constraint.allows(site.attributes):
            return constraint.why_not(site.attributes)
    return next((f"has no label {label} (max_per)" for label in blueprint.spec.placement.max_per
                 if label not in site.attributes), "")  # fmt: skip
