"""Connections whose first bytes say what they are: looked at, not taken, until they do.

What is left in the socket is read by whoever gets the connection, so a TLS handshake or a splice begins at its
beginning. SO_RCVLOWAT lets the kernel wake us only when there is more than we have seen.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Generic, TypeVar

from mesh.proxy import proxy_protocol, sni
from mesh.proxy.context import Context
from mesh.proxy.listener import Address, Serve
from mesh.proxy.timers import Timed

HEAD_TIMEOUT = 10.0
"""Seconds for the first bytes to be whole; the same as for a request's head."""

Failed = Callable[[str], None]
"""Counts a connection that was not let in, by a word."""

_T = TypeVar("_T")


def expect_proxy_header(serve: Serve, context: Context, failed: Failed) -> Serve:
    """Takes a PROXY protocol header off each connection, and serves it as of whom the header names."""

    def arrived(client: socket.socket, address: Address) -> None:
        def known(header: proxy_protocol.Header) -> None:
            client.recv(header.length)  # it is all there
            serve(client, header.source or address)

        Arrival(client, proxy_protocol.read_header, known, lambda: failed("no-proxy-header"), context).start()

    return arrived


def by_server_name(choose: Callable[[str], Serve | None], context: Context, failed: Failed) -> Serve:
    """Reads whom a TLS client asks for, and lets `choose` say who serves it; where nobody does, the client is told."""

    def arrived(client: socket.socket, address: Address) -> None:
        def known(name: str) -> None:
            serve = choose(name)
            if serve is not None:
                serve(client, address)
                return
            failed("unknown-name")
            try:
                client.send(sni.ALERT_UNRECOGNIZED_NAME)
            except OSError:  # it has left
                pass
            client.close()

        Arrival(client, sni.read_server_name, known, lambda: failed("no-client-hello"), context).start()

    return arrived


class Arrival(Timed, Generic[_T]):
    """A connection that is still to be understood."""

    __slots__ = ("_client", "_context", "_failed", "_known", "_loop", "_parse", "_seen")

    def __init__(
        self,
        client: socket.socket,
        parse: Callable[[bytes], _T | None],
        known: Callable[[_T], None],
        failed: Callable[[], None],
        context: Context,
    ) -> None:
        """`parse` is given all that has come until it returns what it understood, for `known`, or raises ValueError."""
        Timed.__init__(self)
        self._client = client
        self._parse = parse
        self._known = known
        self._failed = failed
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._seen = 0

    def start(self) -> None:
        self._context.arrivals.add(self)
        self._context.wheel.watch(self, self._context.wheel.now + HEAD_TIMEOUT)
        if self._context.full:
            self.end()
        else:
            self._loop.add_reader(self._client, self._readable)

    def _readable(self) -> None:
        try:
            data = self._client.recv(MOST, socket.MSG_PEEK)
            understood = self._parse(data) if len(data) > self._seen else None
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self._give_up()
            return
        if understood is not None:
            self._leave()
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            self._known(understood)
        elif len(data) == self._seen:  # it has ended
            self._give_up()
        else:
            self._seen = len(data)
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, self._seen + 1)

    def expire(self) -> None:
        self._give_up()

    def _give_up(self) -> None:
        self._failed()
        self.end()

    def end(self) -> None:
        self._leave()
        self._client.close()

    def _leave(self) -> None:
        self._context.wheel.forget(self)
        self._loop.remove_reader(self._client)
        self._context.arrival_left(self)


MOST = max(sni.MAX_HELLO, proxy_protocol.MAX_HEADER)
"""Bytes that are looked at: both parsers know by then."""
