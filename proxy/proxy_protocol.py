"""The PROXY protocol: where a connection really comes from, said in front of it by the proxy that made it (sans-I/O).

Source: "The PROXY protocol, versions 1 & 2" (HAProxy, 2020-03-05). It is no request of the peer's that can be checked,
so it is believed only where a port was told to expect it, and there nothing else is let in.
"""

from __future__ import annotations

import re
import socket
import struct
from typing import NamedTuple

from mesh.proxy.listener import Address, unmapped

MAX_HEADER = 4096
"""Bytes of a version 2 header with all that senders may add (TLS details: some hundred bytes); the standard asks for
536."""

_V1 = b"PROXY "
_V1_LONGEST = 107
_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_V2_START = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21  # version 2, and the command
_FAMILIES = {0x11: (socket.AF_INET, 4), 0x21: (socket.AF_INET6, 16)}  # of TCP; anything else tells no address
_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")
_LINE = re.compile(rb"PROXY TCP([46]) ([0-9a-fA-F.:]+) ([0-9a-fA-F.:]+) (\d{1,5}) (\d{1,5})\r\n")


class Malformed(ValueError):
    """No header of the PROXY protocol."""


class Header(NamedTuple):
    """What was read."""

    length: int
    """Bytes that it takes; behind it comes what the client sent."""
    source: Address | None
    """The client's host and port; None: it says nothing of them, as a proxy's own health check."""


def read_header(data: bytes) -> Header | None:
    """The header that `data` begins with; None if more of it must come.

    Raises:
        Malformed: if that is none.
    """
    if data.startswith(_V1[: len(data)]):
        return _read_line(data)
    if data.startswith(_V2[: len(data)]):
        return _read_binary(data)
    raise Malformed("no PROXY protocol header")


def _read_line(data: bytes) -> Header | None:
    end = data.find(b"\n", 0, _V1_LONGEST) + 1
    if not end:
        if len(data) >= _V1_LONGEST:
            raise Malformed("a PROXY line without an end")
        return None
    if _UNKNOWN.fullmatch(data[:end]):
        return Header(end, None)
    line = _LINE.fullmatch(data[:end])
    if line is None:
        raise Malformed("a PROXY line that cannot be read")
    version, source, destination, source_port, destination_port = (each.decode() for each in line.groups())
    family = socket.AF_INET if version == "4" else socket.AF_INET6
    try:
        host = socket.inet_ntop(family, socket.inet_pton(family, source))
        socket.inet_pton(family, destination)
    except OSError:
        raise Malformed("a PROXY line with what is no address") from None
    if max(int(source_port), int(destination_port)) > 65535:
        raise Malformed("a PROXY line with what is no port")
    return Header(end, (host, int(source_port)))


def _read_binary(data: bytes) -> Header | None:
    if len(data) < _V2_START.size:
        return None
    _, command, family, size = _V2_START.unpack_from(data)
    length = _V2_START.size + size
    if command not in (_LOCAL, _PROXY):
        raise Malformed("a PROXY header of an unknown version or command")
    if length > MAX_HEADER:
        raise Malformed(f"a PROXY header longer than {MAX_HEADER} bytes")
    if len(data) < length:
        return None
    if command == _LOCAL or family not in _FAMILIES:
        return Header(length, None)
    kind, width = _FAMILIES[family]
    if size < 2 * width + 4:
        raise Malformed("a PROXY header too short for its addresses")
    start = _V2_START.size
    source = socket.inet_ntop(kind, data[start : start + width])
    (port,) = struct.unpack_from("!H", data, start + 2 * width)
    return Header(length, (source, port))


def write_header(version: str, source: Address, destination: Address) -> bytes:
    """The header for a connection from `source` to `destination`. `version`: v1 or v2."""
    hosts = source[0], unmapped(destination[0])
    if (":" in hosts[0]) != (":" in hosts[1]):  # the client was named by another proxy, in its own family
        hosts = _mapped(hosts[0]), _mapped(hosts[1])
    six = ":" in hosts[0]
    if version == "v1":
        line = f"PROXY TCP{6 if six else 4} {hosts[0]} {hosts[1]} {source[1]} {destination[1]}\r\n"
        return line.encode()
    family = socket.AF_INET6 if six else socket.AF_INET
    addresses = b"".join(socket.inet_pton(family, host) for host in hosts)
    body = addresses + struct.pack("!HH", source[1], destination[1])
    return _V2_START.pack(_V2, _PROXY, 0x21 if six else 0x11, len(body)) + body


def _mapped(host: str) -> str:
    return host if ":" in host else f"::ffff:{host}"
