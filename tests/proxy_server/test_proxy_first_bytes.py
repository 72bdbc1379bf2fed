"""What a connection begins with: PROXY protocol headers and ClientHellos, whole, in pieces, and broken."""

from __future__ import annotations

import random
import socket
import ssl
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.proxy import proxy_protocol, sni
from mesh.proxy.proxy_protocol import Header, read_header, write_header
from mesh.proxy.sni import read_server_name

# ── PROXY protocol

_PORTS = st.integers(0, 65535)
_V4 = st.tuples(st.ip_addresses(v=4).map(str), _PORTS)
_V6 = st.tuples(st.ip_addresses(v=6).map(str), _PORTS)


def plain(host: str) -> str:
    """As the C library writes it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.inet_ntop(family, socket.inet_pton(family, host))


@given(st.sampled_from(["v1", "v2"]), st.tuples(_V4, _V4) | st.tuples(_V6, _V6), st.binary(max_size=30))
def test_what_is_written_is_read(version: str, ends: tuple[tuple[str, int], tuple[str, int]], rest: bytes) -> None:
    source, destination = ends
    written = write_header(version, source, destination)
    assert read_header(written + rest) == Header(len(written), (plain(source[0]), source[1]))


@given(st.sampled_from(["v1", "v2"]), _V4, _V6)
def test_two_families_are_told_in_one(version: str, client: tuple[str, int], us: tuple[str, int]) -> None:
    header = read_header(write_header(version, client, us))
    assert header is not None
    assert header.source == (plain(f"::ffff:{client[0]}"), client[1])


@given(st.sampled_from(["v1", "v2"]), st.tuples(_V4, _V4) | st.tuples(_V6, _V6))
def test_nothing_is_decided_before_the_header_is_whole(
    version: str, ends: tuple[tuple[str, int], tuple[str, int]]
) -> None:
    written = write_header(version, *ends)
    assert all(read_header(written[:size]) is None for size in range(len(written)))


@pytest.mark.parametrize(
    ("data", "source"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", ("192.0.2.1", 56324)),
        (b"PROXY TCP6 2001:DB8::1 2001:db8::2 1 65535\r\n", ("2001:db8::1", 1)),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
    ],
)
def test_lines(data: bytes, source: tuple[str, int] | None) -> None:
    """Those of the standard."""
    assert read_header(data + b"GET / HTTP/1.0\r\n") == Header(len(data), source)


def v2(command: int, family: int, body: bytes) -> bytes:
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", command, family, len(body)) + body


_TCP4 = bytes([192, 0, 2, 1, 192, 0, 2, 2]) + struct.pack("!HH", 4711, 443)


@pytest.mark.parametrize(
    ("data", "source"),
    [
        (v2(0x21, 0x11, _TCP4), ("192.0.2.1", 4711)),
        (v2(0x21, 0x11, _TCP4 + b"\x20\x00\x05\x01\x00\x00\x00\x00"), ("192.0.2.1", 4711)),  # TLS details behind it
        (v2(0x20, 0x11, _TCP4), None),  # LOCAL: a health check of the proxy's own
        (v2(0x20, 0x00, b""), None),
        (v2(0x21, 0x00, b"what is this"), None),  # UNSPEC
        (v2(0x21, 0x31, bytes(216)), None),  # a unix socket
        (v2(0x21, 0x12, _TCP4), None),  # UDP
    ],
)
def test_binary_headers(data: bytes, source: tuple[str, int] | None) -> None:
    assert read_header(data + b"rest") == Header(len(data), source)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"PROXZ",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443 \r\n",
        b"PROXY  TCP4 192.0.2.1 192.0.2.2 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 443\r\n",
        b"PROXY TCP4 192.0.2.256 192.0.2.2 1 443\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 1 443\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.2 1 443\r\n",
        b"PROXY TCP5 192.0.2.1 192.0.2.2 1 443\r\n",
        b"PROXY UNKNOWN" + b"x" * 100,
        v2(0x11, 0x11, _TCP4),  # version 1 in binary
        v2(0x22, 0x11, _TCP4),  # no such command
        v2(0x21, 0x11, _TCP4[:-1]),
        v2(0x21, 0x21, _TCP4),
        v2(0x21, 0x11, bytes(proxy_protocol.MAX_HEADER)),
    ],
)
def test_what_is_no_header(data: bytes) -> None:
    with pytest.raises(proxy_protocol.Malformed):
        read_header(data)


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda rest: b"PROXY TCP4 " + rest)
       | st.binary(max_size=200).map(lambda rest: b"\r\n\r\n\0\r\nQUIT\n" + rest))  # fmt: skip
def test_anything_is_a_header_or_none_or_not_yet(data: bytes) -> None:
    try:
        header = read_header(data)
    except proxy_protocol.Malformed:
        return
    assert header is None or header.length <= len(data)


# ── ClientHello


def client_hello(name: str | None, *, newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> bytes:
    """As OpenSSL sends it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.maximum_version = newest
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def vector(size: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return len(body).to_bytes(size, "big") + body


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, body)


