"""What every replica of a node is told of where it is, and where it finds DNS."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.probing import split
from mesh.settings import AgentSettings

EVERYWHERE = ("", "0.0.0.0")
"""What stands for every address of a host, and is none that anybody could ask."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every replica of this node is told."""

    node: str
    dns: str  # `address:port` of this node's DNS
    nameservers: Sequence[str] = ()  # for containers: addresses that answer on port 53
    search: Sequence[str] = ()


def surroundings(settings: AgentSettings, domain: str, gateway: str = "") -> Surroundings:
    """`gateway`: this host's address on the bridge of its containers; empty where they are elsewhere, or processes."""
    nameservers = nameservers_of(settings, gateway)
    host, port = (nameservers[0], 53) if nameservers else split(settings.dns_listen[0])  # containers reach those too
    host = _asked(host, settings, gateway)
    return Surroundings(
        node=settings.node,
        dns=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        nameservers=nameservers,
        search=[f"svc.{domain}"],
    )


def nameservers_of(settings: AgentSettings, gateway: str = "") -> list[str]:
    """Where containers reach this node's DNS: port 53 is all that a resolv.conf can name."""
    listens = [split(address) for address in settings.dns_listen]
    hosts = [_asked(host, settings, gateway) for host, port in listens if port == 53]
    return [host for host in hosts if _leaves_the_host(host)]


def _asked(host: str, settings: AgentSettings, gateway: str) -> str:
    return gateway or settings.address if host in EVERYWHERE else host


def _leaves_the_host(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False  # a name: no resolv.conf takes it
    return not (address.is_loopback or address.is_unspecified)
