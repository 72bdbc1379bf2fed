"""What becomes of a wish: a new release, or errors that change nothing that runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

from mesh.model import PublishedPort, Release, ServicePlan
from mesh.scheduler.blueprint import Blueprint, blueprint_of, draw
from mesh.scheduler.sentences import listed
from mesh.scheduler.service import rollout
from mesh.spec.errors import SpecError
from mesh.spec.service import ConfigRef, ServiceSpec
from mesh.view import Wish

MAX_RELEASES = 10
MAX_RELEASE_BYTES = 128 * 1024
"""Of all specs that one service keeps; its plan must fit into one value of the store."""


def accept(plan: ServicePlan, wish: Wish, configs: Mapping[str, str], now: float) -> ServicePlan:
    """The plan once the newest wish and the configs that it names have been looked at.

    A wish that is unusable leaves the last release in force. A job runs once for its spec, whatever becomes of configs.
    """
    known_wish = wish.index == plan.spec_index and not plan.errors
    if known_wish and (wish.spec is None or wish.spec.kind == "job" or not config_names(wish.spec)):
        return plan
    if wish.spec is None:
        return msgspec.structs.replace(plan, spec_index=wish.index, errors=list(wish.errors))
    try:
        spec = resolved(wish.spec, configs)
        canonical = spec.canonical()
        draw(spec, canonical)
    except SpecError as error:
        return msgspec.structs.replace(plan, spec_index=wish.index, errors=error.errors)
    plan = msgspec.structs.replace(plan, spec_index=wish.index, errors=[])
    digest = spec.digest()
    if (known := wished(plan)) is not None and known.hash == digest:
        return plan
    release = Release(
        number=plan.releases[-1].number + 1 if plan.releases else 1,
        hash=digest,
        spec=canonical,
        created=now,
        cause=_changed(wish.spec, spec, known) if known_wish and known else f"spec@{wish.index}",
    )
    return start(plan, release, now)


def config_names(spec: ServiceSpec) -> dict[str, str]:
    """The configs that a spec names, by the field that takes the value: `env.MODE`, `mounts.0`."""
    names = {f"env.{variable}": value.config for variable, value in spec.env.items() if isinstance(value, ConfigRef)}
    names.update((f"mounts.{number}", mount.config) for number, mount in enumerate(spec.mounts) if mount.config)
    return names


def resolved(spec: ServiceSpec, configs: Mapping[str, str]) -> ServiceSpec:
    """The spec with the values of its configs: what a release keeps, so that a rollback brings them back too.

    Raises:
        SpecError: for configs that are not there.
    """
    names = config_names(spec)
    if not names:
        return spec
    if missing := [(field, name) for field, name in names.items() if name not in configs]:
        raise SpecError([f"{field}: there is no config {name!r}: write it to desired/configs/{name}"
                         for field, name in missing])  # fmt: skip
    env = {variable: configs[value.config] if isinstance(value, ConfigRef) else value
           for variable, value in spec.env.items()}  # fmt: skip
    mounts = [mount.model_copy(update={"config": None, "content": configs[mount.config]}) if mount.config else mount
              for mount in spec.mounts]  # fmt: skip
    return spec.model_copy(update={"env": env, "mounts": mounts})


def _changed(named: ServiceSpec, spec: ServiceSpec, known: Release) -> str:
    before, after = _values(known.spec), _values(spec.canonical())
    names = {name for field, name in config_names(named).items() if before.get(field) != after.get(field)}
    return f"config {listed(sorted(names))} changed"


def _values(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What the fields have that may name a config."""
    values = {f"env.{variable}": value for variable, value in spec.get("env", {}).items()}
    values.update((f"mounts.{number}", mount.get("content")) for number, mount in enumerate(spec.get("mounts", ())))
    return values


def start(plan: ServicePlan, release: Release, now: float, message: str = "") -> ServicePlan:
    """The plan with one more release, and its rollout begun."""
    return msgspec.structs.replace(
        plan,
        kind=release.spec.get("kind", "service"),
        releases=[*plan.releases, release],
        rollout=rollout.begin(release, now, message),
    )


def wished(plan: ServicePlan) -> Release | None:
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
    needed.update(release.number for release in (last_good(plan), wished(plan)) if release is not None)
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
