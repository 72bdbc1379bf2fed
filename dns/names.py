"""The grammar of names under the mesh's domain: what a question asks for, whether or not it exists.

cluster                          Apex                  web.svc.cluster              ServiceName
ns.cluster                       NameServer            ready.web.svc.cluster        ReadyInstances
svc.cluster, node.cluster        Parent                all.web.svc.cluster          AllInstances
n1.node.cluster                  NodeName              3.web.svc.cluster            SlotName
7.0.96.10.in-addr.arpa           Reverse               web-3-6f3a.web.svc.cluster   Member (an id or a tag)
anything else under cluster      Nothing               _http._tcp.web.svc.cluster   PortName
anything else                    Foreign               _tcp.web.svc.cluster         PortParent
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

Labels = tuple[str, ...]
"""A name in lower case, leftmost label first, without the root: `("web", "svc", "cluster")`."""


Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Apex:
    """The domain itself."""


@dataclass(frozen=True, slots=True)
class NameServer:
    """The name in the domain's NS record."""


@dataclass(frozen=True, slots=True)
class Parent:
    """`svc` or `node`: it exists for what is below it and owns nothing."""


@dataclass(frozen=True, slots=True)
class ServiceName:
    service: str


@dataclass(frozen=True, slots=True)
class ReadyInstances:
    service: str


@dataclass(frozen=True, slots=True)
class AllInstances:
    service: str


@dataclass(frozen=True, slots=True)
class SlotName:
    service: str
    slot: int


@dataclass(frozen=True, slots=True)
class Member:
    """An endpoint's id, the node of a `global` service's slot, or a tag: the Table knows which."""

    service: str
    label: str


@dataclass(frozen=True, slots=True)
class PortName:
    service: str
    port: str
    transport: str  # tcp | udp


@dataclass(frozen=True, slots=True)
class PortParent:
    """`_tcp` or `_udp` of a service: the parent of its ports' names."""

    service: str
    transport: str


@dataclass(frozen=True, slots=True)
class NodeName:
    node: str


@dataclass(frozen=True, slots=True)
class Reverse:
    """An address, or the leading part of one, under in-addr.arpa or ip6.arpa."""

    network: Network


@dataclass(frozen=True, slots=True)
class Nothing:
    """Under the domain, but the grammar knows no such name."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """Not under the domain: somebody else's."""


InService = ServiceName | ReadyInstances | AllInstances | SlotName | Member | PortName | PortParent
Name = InService | Apex | NameServer | Parent | NodeName | Reverse | Nothing | Foreign


def labels_of(name: str) -> Labels:
    """`Web.svc.cluster.` → `("web", "svc", "cluster")`."""
    return tuple(label for label in name.lower().split(".") if label)


def parse_name(labels: Labels, domain: Labels) -> Name:
    """What a name asks for. Pure grammar: says nothing about whether it exists."""
    depth = len(labels) - len(domain)
    if depth < 0 or labels[depth:] != domain:
        return _reverse(labels) or Foreign()
    match labels[:depth]:
        case ():
            return Apex()
        case ("ns",):
            return NameServer()
        case ("svc",) | ("node",):
            return Parent()
        case (service, "svc"):
            return ServiceName(service)
        case (label, service, "svc"):
            return _under_service(label, service)
        case (port, "_tcp" | "_udp" as transport, service, "svc") if port.startswith("_"):
            return PortName(service, port[1:], transport[1:])
        case (*node, "node"):
            return NodeName(".".join(node))
    return Nothing()


def _under_service(label: str, service: str) -> Name:
    if label in ("_tcp", "_udp"):
        return PortParent(service, label[1:])
    if label.isdecimal() and label.isascii() and label[0] != "0":
        return SlotName(service, int(label)) if len(label) < 10 else Nothing()
    if label == "ready":
        return ReadyInstances(service)
    if label == "all":
        return AllInstances(service)
    return Member(service, label)


def _reverse(labels: Labels) -> Reverse | None:
    match labels:
        case (*octets, "in-addr", "arpa") if len(octets) <= 4:
            return _reverse_ipv4(octets)
        case (*nibbles, "ip6", "arpa") if len(nibbles) <= 32:
            return _reverse_ipv6(nibbles)
    return None


_OCTETS = {str(value): value for value in range(256)}
_NIBBLES = frozenset("0123456789abcdef")


def _reverse_ipv4(octets: Sequence[str]) -> Reverse | None:
    if not all(octet in _OCTETS for octet in octets):
        return None
    value = bytes(_OCTETS[octet] for octet in reversed(octets)).ljust(4, b"\0")
    return Reverse(IPv4Network((value, 8 * len(octets))))


def _reverse_ipv6(nibbles: Sequence[str]) -> Reverse | None:
    if not all(nibble in _NIBBLES for nibble in nibbles):
        return None
    value = int("".join(reversed(nibbles)).ljust(32, "0"), 16)
    return Reverse(IPv6Network((value, 4 * len(nibbles))))


def reverse_name(address: str) -> Labels:
    """The name that holds an address's PTR records."""
    if ":" in address:
        network = IPv6Network(address)
        return (*reversed(network.network_address.exploded.replace(":", "")), "ip6", "arpa")
    return (*reversed(address.split(".")), "in-addr", "arpa")
