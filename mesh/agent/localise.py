"""The Table as this node's own workers need it: real virtual IPs, or addresses that need no privilege.

`route`: the host has a local route for the whole range, and VIPs are used as they are. `loopback`: each VIP
becomes the address of 127.0.0.0/8 with the range's second byte and the same host part (10.96.0.7 → 127.96.0.7;
all of 127/8 may be bound by anybody). In both, ports that this process may not bind are moved up by 8000 (80 → 8080).
"""

from __future__ import annotations

import ipaddress

import msgspec

from mesh.table import Table, TableRoute, TableService

MOVE = 8000
"""What is added to a port that needs a privilege."""


class Localiser:
    """Turns each Table into this node's own; services that did not change stay the same objects."""

    def __init__(self, mode: str, first_port: int) -> None:
        """`mode`: route or loopback; `first_port`: the lowest that this process may bind."""
        self._loopback = mode == "loopback"
        self._first_port = first_port
        self._range = ""
        self._done: dict[str, tuple[TableService, TableService]] = {}

    def __call__(self, table: Table) -> Table:
        if not self._loopback and self._first_port <= 1:
            return table
        if table.vip_range != self._range:
            self._range, self._done = table.vip_range, {}
        network = ipaddress.ip_network(table.vip_range)
        done = {}
        for name, service in table.services.items():
            known = self._done.get(name)
            done[name] = known if known and known[0] is service else (service, self._service(service, network))
        self._done = done
        return msgspec.structs.replace(
            table,
            vip_range=str(loopback_range(network)) if self._loopback else table.vip_range,
            services={name: local for name, (_, local) in done.items()},
            routes={name: self._route(route) for name, route in table.routes.items()},
        )

    def _service(self, service: TableService, network: Network) -> TableService:
        vip = loopback_vip(service.vip, network) if self._loopback and service.vip else service.vip
        used = {port.port for port in service.ports.values()}
        ports = {}
        for name, port in service.ports.items():
            ports[name] = port
            if port.listen is None and port.port < self._first_port and vip:
                moved = port.port + MOVE
                while moved in used:
                    moved += 1
                used.add(moved)
                ports[name] = msgspec.structs.replace(port, listen=f"{vip}:{moved}")
        return msgspec.structs.replace(service, vip=vip, ports=ports)

    def _route(self, route: TableRoute) -> TableRoute:
        host, _, port = route.listen.rpartition(":")
        if not port.isdecimal() or int(port) >= self._first_port:
            return route
        return msgspec.structs.replace(route, listen=f"{host}:{int(port) + MOVE}")


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def loopback_range(network: Network) -> ipaddress.IPv4Network:
    """The part of 127.0.0.0/8 that stands for a range of virtual IPs."""
    first = loopback_vip(str(network.network_address), network)
    return ipaddress.IPv4Network(f"{first}/{max(network.prefixlen, 16)}", strict=False)


def loopback_vip(vip: str, network: Network) -> str:
    """10.96.0.7 → 127.96.0.7."""
    host = int(ipaddress.ip_address(vip)) & 0xFFFF
    return str(ipaddress.IPv4Address(127 << 24 | network.network_address.packed[1] << 16 | host))
