"""DNS over UDP: a socket read and answered in bursts, which costs less than a call per datagram."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import perf_counter
from typing import Any

from mesh.dns import sockets
from mesh.dns.counters import Counters
from mesh.dns.datagrams import Datagrams, Sender
from mesh.dns.tcp import Outcome

Handler = Callable[[bytes, str, float], Outcome]
"""From a datagram, its sender's address and the time it was found to what to do."""


class UdpListener:
    """Answers on one socket."""

    def __init__(self, sock: socket.socket, handler: Handler, counters: Counters) -> None:
        self._socket = sock
        self._handler = handler
        self._counters = counters
        self._datagrams = Datagrams(sock, wildcard=sockets.is_wildcard(sock.getsockname()[0]))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._answer_burst)

    def stop(self, *, read_rest: bool) -> None:
        """Reads no more. `read_rest`: what has come is answered; else somebody else reads it."""
        if self._socket.fileno() >= 0:
            if read_rest:
                self._answer_burst()
            self._loop.remove_reader(self._socket.fileno())

    def close(self) -> None:
        """Sends no more either."""
        self._socket.close()

    def _answer_burst(self) -> None:
        now, handle = perf_counter(), self._handler
        outcomes = [handle(data, client, now) for data, client in self._datagrams.receive()]
        without_packet, lost = self._datagrams.reply(outcomes)
        for place in without_packet:
            if (task := outcomes[place]) is not None:
                self._reply_when_done(task, self._datagrams.sender(place))
        self._counters.drops["send"] += lost
        self._counters.time_kept(perf_counter() - now)

    def _reply_when_done(self, task: Any, sender: Sender) -> None:
        def done(task: asyncio.Task[bytes]) -> None:
            if not task.cancelled() and not task.exception() and self._socket.fileno() >= 0:
                self._counters.drops["send"] += self._datagrams.reply_later(task.result(), sender)

        task.add_done_callback(done)
