"""DNS over UDP: a raw socket read in bursts, which costs less than a datagram transport's call per packet."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import perf_counter
from typing import Any

from mesh.dns import sockets
from mesh.dns.counters import Counters
from mesh.dns.tcp import Outcome

Handler = Callable[[bytes, str, float], Outcome]
"""From a datagram, its sender's address and the time it was found to what to do."""

_BURST = 64
"""Datagrams read per wake-up, so that TCP and timers have their turn too."""
_LARGEST = 4096
"""Of a query; a longer one is no query of ours and is cut, which makes it malformed."""


class UdpListener:
    """Answers on one socket."""

    def __init__(self, sock: socket.socket, handler: Handler, counters: Counters) -> None:
        self._socket = sock
        self._handler = handler
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        wildcard = sockets.is_wildcard(sock.getsockname()[0])
        self._answer_burst = self._answer_burst_to_many if wildcard else self._answer_burst_to_one
        self._loop.add_reader(sock.fileno(), self._read)

    def close(self) -> None:
        self._read()  # what has come is answered
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _read(self) -> None:
        started = perf_counter()
        try:
            self._answer_burst(started)
        except (BlockingIOError, InterruptedError):  # there is no more
            pass
        self._counters.time_kept(perf_counter() - started)

    def _answer_burst_to_one(self, now: float) -> None:
        """A socket of one address: replies leave by it."""
        receive, send, handle = self._socket.recvfrom, self._socket.sendto, self._handler
        for _ in range(_BURST):
            data, client = receive(_LARGEST)
            outcome = handle(data, client[0], now)
            if outcome.__class__ is bytes:
                try:
                    send(outcome, client)
                except OSError:
                    self._not_sent()
            elif outcome is not None:
                self._send_when_done(outcome, client, [])

    def _answer_burst_to_many(self, now: float) -> None:
        """A socket of all addresses: each reply has to be told by which to leave."""
        for _ in range(_BURST):
            data, local, client = sockets.receive_with_local(self._socket, _LARGEST)
            outcome = self._handler(data, client[0], now)
            if isinstance(outcome, bytes):
                self._send(outcome, client, local)
            elif outcome is not None:
                self._send_when_done(outcome, client, local)

    def _send(self, packet: bytes, client: Any, local: sockets.Ancillary) -> None:
        try:
            self._socket.sendmsg([packet], local, 0, client)
        except OSError:
            self._not_sent()

    def _not_sent(self) -> None:
        """The queue is full, or there is no way back: the client asks again."""
        self._counters.drops["send"] += 1

    def _send_when_done(self, task: Any, client: Any, local: sockets.Ancillary) -> None:
        def done(task: asyncio.Task[bytes]) -> None:
            if not task.cancelled() and not task.exception() and self._socket.fileno() >= 0:
                self._send(task.result(), client, local)

        task.add_done_callback(done)
