"""The heads that we send: rebuilt from what was read, field by field, never patched."""

from __future__ import annotations

from random import getrandbits

from mesh.proxy.http1 import Request, RequestFields, Response

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

REASONS = {
    301: "Moved Permanently", 302: "Found", 303: "See Other", 307: "Temporary Redirect", 308: "Permanent Redirect",
    400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout", 417: "Expectation Failed",
    429: "Too Many Requests", 431: "Request Header Fields Too Large", 502: "Bad Gateway", 503: "Service Unavailable",
    504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip

_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})
"""Methods for which no body is announced as `Content-Length: 0` (RFC 9110, 8.6)."""

_SAMPLED = b"01"
"""In traces that begin here. It leaves the choice to the services: most follow it only if they sample everything."""


class Origin:
    """Whom the requests of a connection come from."""

    __slots__ = ("address", "lines", "scheme", "trusted")

    def __init__(self, address: bytes, scheme: bytes, *, trusted: bool) -> None:
        """`trusted`: its own forwarding fields are kept and added to; else they are replaced."""
        self.address = address
        self.scheme = scheme  # http or https
        self.trusted = trusted
        self.lines = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: " % (address, scheme)

    def client(self, fields: RequestFields) -> bytes:
        """Whom a request comes from; behind a trusted proxy, whom that one names."""
        chain = fields.forwarded.get(b"x-forwarded-for") if self.trusted else None
        return (chain[-1].rpartition(b",")[2].strip() if chain else b"") or self.address

    def asked_scheme(self, fields: RequestFields) -> bytes:
        """How it was asked for; behind a trusted proxy, as that one says."""
        told = fields.forwarded.get(b"x-forwarded-proto", ()) if self.trusted else ()
        return told[0].lower() if len(told) == 1 and told[0].lower() in (b"http", b"https") else self.scheme

    def forwarded(self, fields: RequestFields, host: bytes) -> bytes:
        """The lines that tell the upstream of the client, but for the last line's end."""
        if not (self.trusted and fields.forwarded):
            return self.lines + host
        sent = dict(fields.forwarded)
        chain = b", ".join([*sent.pop(b"x-forwarded-for", ()), self.address])
        proto = sent.pop(b"x-forwarded-proto", [self.scheme])[0]
        first_host = sent.pop(b"x-forwarded-host", [host])[0]
        others = b"".join(b"%b: %b\r\n" % (name, value) for name, values in sent.items() for value in values)
        return b"%bX-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b" % (
            others, chain, proto, first_host,
        )  # fmt: skip


def request_head(request: Request, origin: Origin, service: bytes) -> bytes:
    """The head for the upstream. `service` stands in for a Host that an HTTP/1.0 client did not send."""
    fields = request.fields
    number = b"%032x" % getrandbits(128)  # one for all that is made here: a request's id is also its trace's
    trace = fields.trace
    return b"".join((
        request.method, b" ", request.target, b" HTTP/1.1\r\nHost: ", request.host or service, b"\r\n", fields.lines,
        origin.forwarded(fields, request.asked_host or service),
        b"" if fields.request_id else b"\r\nX-Request-Id: " + number,
        b"\r\ntraceparent: 00-", trace.id if trace else number, b"-", number[16:], b"-",
        trace.flags if trace else _SAMPLED,
        b"\r\nContent-Length: 0\r\n" if request.method in _WITH_BODY and not fields.has_body else b"\r\n",
        fields.framing,
    ))  # fmt: skip


def response_head(response: Response, *, chunked: bool, keep_alive: bool, version: int) -> bytes:
    """The head for the client.

    Args:
        chunked: the body is sent in chunks (never to HTTP/1.0).
        keep_alive: the connection stays open after it.
        version: minor version of the client's HTTP.
    """
    head = response.head
    if chunked:
        head += b"Transfer-Encoding: chunked\r\n"
    if response.status == 101:
        head += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % response.upgrade
    elif not keep_alive:
        head += b"Connection: close\r\n"
    elif version == 0:
        head += b"Connection: keep-alive\r\n"
    return head + b"\r\n"


def error_response(status: int, text: str, *, fields: bytes = b"", head_only: bool, keep_alive: bool) -> bytes:
    """A whole answer of our own: one line of plain text that says what happened and to which service.

    Args:
        fields: further lines of the head.
    """
    body = text.encode("utf-8", "replace") + b"\n"
    connection = b"" if keep_alive else b"Connection: close\r\n"
    head = b"HTTP/1.1 %d %b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n%b%b\r\n" % (
        status, REASONS[status].encode(), len(body), fields, connection,
    )  # fmt: skip
    return head if head_only else head + body
