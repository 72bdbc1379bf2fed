"""Ports for what a test starts."""

from __future__ import annotations

import random
import socket

_random = random.SystemRandom()  # hypothesis sets the seed of the other

PORTS = range(10_000, 20_000)
"""Below those that Linux takes for outgoing connections (from 32768) and those of replicas that run as processes."""


def free_port() -> int:
    """A port that is free on loopback for TCP and UDP (Consul's gossip uses both)."""
    while True:
        port = _random.choice(PORTS)
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
