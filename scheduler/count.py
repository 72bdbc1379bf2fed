"""How many replicas a service should have, and who says so: an operator by hand, else the autoscaler, else the spec."""

from __future__ import annotations

from typing import NamedTuple

from mesh.model import ScaleState
from mesh.spec.scale import Scale
from mesh.spec.service import ServiceSpec
from mesh.view import View

AUTOSCALER = "autoscaler"


class Count(NamedTuple):
    """A count of replicas."""

    replicas: int
    by: str = ""  # `scale=5`, `autoscaler`; empty: the spec
    why: str = ""  # the autoscaler's sentence
    asleep: bool = False  # at zero until it is asked for


def count_of(spec: ServiceSpec | None, by_hand: int | None, scaled: ScaleState | None, otherwise: int) -> Count:
    """The count that holds.

    Args:
        spec: as the operator wishes it, if that can be used.
        by_hand: what `mesh scale` says.
        scaled: what the autoscaler has decided.
        otherwise: how many there were, for a spec that cannot be used.
    """
    if by_hand is not None:
        return Count(by_hand, f"scale={by_hand}")
    decided = scaled.replicas if scaled else None
    last = scaled.changes[-1] if scaled and scaled.changes else None
    why = last.why if last and last.replicas == decided else ""
    if spec is None:
        return Count(otherwise) if decided is None else Count(decided, AUTOSCALER, why, asleep=not decided)
    if spec.scale is None or not spec.replicas:
        return Count(spec.replicas)
    if decided is None:
        return Count(min(max(spec.replicas, spec.scale.min), spec.scale.max))
    replicas, scale = bounded(decided, spec.scale), spec.scale
    if replicas != decided:  # the bounds have changed, or an operator's count was beyond them
        why = f"{'min' if replicas > decided else 'max'} is {replicas}"
    may_sleep = scale.to_zero_after > 0 or scale.min == 0  # else a schedule has closed it: nobody is to wait
    return Count(replicas, AUTOSCALER, why, asleep=may_sleep and not replicas)


def bounded(replicas: int, scale: Scale) -> int:
    """Within the widest bounds that any schedule allows: whatever the autoscaler says, this holds."""
    least = 0 if scale.to_zero_after else min([scale.min, *(one.min for one in scale.schedules)])
    most = max([scale.max, *(one.max for one in scale.schedules)])
    return min(max(replicas, least), most)


def wanted(view: View, service: str) -> Count:
    """The count of a service of `kind: service` in a picture of the store."""
    wish, plan = view.wishes.get(service), view.plans.get(service)
    spec = wish.spec if wish and not (plan and plan.errors) else None
    return count_of(spec, view.scale.get(service), view.scaled.get(service), plan.desired if plan else 0)


def counted(view: View, spec: ServiceSpec) -> Count:
    """The count of a service if its spec were this one."""
    return count_of(spec, view.scale.get(spec.name), view.scaled.get(spec.name), 0)
