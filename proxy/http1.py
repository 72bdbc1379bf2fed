"""Heads of HTTP/1 messages: fields read by llhttp, then judged by us. Sans-I/O.

The parser is llhttp (Node's) through `httptools`: strict out of the box (bare CR or LF, obs-fold, space before the
colon, several Content-Lengths), for 2 MB of memory per worker. aiohttp's exported parser is the same llhttp; it builds
a header map that a proxy does not need, at twice the time and 18 MB, and reads responses leniently. We give llhttp
whole heads, one parser each: it cannot be paused between pipelined messages, nor be told that a response answers HEAD,
so where a body ends is decided in `body.py` alone.

Clients and servers repeat themselves: all but the request line is mostly what it was a moment ago. So what a block of
fields means is remembered, a bounded number of them, and read once.

What is ambiguous is refused, never mended: what two readers could read differently is how requests are smuggled.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import httptools

from mesh.proxy.body import Body, ChunkedBody, LengthBody, Malformed, UntilCloseBody
from mesh.proxy.trace import Trace, parse_traceparent

MAX_HEAD: Final = 32 * 1024
"""Bytes up to the empty line's end."""
MAX_FIELDS: Final = 100
NO_REQUEST: Final = "a request line that is not METHOD TARGET HTTP/1.1"
HEAD_END: Final = b"\r\n\r\n"

_REMEMBERED = 512
_LONGEST_REMEMBERED = 2048  # bytes: at most some 3 MiB per direction

_TARGET_BYTES = rb"\x21\x22\x24-\x7e\x80-\xff"  # no controls, no space, no fragment
_REQUEST_LINE = re.compile(rb"([A-Z][A-Z0-9_-]{0,31}) ([" + _TARGET_BYTES + rb"]+) (?=HTTP/)")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?@]+)([/?].*)?")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::[0-9]{0,5})?")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")

# Fields that a proxy acts on or drops. All others travel as they are.
_HOP_BY_HOP = {
    b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"keep-alive", b"proxy-connection", b"te",
    b"trailer",
}  # fmt: skip
_FORWARDED = {b"forwarded", b"x-real-ip"}  # and all of x-forwarded-…
_OF_REQUESTS = _HOP_BY_HOP | _FORWARDED | {
    b"host", b"expect", b"proxy-authorization", b"x-request-id", b"traceparent", b"tracestate",
}  # fmt: skip
_SENT_AGAIN = {b"x-request-id", b"traceparent", b"tracestate"}  # unless `Connection` names them
_OF_RESPONSES = _HOP_BY_HOP | {b"proxy-authenticate"}
_EXACT = {b"content-length", b"transfer-encoding"}
"""Where even space behind the value is refused."""
_NEVER_NOMINATED = _FORWARDED | {b"host", b"content-length", b"transfer-encoding", b"authorization", b"cookie"}
"""What a client must not have removed on the way by naming it in `Connection`: others rely on it."""


