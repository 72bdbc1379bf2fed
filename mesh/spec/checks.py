"""Faults of a spec that no single field shows: each check names the fields that it needs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from mesh.suggestion import suggestion
from mesh.units import shown

if TYPE_CHECKING:
    from mesh.spec.service import ServiceSpec

MAX_NAME = 40
"""So that a replica's id, `<service>-<slot>-<4 hex>`, remains one DNS label (63 bytes, RFC 1035 2.3.4)."""

MAX_PORT_NAME = 15
"""As for service names in SRV records (RFC 6335 5.1)."""

MAX_DEPTH = 20
"""Levels of objects and lists in a spec."""

RESERVED_NAMES = frozenset({"ready", "all", "svc", "node", "ns", "localhost"})
"""Words that mean something else in our zone."""

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

Check = Callable[["ServiceSpec"], Iterator[str]]

_CHECKS: list[tuple[frozenset[str], Check]] = []


def _of(*fields: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        _CHECKS.append((frozenset(fields), check))
        return check

    return add


def faults(spec: ServiceSpec, broken: Collection[str]) -> list[str]:
    """What is wrong, each with its path. Checks that need a field in `broken` are left out."""
    return [fault for fields, check in _CHECKS if not fields & set(broken) for fault in check(spec)]


def label_fault(name: str, longest: int = 63) -> str | None:
    """Why `name` is no DNS label as we take them."""
    if len(name) > longest:
        return f"must have at most {longest} characters, got {len(name)}"
    if not _LABEL.fullmatch(name):
        return f"must be a DNS label (a-z, 0-9 and -, beginning with a letter), got {shown(name)}"
    return None


@_of("name")
def _name(spec: ServiceSpec) -> Iterator[str]:
    if fault := label_fault(spec.name, MAX_NAME):
        yield f"name: {fault}"
    if spec.name in RESERVED_NAMES:
        yield f"name: {spec.name!r} is a reserved name"


@_of("image", "command")
def _something_to_run(spec: ServiceSpec) -> Iterator[str]:
    if spec.image is None and spec.command is None:
        yield "image: an image (docker runtime) or a command (process runtime) is required"
    if spec.command is not None and not (spec.command and spec.command[0]):
        yield "command: must name a program"


@_of("network")
def _network(spec: ServiceSpec) -> Iterator[str]:
    if spec.network in ("host", "none"):
        yield f"network: {spec.network!r} gives a replica no address of its own: name a network that does"


@_of("ports")
def _ports(spec: ServiceSpec) -> Iterator[str]:
    used: dict[tuple[str, int, bool], str] = {}
    for name, port in spec.ports.items():
        if fault := label_fault(name, MAX_PORT_NAME):
            yield f"ports.{name[:60]}: a port's name {fault}"
        for field in ("port", "host_port"):
            number = getattr(port, field)
            first = used.setdefault((field, number, port.protocol == "udp"), name)
            if number is not None and first != name:
                yield f"ports.{name}.{field}: {number} is already used by port {first!r}"


@_of("tags")
def _tags(spec: ServiceSpec) -> Iterator[str]:
    for number, tag in enumerate(spec.tags):
        if fault := label_fault(tag):
            yield f"tags.{number}: {fault}"
        elif tag in ("ready", "all"):
            yield f"tags.{number}: {tag!r} is a reserved word"
        elif tag in spec.tags[:number]:
            yield f"tags.{number}: {tag!r} is there twice"


@_of("health", "ports")
def _probes(spec: ServiceSpec) -> Iterator[str]:
    for which, probe in (("ready", spec.health.ready), ("alive", spec.health.alive)):
        if probe is None or probe.exec is not None:
            continue
        field = "tcp" if probe.tcp else "port"
        port = spec.probe_port(probe)
        if port is None:
            why = "several ports, and none is http" if spec.ports else "the service has no ports"
            yield f"health.{which}.port: is required: {why}"
        elif port not in spec.ports:
            yield f"health.{which}.{field}: there is no port {port!r}{suggestion(port, spec.ports)}"
        elif spec.ports[port].protocol == "udp":
            yield f"health.{which}.{field}: {port!r} is a udp port, which cannot be probed"


@_of("resources", "limits")
def _limits(spec: ServiceSpec) -> Iterator[str]:
    for which in ("cpu", "memory"):
        limit = getattr(spec.limits, which)
        if limit is not None and limit < getattr(spec.resources, which):
            yield f"limits.{which}: must not be below resources.{which}"
    if spec.limits.memory == 0:
        yield "limits.memory: must be above zero"


@_of("volumes", "mounts")
def _paths(spec: ServiceSpec) -> Iterator[str]:
    yield from (f"volumes.{name}: a volume's name {fault}" for name in spec.volumes if (fault := label_fault(name)))
    paths = [(f"volumes.{name}.path", volume.path) for name, volume in spec.volumes.items()]
    paths += [(f"mounts.{number}.path", mount.path) for number, mount in enumerate(spec.mounts)]
    first: dict[str, str] = {}
    for where, path in paths:
        if first.setdefault(path.rstrip("/"), where) != where:
            yield f"{where}: {shown(path)} is already used by {first[path.rstrip('/')]}"


@_of("kind", "replicas", "singleton")
def _one_at_most(spec: ServiceSpec) -> Iterator[str]:
    if spec.singleton and spec.kind == "service" and spec.replicas > 1:
        yield f"replicas: a singleton has at most 1, got {spec.replicas}"


@_of("kind", "schedule", "job")
def _kind(spec: ServiceSpec) -> Iterator[str]:
    if spec.kind == "cron" and spec.schedule is None:
        yield "schedule: is required for kind cron"
    if spec.kind != "cron" and spec.schedule is not None:
        yield f"schedule: only kind cron has it, this is kind {spec.kind}"
    if spec.job is not None and spec.kind not in ("job", "cron"):
        yield f"job: only kinds job and cron have it, this is kind {spec.kind}"


@_of("kind", "scale", "singleton")
def _scale(spec: ServiceSpec) -> Iterator[str]:
    if spec.scale is None:
        return
    if spec.kind != "service":
        yield f"scale: only kind service follows its load, this is kind {spec.kind}"
    elif spec.singleton and max(spec.scale.max, *(one.max for one in spec.scale.schedules), 0) > 1:
        yield "scale: a singleton has at most 1: set max to 1"


@_of("scale", "discovery", "ports")
def _can_wake(spec: ServiceSpec) -> Iterator[str]:
    """A service at zero is woken by what the proxy holds for it, or by a number from elsewhere."""
    if spec.scale is None or not spec.scale.to_zero_after or any(one.prometheus for one in spec.scale.metrics):
        return
    if spec.discovery != "vip":
        yield "scale.to_zero_after: needs discovery: vip, for only what comes through the proxy wakes the service"
    elif all(port.protocol == "udp" for port in spec.ports.values()):
        yield "scale.to_zero_after: needs a port with protocol http or tcp, for only their clients wake the service"


@_of("schedule", "volumes")
def _overlap(spec: ServiceSpec) -> Iterator[str]:
    if spec.schedule is not None and spec.schedule.overlap == "allow" and spec.volumes:
        yield "schedule.overlap: runs side by side cannot share volumes: use skip or replace"


def shape_fault(data: object) -> str | None:
    """Why `data` cannot be a spec, or any JSON document of bounded depth and exact numbers."""
    left: list[tuple[object, str, int]] = [(data, "", 0)]
    while left:
        value, path, depth = left.pop()
        if depth > MAX_DEPTH:
            return f"{path[:100]}: is nested too deeply (at most {MAX_DEPTH} levels)"
        if fault := _scalar_fault(value):
            return f"{path}: {fault}" if path else fault
        for key, item in _items(value):
            if fault := _scalar_fault(key):
                return f"{path}: {fault}" if path else fault
            name = str(key) if str(key).isprintable() else repr(key)
            left.append((item, f"{path}.{name}" if path else name, depth + 1))
    return None


def _items(value: Any) -> Iterator[tuple[object, object]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def _scalar_fault(value: object) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, got {value}"
    if isinstance(value, int) and value.bit_length() > 63:
        return "must be a number that 64 bits hold"
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        return "must be text, got half a character (a lone surrogate)"
    return None
