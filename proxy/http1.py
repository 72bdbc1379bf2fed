"""Heads of HTTP/1 messages: read by llhttp, then judged by us. Sans-I/O.

The parser is llhttp (Node's) through `httptools`: 1.6 µs for a small head and strict out of the box (bare CR or LF,
obs-fold, space before the colon, several Content-Lengths), for 2 MB of memory per worker. aiohttp's exported parser
is the same llhttp; it builds a header map that a proxy does not need, at twice the time and 18 MB, and reads
responses leniently. We give llhttp whole heads, one parser each: it cannot be paused between pipelined messages,
nor be told that a response answers HEAD, so where a body ends is decided in `body.py` alone.

What is ambiguous is refused, never mended: what two readers could read differently is how requests are smuggled.
"""

from __future__ import annotations

import re
from typing import Final

import httptools

from mesh.proxy.body import Body, ChunkedBody, LengthBody, Malformed, UntilCloseBody

MAX_HEAD: Final = 32 * 1024
MAX_FIELDS: Final = 100
HEAD_END: Final = b"\r\n\r\n"

_TARGET = re.compile(rb"[\x21\x22\x24-\x7e\x80-\xff]+")  # no controls, no space, no fragment
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?@]+)([/?].*)?")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(?::[0-9]{0,5})?")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")

# Fields that a proxy acts on or drops. All others travel as they are.
_HOP_BY_HOP = {
    b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"keep-alive", b"proxy-connection", b"te",
    b"trailer",
}  # fmt: skip
FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded", b"x-real-ip"})
_OF_REQUESTS = _HOP_BY_HOP | FORWARDED | {b"host", b"expect", b"proxy-authorization", b"x-request-id"}
_OF_RESPONSES = _HOP_BY_HOP | {b"proxy-authenticate"}


class Refused(Exception):
    """A request that we do not forward: the status to answer with, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Spellings(dict[bytes, bytes]):
    """A field's name as spelled → its lower case if a proxy acts on it, else empty. Remembers a bounded number."""

    def __init__(self, known: set[bytes]) -> None:
        super().__init__()
        self._known = known

    def __missing__(self, name: bytes) -> bytes:
        lower = name.lower()
        known = lower if lower in self._known else b""
        if len(self) < 2048:
            self[name] = known
        return known


_request_spellings = _Spellings(_OF_REQUESTS)
_response_spellings = _Spellings(_OF_RESPONSES)


class _Head:
    """What llhttp tells while it reads one head."""

    __slots__ = ("_spellings", "fields", "known", "start")

    def __init__(self, spellings: _Spellings) -> None:
        self._spellings = spellings
        self.start = b""  # target of a request, reason of a response
        self.fields: list[tuple[bytes, bytes]] = []
        self.known: dict[bytes, list[bytes]] = {}

    def on_url(self, target: bytes) -> None:
        self.start += target

    def on_status(self, reason: bytes) -> None:
        self.start += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        known = self._spellings[name]
        if not known:
            self.fields.append((name, value))
        elif known in self.known:
            self.known[known].append(value)
        else:
            self.known[known] = [value]


class Request:
    """A request head that passed: `fields` are the end-to-end ones without those that a proxy acts on."""

    __slots__ = (
        "chunked", "expect", "fields", "forwarded", "host", "keep_alive", "length", "method", "request_id", "target",
        "upgrade", "version",
    )  # fmt: skip

    method: bytes
    target: bytes  # origin form, or `*`
    host: bytes  # empty only in HTTP/1.0
    version: int  # 0 or 1: the minor version
    fields: list[tuple[bytes, bytes]]
    length: int  # of the body; 0 also when chunked
    chunked: bool
    keep_alive: bool  # the client wants the connection kept
    expect: bool  # 100-continue
    upgrade: bytes  # the protocol asked for, or empty
    request_id: bytes  # as sent, if acceptable
    forwarded: dict[bytes, list[bytes]]  # forwarding fields as sent: to be believed only of trusted peers

    def body(self) -> Body | None:
        """A decoder of the body; None if there is none."""
        if self.chunked:
            return ChunkedBody()
        return LengthBody(self.length) if self.length else None


