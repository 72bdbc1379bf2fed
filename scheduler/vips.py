"""Virtual IPs: each service gets the lowest free address of the range and keeps it for its life."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network


class VipPool:
    """The addresses of one range that are in use.

    A range that is no network has no addresses; `fault` says so.
    """

    def __init__(self, vip_range: str) -> None:
        self.fault = ""
        self._range = vip_range
        self._used: set[str] = set()
        self._free: Iterator[IPv4Address | IPv6Address] = iter(())
        try:
            self._network = ip_network(vip_range)
        except ValueError as error:
            self.fault = f"vip_range in desired/config: {error}"
            return
        self._free = iter(self._network.hosts())

    def keep(self, vip: str) -> bool:
        """Marks an address as used; False if it is not one of the range, or taken already."""
        if self.fault or vip in self._used or not _within(vip, self._range):
            return False
        self._used.add(vip)
        return True

    def take(self) -> str | None:
        """The lowest free address; None if there is none."""
        address = next((free for free in map(str, self._free) if free not in self._used), None)
        if address is None:
            self.fault = self.fault or f"no virtual IP is free in {self._network}: widen vip_range in desired/config"
            return None
        self._used.add(address)
        return address


@lru_cache(maxsize=100_000)
def _within(vip: str, vip_range: str) -> bool:
    try:
        return vip == str(address := ip_address(vip)) and address in ip_network(vip_range)
    except ValueError:
        return False
