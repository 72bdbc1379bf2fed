"""Which of a service's instances a name means."""

from __future__ import annotations

from collections.abc import Iterable

from mesh.dns import names
from mesh.table import Endpoint, TablePort, TableService


def ready(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """The ready ones; where there are none, those that were ready when their node was last heard of."""
    endpoints = list(endpoints)
    return [endpoint for endpoint in endpoints if endpoint.state == "ready"] or [
        endpoint for endpoint in endpoints if endpoint.state == "suspect"
    ]


def select(name: names.InService, service: TableService, nodes: Iterable[str] = ()) -> list[Endpoint] | None:
    """The instances that a name means; None: there is no such name. `nodes`: names in lower case."""
    match name:
        case names.ServiceName():
            chosen = ready(service.endpoints)
            return chosen or (service.endpoints if hopeful(service) else [])
        case names.ReadyInstances():
            return ready(service.endpoints)
        case names.AllInstances():
            return service.endpoints
        case names.SlotName(_, slot):
            return _in_slot(str(slot), service, known=_has_slot(service, slot))
        case names.Member(_, label):
            if instances := [endpoint for endpoint in service.endpoints if endpoint.id.lower() == label]:
                return instances
            per_node = any(isinstance(endpoint.slot, str) for endpoint in service.endpoints)
            if (instance := _in_slot(label, service, known=per_node and label in nodes)) is not None:
                return instance
            tagged = [endpoint for endpoint in service.endpoints if has_tag(endpoint, label)]
            return ready(tagged) if tagged else None
        case names.PortName(_, port, transport):
            if port not in service.ports or _transport(service.ports[port]) != transport:
                return None
            return ready(endpoint for endpoint in service.endpoints if port in endpoint.ports)
        case names.PortParent(_, transport):
            return [] if any(_transport(port) == transport for port in service.ports.values()) else None


def _has_slot(service: TableService, slot: int) -> bool:
    """Whether the service should have it: one that has shrunk may lack some in between."""
    return any(first <= slot <= last for first, last in service.seats or [(0, service.desired)])


def _in_slot(slot: str, service: TableService, *, known: bool) -> list[Endpoint] | None:
    """The slot's instance: while a newer one is taking over, the one that is ready."""
    instances = [endpoint for endpoint in service.endpoints if str(endpoint.slot).lower() == slot]
    if not instances:
        return [] if known else None
    return [max(instances, key=lambda endpoint: (endpoint.state == "ready", endpoint.release, endpoint.id))]


def has_tag(endpoint: Endpoint, label: str) -> bool:
    return any(tag.lower() == label for tag in endpoint.tags)


def hopeful(service: TableService) -> bool:
    """Whether the service's own name falls back to instances that are not ready: better a try than an outage."""
    return service.discovery == "direct" and service.all_unready == "any" and service.desired > 0


def _transport(port: TablePort) -> str:
    return "udp" if port.protocol == "udp" else "tcp"
