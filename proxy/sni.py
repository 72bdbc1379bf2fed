"""Whom a TLS client asks for, read off its first message without taking part in the handshake (sans-I/O).

Source: RFC 8446, 4.1.2 (ClientHello) and 5.1 (records, over which it may be spread); RFC 6066, 3 (server name).
"""

from __future__ import annotations

MAX_HELLO = 16 * 1024
"""Bytes until the message must be whole. Clients send 0.2 to 2 KiB."""
MAX_RECORDS = 128
"""Over which it may be spread: one byte at a time in records of one byte would be dear to read."""

ALERT_UNRECOGNIZED_NAME = b"\x15\x03\x01\x00\x02\x02\x70"
"""What tells a TLS client that nobody of that name is here (RFC 6066)."""

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0
_MAX_RECORD = 2**14


class Malformed(ValueError):
    """No ClientHello."""


def read_server_name(data: bytes) -> str | None:
    """The name that the client asks for, in lower case, "" if it names none; None if more bytes must come.

    Raises:
        Malformed: if this is not the beginning of TLS, or too long.
    """
    message = _handshake_message(data)
    if message is not None:
        return _server_name(message)
    if len(data) >= MAX_HELLO:
        raise Malformed(f"a ClientHello longer than {MAX_HELLO} bytes")
    return None


def _handshake_message(data: bytes) -> bytes | None:
    """The ClientHello out of its records; None if it is not whole."""
    message = b""
    at = records = 0
    while at < len(data):
        if data[at] != _HANDSHAKE or data[at + 1 : at + 2] not in (b"", b"\x03"):
            raise Malformed("no TLS handshake")
        size = int.from_bytes(data[at + 3 : at + 5], "big")
        if len(data) >= at + 5 and not 0 < size <= _MAX_RECORD:
            raise Malformed("a TLS record of an impossible length")
        records += 1
        if records > MAX_RECORDS:
            raise Malformed(f"a ClientHello in more than {MAX_RECORDS} records")
        message += data[at + 5 : at + 5 + size]
        at += 5 + size
        if message and message[0] != _CLIENT_HELLO:
            raise Malformed("no ClientHello")
        if len(message) >= 4:
            length = int.from_bytes(message[1:4], "big")
            if length > MAX_HELLO:
                raise Malformed(f"a ClientHello longer than {MAX_HELLO} bytes")
            if len(message) >= 4 + length:
                return message[4 : 4 + length]
    return None


class _Reader:
    """Takes vectors off a message, each with its length in front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) < size:
            raise Malformed("a ClientHello that ends too soon")
        self._at += size
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, length_size: int) -> bytes:
        return self.take(self.number(length_size))


def _server_name(message: bytes) -> str:
    hello = _Reader(message)
    hello.take(2 + 32)  # version, random
    for length_size in (1, 2, 1):  # session id, cipher suites, compression methods
        hello.vector(length_size)
    extensions = _Reader(hello.vector(2) if hello else b"")
    while extensions:
        kind, body = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME:
            return _host_name(body)
    return ""


def _host_name(body: bytes) -> str:
    names = _Reader(_Reader(body).vector(2))
    while names:
        kind, name = names.number(1), names.vector(2)
        if kind == _HOST_NAME:
            if not 0 < len(name) <= 255 or not name.isascii() or not name.decode("ascii").isprintable():
                raise Malformed("a server name that is none")
            return name.decode("ascii").removesuffix(".").lower()
    return ""
