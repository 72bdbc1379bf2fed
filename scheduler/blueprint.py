"""A release's spec made ready to decide on: parsed once, with its demand and its constraints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh.model import Release, ServicePlan
from mesh.scheduler.filters import Constraint, ConstraintError, contradictions, parse_constraint
from mesh.spec.errors import SpecError
from mesh.spec.service import ServiceSpec, trusted_spec

HostPort = tuple[int, str]
"""A static port of a node: number, and `tcp` or `udp`."""

MAX_SPEC = 64 * 1024
"""Bytes of one canonical spec: ten releases of it must fit into one value of the store."""

MAX_CACHED = 10_000


@dataclass(frozen=True, slots=True)
class Demand:
    """What one replica takes of its node, from the moment it is placed until it has ended."""

    cpu: int = 0
    memory: int = 0
    resources: Mapping[str, int] = field(default_factory=dict)
    ports: frozenset[HostPort] = frozenset()


NO_DEMAND = Demand()


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What the scheduler needs to know of one release."""

    spec: ServiceSpec
    demand: Demand
    constraints: tuple[Constraint, ...]
    size: int  # bytes of its canonical JSON
    affinities: tuple[tuple[Constraint | str, int], ...] = ()
    """What pulls with which weight: nodes for which a constraint holds, or that run a service."""

    @property
    def stop_first(self) -> bool:
        """Two replicas of one slot cannot live side by side: a static port, a volume, or the operator forbids it."""
        return bool(self.demand.ports or self.spec.volumes or self.spec.singleton)

    def refuses(self, runtime: str) -> str:
        """Why a runtime cannot run it; empty if it can."""
        if runtime == "docker" and self.spec.image is None:
            return "runs docker, which needs an image"
        if runtime == "process" and self.spec.command is None:
            return "runs processes, which need a command"
        if runtime == "process" and self.spec.network is not None:
            return f"runs processes, which join no network such as {self.spec.network}"
        return ""


def draw(spec: ServiceSpec, canonical: Mapping[str, Any]) -> Blueprint:
    """The blueprint of a spec.

    Raises:
        SpecError: what only the scheduler can tell: constraints that do not parse, a spec too large to keep.
    """
    errors: list[str] = []
    constraints: list[Constraint] = []
    for number, text in enumerate(spec.placement.constraints):
        try:
            constraints.append(parse_constraint(text))
        except ConstraintError as error:
            errors.append(f"placement.constraints.{number}: {error}")
    affinities: list[tuple[Constraint | str, int]] = []
    for number, affinity in enumerate(spec.placement.affinities):
        try:
            towards = affinity.service if affinity.match is None else parse_constraint(affinity.match)
            affinities.append((towards or "", affinity.weight))
        except ConstraintError as error:
            errors.append(f"placement.affinities.{number}.match: {error}")
    errors += contradictions(constraints)
    size = len(json.dumps(canonical))
    if size > MAX_SPEC:
        errors.append(f"the spec, with the values of its configs, has {size} bytes, more than {MAX_SPEC}: use files")
    if errors:
        raise SpecError(errors)
    resources = spec.resources
    demand = Demand(
        cpu=resources.cpu,
        memory=resources.memory,
        resources={name: count for name, count in resources.counts.items() if count},
        ports=frozenset((port.host_port, "udp" if port.protocol == "udp" else "tcp")
                        for port in spec.ports.values() if port.host_port is not None),
    )  # fmt: skip
    return Blueprint(spec, demand, tuple(constraints), size, tuple(affinities))


class Drawer:
    """Blueprints by the hash of their release. A pure function's memory: parsing specs costs most of a reconcile."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Blueprint] = {}

    def blueprint(self, service: str, release: Release) -> Blueprint:
        """Raises `ValueError` if a release in the store is not one (another version's, or edited by hand)."""
        key = (service, release.hash)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MAX_CACHED:
                self._known.clear()
            known = self._known[key] = draw(trusted_spec(release.spec), release.spec)
        return known


blueprint_of = Drawer().blueprint


def blueprint_or_none(plan: ServicePlan, number: int) -> Blueprint | None:
    """The blueprint of a release that may be no more, or unreadable."""
    release = next((release for release in plan.releases if release.number == number), None)
    if release is None:
        return None
    try:
        return blueprint_of(plan.service, release)
    except ValueError:
        return None
