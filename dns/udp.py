"""DNS over UDP: a raw socket read in bursts, which costs less than a datagram transport's call per packet."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from mesh.dns import sockets
from mesh.dns.counters import Counters
from mesh.dns.tcp import Handler

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
        wildcard = sockets.is_wildcard(sock.getsockname()[0])
        self._loop = asyncio.get_running_loop()
        self._receive = self._read_wildcard if wildcard else self._read
        self._loop.add_reader(sock.fileno(), self._receive)

    def close(self) -> None:
        self._receive()  # what has come is answered
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _read(self) -> None:
        receive, handle = self._socket.recvfrom, self._handler
        for _ in range(_BURST):
            try:
                data, client = receive(_LARGEST)
            except (BlockingIOError, InterruptedError):
                return
            outcome = handle(data, client[0])
            if outcome.__class__ is bytes:
                self._send(outcome, client)
            elif outcome is not None:
                self._send_when_done(outcome, client, [])

    def _read_wildcard(self) -> None:
        for _ in range(_BURST):
            try:
                data, local, client = sockets.receive_with_local(self._socket, _LARGEST)
            except (BlockingIOError, InterruptedError):
                return
            outcome = self._handler(data, client[0])
            if isinstance(outcome, bytes):
                self._send(outcome, client, local)
            elif outcome is not None:
                self._send_when_done(outcome, client, local)

    def _send(self, packet: Any, client: Any, local: sockets.Ancillary | None = None) -> None:
        try:
            if local:
                self._socket.sendmsg([packet], local, 0, client)
            else:
                self._socket.sendto(packet, client)
        except OSError:  # the queue is full, or there is no way back: the client asks again
            self._counters.drops["send"] += 1

    def _send_when_done(self, task: Any, client: Any, local: sockets.Ancillary) -> None:
        def done(task: asyncio.Task[bytes]) -> None:
            if not task.cancelled() and not task.exception() and self._socket.fileno() >= 0:
                self._send(task.result(), client, local)

        task.add_done_callback(done)
