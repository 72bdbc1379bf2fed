"""Who asks: which networks we do more for, and how many answers a network gets over UDP.

A forged sender address makes us send to somebody who did not ask. The limit keeps us of no use for that; who
really asks is told to come by TCP, which cannot be forged, or shows a cookie (see `cookies.py`). This host
itself is not limited.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable

_SERVED_RATE = 100_000.0  # answers per second for a network that may have names forwarded too
_FOREIGN_RATE = 100.0  # for any other
_BURST = 2.0  # seconds' worth of answers
_MOST_CLIENTS = 10_000
_SLIP = 2  # of the answers beyond the rate every second one is sent, cut


class _Bucket:
    """The answers that one network may still have."""

    __slots__ = ("filled_at", "rate", "refused", "tokens")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.tokens = rate * _BURST
        self.filled_at = now
        self.refused = 0

    def fill(self, now: float) -> None:
        self.tokens = min(self.rate * _BURST, self.tokens + (now - self.filled_at) * self.rate)
        self.filled_at = now


class Networks:
    """Some networks, and which clients are of them.

    Raises:
        ValueError: for a network that is none.
    """

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network, strict=False) for network in networks]
        self._known: dict[str, bool] = {}

    def include(self, client: str) -> bool:
        known = self._known.get(client)
        if known is None:
            if len(self._known) >= _MOST_CLIENTS:
                self._known.clear()
            address = _parse(client)
            known = self._known[client] = any(address in network for network in self._networks)
        return known


class RateLimit:
    """Answers per second for each network of /24 (IPv6: /56); more of them for the `served` ones."""

    def __init__(self, served: Networks) -> None:
        self._served = served
        self._by_client: dict[str, _Bucket] = {}
        self._by_network: dict[str, _Bucket] = {}

    def __len__(self) -> int:
        return len(self._by_client)

    def admits(self, client: str, now: float) -> bool:
        """Whether one more query is to be answered; `now` in seconds of any steady clock."""
        bucket = self._by_client.get(client) or self._bucket(client, now)
        if now > bucket.filled_at:
            bucket.fill(now)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def slips(self, client: str) -> bool:
        """Whether a query that was not admitted is to be answered all the same, cut."""
        bucket = self._by_client[client]
        bucket.refused += 1
        return bucket.refused % _SLIP == 0

    def _bucket(self, client: str, now: float) -> _Bucket:
        if len(self._by_client) >= _MOST_CLIENTS:
            self._by_client.clear()
            self._by_network.clear()
        address = _parse(client)
        network = str(ipaddress.ip_network((address, 24 if address.version == 4 else 56), strict=False))
        if address.is_loopback:
            rate = math.inf
        elif self._served.include(client):
            rate = _SERVED_RATE
        else:
            rate = _FOREIGN_RATE
        bucket = self._by_client[client] = self._by_network.setdefault(network, _Bucket(rate, now))
        return bucket


def _parse(client: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(client.partition("%")[0])  # fe80::1%eth0