class Response:
    """A response head that passed; `fields` as in `Request`."""

    __slots__ = ("chunked", "fields", "keep_alive", "length", "no_body", "reason", "status", "upgrade")

    status: int
    reason: bytes
    fields: list[tuple[bytes, bytes]]
    length: int | None  # as announced, also where no body follows (HEAD, 304)
    chunked: bool
    no_body: bool
    keep_alive: bool  # the upstream lets us use the connection again
    upgrade: bytes

    def body(self) -> Body | None:
        """A decoder of the body; None if there is none."""
        if self.no_body or self.length == 0:
            return None
        if self.chunked:
            return ChunkedBody()
        return UntilCloseBody() if self.length is None else LengthBody(self.length)


def _read(parser: httptools.HttpRequestParser | httptools.HttpResponseParser, head: bytes) -> None:
    if head.count(b"\r\n") > MAX_FIELDS + 2:  # the start line and the empty one
        raise Refused(431, f"more than {MAX_FIELDS} fields")
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # the whole head was read; what follows is ours to decide
    except httptools.HttpParserError as error:
        raise Malformed(str(error).lower() or "not HTTP/1") from None


def parse_request(head: bytes) -> Request:
    """A whole request head, up to and with its empty line.

    Raises:
        Refused: 400 if it is not HTTP/1 or ambiguous, 405 for CONNECT, 417, 431 or 505 for what their names say.
    """
    seen = _Head(_request_spellings)
    parser = httptools.HttpRequestParser(seen)
    try:
        _read(parser, head)
        return _request(parser, seen)
    except Malformed as error:
        raise Refused(400, str(error)) from None


def _request(parser: httptools.HttpRequestParser, seen: _Head) -> Request:
    known = seen.known
    request = Request()
    request.method = parser.get_method()
    request.version = _minor_version(parser.get_http_version())
    request.fields = seen.fields
    request.length, request.chunked = _framing(known, request.version)
    if known.keys() <= _PLAIN and request.version == 1:
        request.keep_alive, request.expect, request.upgrade = True, False, b""
        request.request_id, request.forwarded = b"", _NOTHING
    else:
        _connection_fields(request, seen)
    _target(request, seen.start, known.get(b"host"))
    return request


_PLAIN = frozenset({b"host", b"content-length"})
_NOTHING: dict[bytes, list[bytes]] = {}


def _connection_fields(request: Request, seen: _Head) -> None:
    known = seen.known
    options = _options(known)
    request.keep_alive = b"close" not in options and (request.version == 1 or b"keep-alive" in options)
    request.fields = _end_to_end(seen.fields, options)
    upgrade = known.get(b"upgrade") or [b""]
    wanted = len(upgrade) == 1 and b"upgrade" in options and request.version == 1
    # Upgrading to h2c would carry requests past every check here.
    request.upgrade = upgrade[0] if wanted and upgrade[0].lower() != b"h2c" else b""
    expect = known.get(b"expect")
    if expect and [value.lower() for value in expect] != [b"100-continue"]:
        raise Refused(417, "an expectation other than 100-continue")
    request.expect = bool(expect) and request.version == 1
    ids = known.get(b"x-request-id") or [b""]
    request.request_id = ids[0] if len(ids) == 1 and _REQUEST_ID.fullmatch(ids[0]) else b""
    request.forwarded = {name: known[name] for name in FORWARDED & known.keys()}


