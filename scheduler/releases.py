"""What becomes of a wish: a new release, or errors that change nothing that runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from mesh.model import PublishedPort, Release, ServicePlan
from mesh.scheduler import rollout
from mesh.scheduler.blueprint import Blueprint, blueprint_of, draw
from mesh.spec.errors import SpecError
from mesh.spec.service import ServiceSpec
from mesh.view import Wish

MAX_RELEASES = 10
MAX_RELEASE_BYTES = 128 * 1024
"""Of all specs that one service keeps; its plan must fit into one value of the store."""


def accept(plan: ServicePlan, wish: Wish, now: float) -> ServicePlan:
    """The plan once the newest wish has been looked at. An unusable wish leaves the last release in force."""
    if wish.index == plan.spec_index and not plan.errors:
        return plan
    if wish.spec is None:
        return msgspec.structs.replace(plan, spec_index=wish.index, errors=list(wish.errors))
    canonical = wish.spec.canonical()
    try:
        draw(wish.spec, canonical)
    except SpecError as error:
        return msgspec.structs.replace(plan, spec_index=wish.index, errors=error.errors)
    plan = msgspec.structs.replace(plan, spec_index=wish.index, errors=[], kind=wish.spec.kind)
    digest = wish.spec.digest()
    if (known := _wished(plan)) is not None and known.hash == digest:
        return plan
    release = Release(
        number=plan.releases[-1].number + 1 if plan.releases else 1,
        hash=digest,
        spec=canonical,
        created=now,
        cause=f"spec@{wish.index}",
    )
    return start(plan, release, now)


def start(plan: ServicePlan, release: Release, now: float, message: str = "") -> ServicePlan:
    """The plan with one more release, and its rollout begun."""
    return msgspec.structs.replace(
        plan, releases=[*plan.releases, release], rollout=rollout.begin(release, now, message)
    )


def _wished(plan: ServicePlan) -> Release | None:
    """The newest release that an operator asked for: the one before a rollback, if that is the newest."""
    return next((release for release in reversed(plan.releases) if not release.rollback_of), None)


def last_good(plan: ServicePlan) -> Release | None:
    """What a rollback goes back to, and what slots outside a rollout are filled with."""
    return next((release for release in reversed(plan.releases) if release.good), None)


def mark_good(plan: ServicePlan) -> ServicePlan:
    """The newest release has taken over everywhere."""
    newest = plan.releases[-1]
    if newest.good:
        return plan
    return msgspec.structs.replace(plan, releases=[*plan.releases[:-1], msgspec.structs.replace(newest, good=True)])


def prune(plan: ServicePlan, in_use: Collection[int]) -> ServicePlan:
    """Keeps the newest ten releases, fewer if they are large, and always what runs, what is good and the newest."""
    if len(plan.releases) <= 1:
        return plan
    needed = {*in_use, plan.releases[-1].number}
    needed.update(release.number for release in (last_good(plan), _wished(plan)) if release is not None)
    kept: list[Release] = []
    room = MAX_RELEASE_BYTES
    for release in reversed(plan.releases):
        room -= blueprint_of(plan.service, release).size
        if release.number in needed or (len(kept) < MAX_RELEASES and room >= 0):
            kept.append(release)
    if len(kept) == len(plan.releases):
        return plan
    return msgspec.structs.replace(plan, releases=kept[::-1])


def publish(plan: ServicePlan, target: Blueprint, base: Blueprint | None) -> ServicePlan:
    """What the data plane is told of the service.

    While a rollout lasts, the last good release stays in force and new ports are added, so that both releases can be
    reached; when it is over, the new release alone counts. A port that changes its number moves at the end.
    """
    force = (base or target).spec
    ports = dict(_published(force))
    taken = {(port.port, port.protocol == "udp") for port in ports.values()}
    for name, port in _published(target.spec):
        if name not in ports and (port.port, port.protocol == "udp") not in taken:
            ports[name] = port
    return msgspec.structs.replace(
        plan,
        ports=ports,
        traffic=force.traffic.model_dump(mode="json", exclude_defaults=True),
        ttl=round(force.ttl),
        discovery=force.discovery,
        all_unready=force.all_unready,
    )


def _published(spec: ServiceSpec) -> Iterator[tuple[str, PublishedPort]]:
    for name, port in spec.ports.items():
        told = port.proxy_protocol.model_dump(mode="json", exclude_defaults=True)
        yield name, PublishedPort(port=port.port, protocol=port.protocol, proxy_protocol=told)
