"""A WebSocket echo, and its load: RFC 6455 framing, as little of it as a fair echo of small messages needs.

python -m bench.proxy.echo PORT                          the server
python -m bench.proxy.echo PORT --load N --seconds S     N connections that each wait for their echo
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import os
from typing import cast

import uvloop

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MESSAGE = b"m" * 100
FRAME = bytes([0x82, 0x80 | len(MESSAGE)]) + bytes(4) + MESSAGE  # masked with zeros
ECHO = bytes([0x82, len(MESSAGE)]) + MESSAGE


class Server(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = b""
        self._open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._open:
            head, end, self._buffer = self._buffer.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            key = next(line.split(b":")[1].strip() for line in head.split(b"\r\n")
                       if line.lower().startswith(b"sec-websocket-key:"))  # fmt: skip
            accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
            self._transport.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                  b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")  # fmt: skip
            self._open = True
        while len(self._buffer) >= len(FRAME):
            self._buffer = self._buffer[len(FRAME) :]
            self._transport.write(ECHO)


class Client(asyncio.Protocol):
    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._buffer = b""
        self._open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(b"GET /ws HTTP/1.1\r\nHost: bench.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                              b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
                              + base64.b64encode(os.urandom(16)) + b"\r\n\r\n")  # fmt: skip

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._open:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self._tally.wrong += 1
                self._transport.abort()
                return
            self._buffer = rest
            self._open = True
            self._transport.write(FRAME)
        while len(self._buffer) >= len(ECHO):
            self._tally.wrong += not self._buffer.startswith(ECHO)
            self._buffer = self._buffer[len(ECHO) :]
            self._tally.echoes += 1
            self._transport.write(FRAME)


class Tally:
    echoes = 0
    wrong = 0


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", port)
    await server.serve_forever()


async def load(port: int, connections: int, seconds: float) -> Tally:
    tally = Tally()
    loop = asyncio.get_running_loop()
    opened = [await loop.create_connection(lambda: Client(tally), "127.0.0.1", port) for _ in range(connections)]
    await asyncio.sleep(seconds)
    for transport, _ in opened:
        tally.wrong += transport.is_closing()
        transport.abort()
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--load", type=int, help="connections; without it, serves")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    if options.load is None:
        uvloop.run(serve(options.port))
    else:
        tally = uvloop.run(load(options.port, options.load, options.seconds))
        print(tally.echoes, tally.wrong)


if __name__ == "__main__":
    main()
