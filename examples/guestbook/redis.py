"""A Redis client of one screen: RESP over one connection that is made again when it breaks."""

import contextlib
import socket
import threading

from guestbook.resolve import resolve

Reply = bytes | int | None | list["Reply"]

TIMEOUT = 2.0
"""Seconds for connecting, and for each reply."""


class RedisError(Exception):
    """Redis could not be asked, or refused."""


class Redis:
    """Commands to the Redis that `name` resolves to at the time. May be used from several threads."""

    def __init__(self, name: str, port: int) -> None:
        self._name = name
        self._port = port
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def command(self, *words: str | int) -> list[bytes] | None:
        """The reply's strings, if it is a list. A connection that was idle and has broken is replaced once."""
        with self._lock:
            for fresh in (False, True):
                try:
                    if fresh or self._connection is None:
                        self._connection = Connection(resolve(self._name), self._port)
                    reply = self._connection.ask(*words)
                    return [item for item in reply if isinstance(item, bytes)] if isinstance(reply, list) else None
                except OSError as error:
                    self._disconnect()
                    if fresh:
                        raise RedisError(f"{self._name}:{self._port}: {error}") from error
        raise AssertionError("the second attempt returns or raises")

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None


class Connection:
    """Commands and replies in the Redis serialisation protocol (https://redis.io/docs/reference/protocol-spec)."""

    def __init__(self, address: str, port: int) -> None:
        self._socket = socket.create_connection((address, port), TIMEOUT)
        self._file = self._socket.makefile("rb")

    def ask(self, *words: str | int) -> Reply:
        self._socket.sendall(encode(*words))
        return self._reply()

    def _reply(self) -> Reply:
        line = self._file.readline()
        kind, text = line[:1], line[1:].strip()
        match kind:
            case b"+":
                return text
            case b"-":
                raise RedisError(text.decode(errors="replace"))
            case b":":
                return int(text)
            case b"$":
                return None if text == b"-1" else self._file.read(int(text) + 2)[:-2]
            case b"*":
                return [self._reply() for _ in range(int(text))]
            case _:
                raise ConnectionResetError("the connection was closed")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
            self._socket.close()


def encode(*words: str | int) -> bytes:
    """A command as a RESP array of bulk strings."""
    parts = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