def _target(request: Request, target: bytes, hosts: list[bytes] | None) -> None:
    if request.method == b"CONNECT":
        raise Refused(405, "CONNECT: this is no forward proxy")
    if _TARGET.fullmatch(target) is None:
        raise Malformed("a control character, space or fragment in the target")
    if hosts is None:
        if request.version == 1:
            raise Malformed("no Host field")
        request.host = b""
    elif len(hosts) > 1:
        raise Malformed("several Host fields")
    elif _HOST.fullmatch(hosts[0]) is None:
        raise Malformed("a Host field that names no host")
    else:
        request.host = hosts[0]
    if target[0] == 0x2F or (target == b"*" and request.method == b"OPTIONS"):
        request.target = target
        return
    match = _ABSOLUTE.fullmatch(target)
    if match is None or _HOST.fullmatch(match[1]) is None:
        raise Malformed("a target that is neither a path nor an absolute http URL")
    request.host = match[1]  # RFC 9112, 3.2.2: the authority of the target wins over Host
    rest = match[2] or b"/"
    request.target = rest if rest.startswith(b"/") else b"/" + rest


def parse_response(head: bytes, method: bytes) -> Response:
    """A whole response head to a request with `method`, up to and with its empty line.

    Raises:
        Malformed: if it is not HTTP/1 or ambiguous.
    """
    seen = _Head(_response_spellings)
    parser = httptools.HttpResponseParser(seen)
    try:
        _read(parser, head)
        return _response(parser, seen, method)
    except Refused as error:
        raise Malformed(str(error)) from None


def _response(parser: httptools.HttpResponseParser, seen: _Head, method: bytes) -> Response:
    known = seen.known
    response = Response()
    status = response.status = parser.get_status_code()
    if not 100 <= status <= 999:
        raise Malformed(f"status {status}")
    if _VALUE.fullmatch(seen.start) is None:
        raise Malformed("a control character in the reason")
    version = _minor_version(parser.get_http_version())
    response.reason = seen.start
    length, response.chunked = _framing(known, version)
    response.length = length if b"content-length" in known else None
    options = _options(known)
    response.keep_alive = version == 1 and b"close" not in options
    response.fields = _end_to_end(seen.fields, options)
    upgrade = known.get(b"upgrade") or [b""]
    response.upgrade = upgrade[0] if b"upgrade" in options else b""
    response.no_body = status < 200 or status in (204, 304) or method == b"HEAD"
    return response


def _minor_version(version: str) -> int:
    if version == "1.1":
        return 1
    if version == "1.0":
        return 0
    raise Refused(505, f"HTTP/{version}")


def _framing(known: dict[bytes, list[bytes]], version: int) -> tuple[int, bool]:
    """The body's length and whether it is chunked."""
    encodings = known.get(b"transfer-encoding")
    lengths = known.get(b"content-length")
    if encodings is not None:
        if lengths is not None:
            raise Malformed("both Content-Length and Transfer-Encoding")
        if version == 0:
            raise Malformed("Transfer-Encoding in HTTP/1.0")
        if len(encodings) > 1 or encodings[0].lower() != b"chunked":
            raise Malformed("a Transfer-Encoding other than chunked")
        return 0, True
    if lengths is None:
        return 0, False
    if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > 18:
        raise Malformed("a Content-Length that is not one number")
    return int(lengths[0]), False


def _options(known: dict[bytes, list[bytes]]) -> frozenset[bytes]:
    """The options and field names that `Connection` lists, in lower case."""
    values = known.get(b"connection")
    if values is None:
        return _NO_OPTIONS
    if len(values) == 1 and (common := _COMMON_OPTIONS.get(values[0])) is not None:
        return common
    return frozenset(option.strip().lower() for value in values for option in value.split(b","))


_NO_OPTIONS: frozenset[bytes] = frozenset()
_COMMON_OPTIONS = {name: frozenset({name.lower()}) for name in (b"keep-alive", b"Keep-Alive", b"close")}
_KEPT_OPTIONS = frozenset({b"close", b"keep-alive", b"upgrade", b""})


def _end_to_end(fields: list[tuple[bytes, bytes]], options: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    """Without the fields that `Connection` nominates."""
    if nominated := options - _KEPT_OPTIONS:
        return [field for field in fields if field[0].lower() not in nominated]
    return fields
