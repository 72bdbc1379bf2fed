"""One line of JSON per request and TCP session: what came, where it went, how long it took, and why it failed.

Requests cost a comparison where they are not sampled, and a few microseconds where they are: lines gather in a bounded
buffer, and a thread of its own appends them to the file, so that a slow disk delays no request. What finds the buffer
full is dropped and counted. A file that was renamed (logrotate) is opened anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import stat
import time
from random import random
from typing import TYPE_CHECKING

import msgspec

from mesh.metrics import Family, Sample

if TYPE_CHECKING:
    from mesh.proxy.exchange import Exchange
    from mesh.proxy.headers import Origin
    from mesh.proxy.http1 import Request
    from mesh.proxy.l4 import TcpSession

log = logging.getLogger(__name__)

FLUSH_EVERY = 0.25
"""Seconds that a line waits at most, where the disk keeps up."""
BATCH = 64 * 1024
"""Bytes that are written without waiting for more."""
MOST_WAITING = 4 * 2**20
"""Bytes of lines in memory; further ones are dropped."""
ATOMIC = 4096
"""Bytes that a pipe takes in one piece (PIPE_BUF, `pipe(7)`), so that lines of several workers do not mix."""
MOST_PATH, MOST_HOST, MOST_ID = 1024, 255, 128
"""Characters of a path, a host and an id, so that a line stays below `ATOMIC`."""
CLOSE_SECONDS = 2.0
"""For the last lines when the proxy ends."""

_REASONS = {404: "no-route", 408: "client-timeout", 429: "rate-limited", 503: "no-endpoint"}
_IDS = re.compile(rb"\r\n(?:x-request-id: ([^\r]*)|traceparent: ..-(.{32}))", re.IGNORECASE)


class Line(msgspec.Struct, kw_only=True):
    """One request or session. Times in seconds; no query, field or body is ever logged."""

    time: str  # of its end, RFC 3339
    kind: str = "http"  # or tcp
    client: str
    service: str = ""
    port: str = ""
    route: str = ""
    method: str = ""
    host: str = ""
    path: str = ""  # without the query
    status: int = 0  # 0: the client left before an answer, or no HTTP
    reason: str = ""  # of a failure, one word
    bytes_in: int = 0
    bytes_out: int = 0
    duration: float = 0.0
    waited: float = 0.0  # in the queue and for tries that failed, until the last try began
    first_byte: float | None = None  # from the start of the last try to the head of its response
    tries: int = 0
    endpoint: str = ""  # of the last try
    request_id: str = ""
    trace_id: str = ""


class AccessLog:
    """Where lines go. `sample`: the share of what went well that is logged; what failed always is."""

    def __init__(self, target: str, sample: float = 1.0) -> None:
        """`target`: a file, or `-` for standard output."""
        self._target = target
        self._sample = sample
        self._encoder = msgspec.json.Encoder()
        self._lines: list[bytes] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None
        self._descriptor = 1 if target == "-" else -1
        self._second = 0
        self._stamp = ""
        self.problem = ""
        self.written = 0
        self.dropped = 0

    # ── what is logged

    def request(self, exchange: Exchange) -> None:
        """A request has ended."""
        failed = exchange.reason or exchange.status >= 500
        if not failed and self._sample < 1.0 and random() >= self._sample:
            return
        now = time.monotonic()
        request = exchange.request
        request_id, trace_id = _ids(exchange.head)
        self._write(
            Line(
                time=self._now(),
                client=_client(exchange.client.origin, request),
                service=exchange.backend.service,
                port=exchange.backend.port,
                route=exchange.route.name if exchange.route is not None else "",
                method=request.method.decode("latin-1"),
                host=_text(request.asked_host, MOST_HOST),
                path=_path(request),
                status=exchange.status,
                reason=exchange.reason,
                bytes_in=exchange.bytes_in,
                bytes_out=exchange.bytes_out,
                duration=round(now - exchange.started, 6),
                waited=round((exchange.sent or now) - exchange.started, 6),
                first_byte=round(exchange.answered - exchange.sent, 6) if exchange.answered else None,
                tries=exchange.tries,
                endpoint=exchange.endpoint,
                request_id=request_id,
                trace_id=trace_id,
            )
        )

    def answered(self, origin: Origin, status: int, request: Request | None = None) -> None:
        """The proxy answered itself: a redirect, or why the request goes nowhere. None: it was not even read."""
        reason = _REASONS.get(status, "bad-request") if status >= 400 else ""
        if not reason and self._sample < 1.0 and random() >= self._sample:
            return
        line = Line(time=self._now(), client=_client(origin, request), status=status, reason=reason)
        if request is not None:
            line.method = request.method.decode("latin-1")
            line.host, line.path = _text(request.asked_host, MOST_HOST), _path(request)
        self._write(line)

    def session(self, session: TcpSession) -> None:
        """A TCP session has ended."""
        if not session.reason and self._sample < 1.0 and random() >= self._sample:
            return
        self._write(
            Line(
                time=self._now(),
                kind="tcp",
                client=session.address[0],
                service=session.backend.service,
                port=session.backend.port,
                reason=session.reason,
                bytes_in=session.bytes_in,
                bytes_out=session.bytes_out,
                duration=round(time.monotonic() - session.started, 6),
                tries=session.tries,
                endpoint=session.endpoint,
            )
        )

    def _now(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._stamp = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._stamp}.{int((now - second) * 1000):03d}Z"

    def _write(self, line: Line) -> None:
        if self._size >= MOST_WAITING:
            self.dropped += 1
            return
        encoded = self._encoder.encode(line)
        self._lines.append(encoded)
        self._size += len(encoded) + 1
        if self._size >= BATCH:
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_EVERY, self._flush)

    # ── where it goes

    def _flush(self) -> None:
        """Hands what has gathered to the thread, unless that is busy: then it comes after."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is None and self._lines:
            lines, self._lines, self._size = self._lines, [], 0
            self._writing = asyncio.get_running_loop().run_in_executor(None, self._append, lines)
            self._writing.add_done_callback(self._appended)

    def _appended(self, _: object) -> None:
        self._writing = None
        if self._lines:
            self._flush()

    def _append(self, lines: list[bytes]) -> None:
        """In the thread: one batch after the other."""
        left = len(lines)
        try:
            self._open()
            regular = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
            for piece in [lines] if regular else _pieces(lines):
                _write_all(self._descriptor, b"\n".join(piece) + b"\n")
                left -= len(piece)
                self.written += len(piece)
        except OSError as error:
            self.dropped += left
            self._say(f"access log: cannot write to {self._target}: {os.strerror(error.errno or 0).lower()}")
        else:
            self._say("")

    def _open(self) -> None:
        """Opens the file, again where it was renamed or removed."""
        if self._target == "-":
            return
        if self._descriptor >= 0:
            try:
                there = os.path.samestat(os.stat(self._target), os.fstat(self._descriptor))
            except FileNotFoundError:
                there = False
            if there:
                return
            os.close(self._descriptor)
            self._descriptor = -1
        self._descriptor = os.open(self._target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _say(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("%s", problem)
        self.problem = problem

    async def close(self) -> None:
        """Writes what is left, if the disk takes it within a while."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CLOSE_SECONDS
        self._flush()
        while self._writing is not None and loop.time() < deadline:
            await asyncio.wait([self._writing], timeout=deadline - loop.time())
            await asyncio.sleep(0)  # `_appended`
        if self._target != "-" and self._descriptor >= 0 and self._writing is None:
            os.close(self._descriptor)
            self._descriptor = -1


def log_families(log: AccessLog | None) -> list[Family]:
    """The log's own metrics; without samples where there is none."""
    written, dropped = ([Sample(log.written)], [Sample(log.dropped)]) if log is not None else ([], [])
    return [
        Family("mesh_proxy_access_log_lines", "Lines written to the access log.", "counter", written),
        Family("mesh_proxy_access_log_dropped", "Lines lost to a slow or full disk.", "counter", dropped),
    ]


def _ids(head: bytes) -> tuple[str, str]:
    """The request's and the trace's, out of the head that was sent."""
    found = ["", ""]
    for match in _IDS.finditer(head):
        for place, value in enumerate(match.groups()):
            if value is not None:
                found[place] = _text(value, MOST_ID)
    return found[0], found[1]


def _client(origin: Origin, request: Request | None) -> str:
    return _text(origin.client(request.fields) if request is not None else origin.address, MOST_HOST)


def _path(request: Request) -> str:
    return _text(request.asked_target.partition(b"?")[0], MOST_PATH)


def _text(data: bytes, most: int) -> str:
    return data[:most].decode("latin-1")


def _pieces(lines: list[bytes]) -> list[list[bytes]]:
    """Whole lines, together no longer than what a pipe takes at once."""
    pieces: list[list[bytes]] = [[]]
    size = 0
    for line in lines:
        size += len(line) + 1
        if size > ATOMIC and pieces[-1]:
            pieces.append([])
            size = len(line) + 1
        pieces[-1].append(line)
    return pieces


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