class Refused(Exception):
    """A request that we do not forward: the status to answer with, and why. Its connection is closed."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Spellings(dict[bytes, bytes]):
    """A field's name as spelled → its lower case if a proxy acts on it, else empty. Remembers a bounded number.

    A name that only underscores set apart from one of those (`X_Forwarded_For`) is `_LOOKALIKE`: CGI and WSGI give
    both the same variable.
    """

    def __init__(self, known: set[bytes]) -> None:
        super().__init__()
        self._known = known

    def __missing__(self, name: bytes) -> bytes:
        lower = name.lower()
        dashed = lower.replace(b"_", b"-")
        known = b""
        if dashed in self._known or dashed.startswith(b"x-forwarded-"):
            known = lower if lower == dashed else _LOOKALIKE
        if len(self) < 2048:
            self[name] = known
        return known


_LOOKALIKE = b"_"
_request_spellings = _Spellings(_OF_REQUESTS)
_response_spellings = _Spellings(_OF_RESPONSES)

_Fields = list[tuple[bytes, bytes]]


class _Head:
    """What llhttp tells while it reads one head."""

    __slots__ = ("_spellings", "fields", "known", "reason")

    def __init__(self, spellings: _Spellings) -> None:
        self._spellings = spellings
        self.reason = b""
        self.fields: _Fields = []
        self.known: dict[bytes, list[bytes]] = {}

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        known = self._spellings[name]
        if known not in _EXACT:
            value = value.rstrip(b" \t")  # llhttp takes off what is in front
        if not known:
            self.fields.append((name, value))
        elif known in self.known:
            self.known[known].append(value)
        else:
            self.known[known] = [value]


class RequestFields:
    """What the version and the fields of a request mean; the same object for all requests that have the same."""

    __slots__ = (
        "_known", "chunked", "expect", "fields", "forwarded", "framing", "has_body", "host", "keep_alive", "length",
        "lines", "request_id", "trace", "upgrade", "version",
    )  # fmt: skip

    version: int  # 0 or 1: the minor version
    host: bytes  # empty only in HTTP/1.0
    fields: _Fields  # the end-to-end ones, without those that a proxy acts on
    lines: bytes  # `fields` and what else is sent on the same for all such requests
    framing: bytes  # the lines that say where the body ends and what is hoped for, and the empty line
    length: int  # of the body; 0 also when chunked
    chunked: bool
    has_body: bool  # one that is not empty
    keep_alive: bool  # the client wants the connection kept
    expect: bool  # 100-continue
    upgrade: bytes  # the protocol asked for, or empty
    request_id: bytes  # as sent, if acceptable
    trace: Trace | None  # as sent, if it is one
    forwarded: dict[bytes, list[bytes]]  # forwarding fields as sent: to be believed only of trusted peers

    def __init__(self, known: dict[bytes, list[bytes]]) -> None:
        self._known = known

    def values(self, name: bytes) -> list[bytes]:
        """Of all fields of this name (lower case), as the client sent them."""
        return self._known.get(name) or [value for spelled, value in self.fields if name == spelled.lower()]


class Request:
    """A request head that passed."""

    __slots__ = (
        "asked_host", "asked_target", "chunked", "expect", "fields", "host", "keep_alive", "length", "method", "target",
        "upgrade", "version",
    )  # fmt: skip

    def __init__(self, method: bytes, target: bytes, host: bytes, fields: RequestFields) -> None:
        self.method = method
        self.target = self.asked_target = target  # origin form, or `*`; rules may rewrite the first
        self.host = host  # for the upstream; empty only in HTTP/1.0
        self.asked_host = host  # as the client wrote it
        self.fields = fields
        self.version = fields.version
        self.length = fields.length
        self.chunked = fields.chunked
        self.keep_alive = fields.keep_alive
        self.expect = fields.expect
        self.upgrade = fields.upgrade

    def body(self) -> Body | None:
        """A decoder of the body; None if there is none."""
        if self.chunked:
            return ChunkedBody()
        return LengthBody(self.length) if self.length else None


class Response:
    """A response head that passed; the same object for all that are the same."""

    __slots__ = ("chunked", "head", "keep_alive", "length", "no_body", "status", "upgrade")

    status: int
    head: bytes  # as it is sent on, but for what depends on the client's connection
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


# ── requests


def parse_request(head: bytes) -> Request:
    """A whole request head, up to and with its empty line.

    Raises:
        Refused: 400 if it is not HTTP/1 or ambiguous, 405 for CONNECT, 417, 431 or 505 for what their names say.
    """
    line = _REQUEST_LINE.match(head)
    if line is None:
        raise Refused(400, NO_REQUEST)
    method, target = line.groups()
    if method == b"CONNECT":
        raise Refused(405, "CONNECT: this is no forward proxy")
    rest = head[line.end() :]  # from the version on
    try:
        fields = _remembered_fields(rest) if len(rest) <= _LONGEST_REMEMBERED else _request_fields(rest)
        if target[0] == 0x2F or (target == b"*" and method == b"OPTIONS"):
            return Request(method, target, fields.host, fields)
        return _absolute(method, target, fields)
    except Malformed as error:
        raise Refused(400, str(error)) from None


def _absolute(method: bytes, target: bytes, fields: RequestFields) -> Request:
    match = _ABSOLUTE.fullmatch(target)
    if match is None or _HOST.fullmatch(match[1]) is None:
        raise Malformed("a target that is neither a path nor an absolute http URL")
    rest = match[2] or (b"*" if method == b"OPTIONS" else b"/")  # RFC 9112, 3.2.4
    # RFC 9112, 3.2.2: the authority of the target wins over Host
    return Request(method, b"/" + rest if rest.startswith(b"?") else rest, match[1], fields)


def _request_fields(rest: bytes) -> RequestFields:
    seen = _Head(_request_spellings)
    parser = httptools.HttpRequestParser(seen)
    _read(parser, b"GET / " + rest)
    known = seen.known
    version = _minor_version(parser.get_http_version())
    options = _options(known)
    if sensitive := {option for option in options if option in _NEVER_NOMINATED or option.startswith(b"x-forwarded-")}:
        raise Malformed(f"a Connection field that names {min(sensitive).decode()}")
    for name in _SENT_AGAIN & options:
        known.pop(name, None)
    fields = RequestFields(known)
    fields.version = version
    fields.host = _host(known.get(b"host"), version)
    fields.length, fields.chunked = _framing(known, version)
    fields.has_body = fields.chunked or fields.length > 0
    fields.keep_alive = b"close" not in options and (version == 1 or b"keep-alive" in options)
    fields.expect = _expects(known) and version == 1
    upgrade = _upgrade(known, options) if version == 1 else b""
    # Upgrading to h2c would carry requests past every check here.
    fields.upgrade = b"" if b"h2c" in upgrade.lower() else upgrade
    ids = known.get(b"x-request-id") or [b""]
    fields.request_id = ids[0] if len(ids) == 1 and _REQUEST_ID.fullmatch(ids[0]) else b""
    fields.trace = parse_traceparent(known.get(b"traceparent"))
    fields.forwarded = {name: values for name, values in known.items()
                        if name in _FORWARDED or name.startswith(b"x-forwarded-")}  # fmt: skip
    fields.fields = _end_to_end(seen.fields, options)
    fields.lines = _lines(fields.fields + _sent_anew(fields, known))
    fields.framing = _framing_lines(fields)
    return fields


_remembered_fields = lru_cache(_REMEMBERED)(_request_fields)


def _host(hosts: list[bytes] | None, version: int) -> bytes:
    if hosts is None:
        if version == 1:
            raise Malformed("no Host field")
        return b""
    if len(hosts) > 1:
        raise Malformed("several Host fields")
    if _HOST.fullmatch(hosts[0]) is None:
        raise Malformed("a Host field that names no host")
    return hosts[0]


def _expects(known: dict[bytes, list[bytes]]) -> bool:
    expect = known.get(b"expect")
    if expect and [value.lower() for value in expect] != [b"100-continue"]:
        raise Refused(417, "an expectation other than 100-continue")
    return bool(expect)


def _takes_trailers(known: dict[bytes, list[bytes]]) -> bool:
    codings = b",".join(known.get(b"te", ())).split(b",")
    return any(coding.strip().lower() == b"trailers" for coding in codings)


def _sent_anew(fields: RequestFields, known: dict[bytes, list[bytes]]) -> _Fields:
    """Fields that a proxy acts on and yet sends on."""
    sent = [(b"Via", b"1.%d mesh" % fields.version)]
    if fields.request_id:
        sent.append((b"X-Request-Id", fields.request_id))
    if fields.trace:
        sent += ((b"tracestate", state) for state in known.get(b"tracestate", ()))
    if _takes_trailers(known):
        sent.append((b"TE", b"trailers"))
    return sent


def _framing_lines(fields: RequestFields) -> bytes:
    lines = b""
    if fields.chunked:
        lines = b"Transfer-Encoding: chunked\r\n"
    elif fields.length:
        lines = b"Content-Length: %d\r\n" % fields.length
    if fields.expect:
        lines += b"Expect: 100-continue\r\n"
    if fields.upgrade:
        lines += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % fields.upgrade
    return lines + b"\r\n"


# ── responses


def parse_response(head: bytes, method: bytes) -> Response:
    """A whole response head to a request with `method`, up to and with its empty line.

    Raises:
        Malformed: if it is not HTTP/1 or ambiguous.
    """
    if len(head) <= _LONGEST_REMEMBERED:
        return _remembered_response(head, method == b"HEAD")
    return _response(head, method == b"HEAD")


def _response(head: bytes, to_head: bool) -> Response:
    if not head.startswith(b"HTTP/1."):  # llhttp passes over empty lines, and reads RTSP
        raise Malformed("no status line")
    seen = _Head(_response_spellings)
    parser = httptools.HttpResponseParser(seen)
    try:
        _read(parser, head)
        version = _minor_version(parser.get_http_version())
    except Refused as error:
        raise Malformed(str(error)) from None
    known = seen.known
    response = Response()
    status = response.status = parser.get_status_code()
    if not 100 <= status <= 999:
        raise Malformed(f"status {status}")
    if _VALUE.fullmatch(seen.reason) is None:
        raise Malformed("a control character in the reason")
    length, response.chunked = _framing(known, version)
    response.length = length if b"content-length" in known else None
    options = _options(known)
    response.keep_alive = b"close" not in options and (version == 1 or b"keep-alive" in options)
    response.upgrade = _upgrade(known, options)
    response.no_body = status < 200 or status in (204, 304) or to_head
    fields = _end_to_end(seen.fields, options)
    if response.length is not None and status >= 200 and status != 204:
        fields.append((b"Content-Length", b"%d" % length))
    response.head = b"HTTP/1.1 %d %b\r\n%b" % (status, seen.reason, _lines(fields))
    return response


_remembered_response = lru_cache(_REMEMBERED)(_response)


# ── both


def _read(parser: httptools.HttpRequestParser | httptools.HttpResponseParser, head: bytes) -> None:
    if head.count(b"\r\n") > MAX_FIELDS + 2:  # the start line and the empty one
        raise Refused(431, f"more than {MAX_FIELDS} fields")
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # the whole head was read; what follows is ours to decide
    except httptools.HttpParserError as error:
        raise Malformed(str(error).lower() or "not HTTP/1") from None


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
    return frozenset(option.strip().lower() for value in values for option in value.split(b","))


_NO_OPTIONS: frozenset[bytes] = frozenset()
_KEPT_OPTIONS = frozenset({b"close", b"keep-alive", b"upgrade", b""})


def _upgrade(known: dict[bytes, list[bytes]], options: frozenset[bytes]) -> bytes:
    upgrade = known.get(b"upgrade", ())
    return upgrade[0] if len(upgrade) == 1 and b"upgrade" in options else b""


def _end_to_end(fields: _Fields, options: frozenset[bytes]) -> _Fields:
    """Without the fields that `Connection` nominates."""
    if nominated := options - _KEPT_OPTIONS:
        return [field for field in fields if field[0].lower() not in nominated]
    return fields


def _lines(fields: _Fields) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])
