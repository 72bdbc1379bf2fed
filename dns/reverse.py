"""Addresses and the reverse zones they lie in."""

from __future__ import annotations

import ipaddress
import socket

from mesh.dns.names import Labels, Network, Reverse, reverse_name


def family(address: str) -> socket.AddressFamily | None:
    """None: not an address."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.inet_pton(kind, address)
    except (OSError, ValueError):
        return None
    return kind


AddressKey = int | str
"""One key per address, however it is spelled; a number, since many are kept. What is no address is its own key."""
_IPV6 = 1 << 128


def address_key(address: str) -> AddressKey:
    kind = family(address)
    if kind is None:
        return address
    number = int.from_bytes(socket.inet_pton(kind, address), "big")
    return number | _IPV6 if kind is socket.AF_INET6 else number


def key_of(name: Reverse) -> AddressKey | None:
    """The address, where the name is of a whole one."""
    network = name.network
    if network.prefixlen < network.max_prefixlen:
        return None
    return int(network.network_address) | (_IPV6 if network.version == 6 else 0)


class VipZone:
    """The reverse zones of the VIP range: one per network of whole octets (IPv6: nibbles) that covers it."""

    def __init__(self, vip_range: str) -> None:
        try:
            self._range = ipaddress.ip_network(vip_range, strict=False)
        except ValueError as error:
            raise ValueError(f"vip_range: {error}") from None
        self._step = 8 if self._range.version == 4 else 4
        self._prefix = -(-self._range.prefixlen // self._step) * self._step

    def apex(self, network: Network) -> Labels | None:
        if network.version != self._range.version or network.prefixlen < self._prefix:
            return None
        if network.network_address not in self._range:
            return None
        return self.labels(network.supernet(new_prefix=self._prefix))

    def labels(self, network: Network) -> Labels:
        full = reverse_name(str(network.network_address))
        return full[(network.max_prefixlen - network.prefixlen) // self._step :]

    def parents(self, vip: str) -> list[Labels]:
        """The names between a VIP's own and its zone's apex."""
        if not vip or family(vip) is None or ipaddress.ip_address(vip) not in self._range:
            return []
        full = reverse_name(vip)
        between = (self._range.max_prefixlen - self._prefix) // self._step
        return [full[cut:] for cut in range(1, between)]
