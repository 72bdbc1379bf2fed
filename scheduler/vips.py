"""Virtual IPs: each service gets the lowest free address of the range and keeps it for its life."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network


class VipPool:
    """The addresses of one range that are in use.

    A range that is no network has no addresses; `fault` says so.
    """

    def __init__(self, vip_range: str) -> None:
        self.fault = ""
        self._used: set[IPv4Address | IPv6Address] = set()
        self._free: Iterator[IPv4Address | IPv6Address] = iter(())
        try:
            self._network = ip_network(vip_range)
        except ValueError as error:
            self.fault = f"vip_range in desired/config: {error}"
            return
        self._free = iter(self._network.hosts())

    def keep(self, vip: str) -> bool:
        """Marks an address as used; False if it is not one of the range, or taken already."""
        try:
            address = ip_address(vip)
        except ValueError:
            return False
        if self.fault or address not in self._network or address in self._used:
            return False
        self._used.add(address)
        return True

    def take(self) -> str | None:
        """The lowest free address; None if there is none."""
        address = next((free for free in self._free if free not in self._used), None)
        if address is None:
            self.fault = self.fault or f"no virtual IP is free in {self._network}: widen vip_range in desired/config"
            return None
        self._used.add(address)
        return str(address)
