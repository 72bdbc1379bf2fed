"""What an exchange becomes when both sides have switched protocols (WebSocket, say): bytes both ways, as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh.proxy.exchange import Exchange
    from mesh.proxy.upstream import UpstreamConnection


class Tunnel:
    """Lives until one side is gone, both have ended, or nothing moves for the idle time-out."""

    __slots__ = ("_connection", "_endpoint_ended", "_exchange")

    def __init__(self, exchange: Exchange, connection: UpstreamConnection) -> None:
        self._exchange = exchange
        self._connection = connection
        self._endpoint_ended = False

    def to_client(self, data: bytes) -> None:
        self._exchange.count_out(data)
        self._exchange.client.write(data)
        self.touch()

    def to_endpoint(self, data: bytes) -> None:
        self._exchange.count_in(data)
        self._connection.write(data)
        self.touch()

    def endpoint_ended(self) -> bool:
        """The endpoint sends no more. True: the client may still send."""
        self._endpoint_ended = True
        return self._exchange.client.half_close()

    def client_ended(self) -> bool:
        """The client sends no more. True: the endpoint may still send."""
        if self._endpoint_ended or self._connection.transport.is_closing():
            return False
        self._connection.transport.write_eof()
        return True

    def touch(self) -> None:
        """Something moved."""
        client = self._exchange.client
        client.context.wheel.watch_for(client, self._exchange.policy.idle_timeout)