def server_name(name: bytes) -> bytes:
    return extension(0, vector(2, b"\0" + vector(2, name)))


def handmade(*extensions: bytes) -> bytes:
    """The handshake message of a ClientHello."""
    body = b"\x03\x03" + bytes(32) + vector(1, bytes(32)) + vector(2, b"\x13\x01\x1a\x1a") + vector(1, b"\0")
    return b"\x01" + vector(3, body, vector(2, *extensions) if extensions else b"")


def records(message: bytes, *sizes: int) -> bytes:
    """The message over records of these sizes, the last with what remains."""
    pieces, at = [], 0
    for size in sizes:
        pieces.append(message[at : at + size])
        at += size
    return b"".join(b"\x16\x03\x01" + vector(2, piece) for piece in [*pieces, message[at:]] if piece)


GREASE = extension(0x2A2A, b"") + extension(0xEAEA, b"\0")


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_name_that_openssl_asks_for(newest: ssl.TLSVersion) -> None:
    hello = client_hello("Shop.Example.com", newest=newest)
    assert read_server_name(hello + b"early data") == "shop.example.com"
    assert all(read_server_name(hello[:size]) is None for size in range(len(hello)))
    assert read_server_name(client_hello(None, newest=newest)) == ""


def test_names_among_what_is_unknown() -> None:
    assert read_server_name(records(handmade(GREASE, server_name(b"a.b."), GREASE))) == "a.b"
    assert read_server_name(records(handmade(GREASE))) == ""
    assert read_server_name(records(handmade())) == ""
    other_kind = extension(0, vector(2, b"\x07" + vector(2, b"what?"), b"\0" + vector(2, b"a.b")))
    assert read_server_name(records(handmade(other_kind))) == "a.b"


@given(st.lists(st.integers(1, 60), max_size=12))
def test_a_hello_spread_over_records(sizes: list[int]) -> None:
    message = handmade(GREASE, server_name(b"shop.example.com"))
    spread = records(message, *sizes)
    assert read_server_name(spread) == "shop.example.com"
    assert read_server_name(spread[:-1]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x80\x2e\x01\x03\x01",  # SSL 2
        b"\x15\x03\x01\x00\x02\x02\x70",  # an alert
        b"\x16\x02\x00\x00\x05\x01",
        b"\x16\x03\x01\x00\x00\x16\x03\x01",  # an empty record
        b"\x16\x03\x01\x40\x01\x01",  # a record above 2¹⁴
        records(b"\x02" + vector(3, bytes(40))),  # a ServerHello
        records(b"\x01\x00\x50\x00"),  # a message of 20 KiB
        records(b"\x01" + vector(3, b"\x03\x03")),
        records(handmade(server_name(b""))),
        records(handmade(server_name(b"a\0b"))),
        records(handmade(server_name(b"caf\xc3\xa9"))),
        records(handmade(server_name(b"a" * 256))),
        records(handmade(extension(0, b"\0\x09\0"))),
        records(b"\x01" + vector(3, handmade(server_name(b"a.b"))[4:-3])),  # cut off within
    ],
)
def test_what_is_no_hello(data: bytes) -> None:
    with pytest.raises(sni.Malformed):
        read_server_name(data)


def test_a_hello_without_end() -> None:
    endless = records(b"\x01\x00\x3f\xff" + bytes(16000), *[1] * 16000)
    with pytest.raises(sni.Malformed):
        read_server_name(endless[: sni.MAX_HELLO])


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda rest: b"\x16\x03\x01" + rest))
def test_anything_is_a_hello_or_none_or_not_yet(data: bytes) -> None:
    try:
        read_server_name(data)
    except sni.Malformed:
        pass


@given(st.integers(), st.integers(1, 8))
def test_a_damaged_hello_does_no_harm(seed: int, damages: int) -> None:
    dice = random.Random(seed)
    data = bytearray(records(handmade(GREASE, server_name(b"shop.example.com"), GREASE)))
    for _ in range(damages):
        data[dice.randrange(len(data))] = dice.randrange(256)
    try:
        name = read_server_name(bytes(data))
    except sni.Malformed:
        return
    assert name is None or name.isascii()
