"""Admin HTTP of every process: health, metrics, the Table and its load; on an agent also replicas, their logs, exec.

`/healthz /readyz /metrics /v1/table /v1/stats /v1/waiting /v1/replicas` answer anybody who can connect (by default:
this machine).
Logs and exec need `Authorization: Bearer <token>`, the token of the state folder's `admin.token`. On loopback
a request whose Host is a foreign name is refused, so that no web page reaches it through DNS rebinding.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
from aiohttp import web

from mesh.dataplane.load import LoadReport, ReplicaUsage
from mesh.dataplane.waiting import WaitingReport
from mesh.metrics import Family, render
from mesh.model import ReplicaReport
from mesh.runtime import ExecResult, RuntimeFault
from mesh.startup import StartError
from mesh.table import Table

log = logging.getLogger(__name__)

MAX_BODY = 64 * 1024
MAX_STREAMS = 64
"""Logs and exec calls at one time."""
MAX_WAITS = 64
"""Questions who waits, at one time."""
LONGEST_WAIT = 60.0
"""Seconds that the answer to one may take."""
EXEC_TIMEOUT = 60.0
LONGEST_EXEC = 3600.0


class Replicas(Protocol):
    """What an agent lets people do with its replicas. Faults are `RuntimeFault`."""

    def list(self) -> Sequence[ReplicaReport]: ...

    def logs(self, id: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]: ...

    async def exec(self, id: str, command: Sequence[str], *, timeout: float) -> ExecResult: ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the answers come from."""

    waiting_for: Callable[[], list[str]]  # why it is not ready; empty when it is
    metrics: Callable[[], Awaitable[list[Family]]]
    table: Callable[[], Table | None] | None = None
    replicas: Replicas | None = None
    status: Callable[[], object] | None = None  # the scheduler's
    autoscale: Callable[[str], object] | None = None  # of the scheduler: a service's; None: nothing is known of it
    load: Callable[[], Awaitable[LoadReport]] | None = None  # of the proxy
    waiting: Callable[[int | None, float], Awaitable[WaitingReport]] | None = None  # since a version; for seconds
    usage: Callable[[Collection[str]], Awaitable[dict[str, ReplicaUsage]]] | None = None  # of these services' replicas


class ExecRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    command: list[str]
    timeout: float = EXEC_TIMEOUT


class ExecAnswer(msgspec.Struct, frozen=True):
    code: int
    output: str


def admin_token(state: Path) -> str:
    """`MESH_ADMIN_TOKEN`, or the one in `<state>/admin.token`, which is made if it is not there."""
    if token := os.environ.get("MESH_ADMIN_TOKEN"):
        return token
    path = state / "admin.token"
    with contextlib.suppress(FileNotFoundError):
        if token := path.read_text().strip():
            return token
    token = secrets.token_urlsafe(32)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(token)
    return token


class Admin:
    """The HTTP server. `address` is its base URL once it is started."""

    def __init__(self, listen: str, sources: Sources, token: str | None = None) -> None:
        host, _, port = listen.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._sources = sources
        self._token = token
        self._runner: web.AppRunner | None = None
        self._streams = asyncio.Semaphore(MAX_STREAMS)
        self._waits = asyncio.Semaphore(MAX_WAITS)
        self.address = f"http://{listen}"

    async def start(self) -> None:
        """Raises `StartError` if it cannot listen."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        if self._sources.table:
            app.router.add_get("/v1/table", self._table)
        if self._sources.load:
            app.router.add_get("/v1/stats", self._stats)
        if self._sources.waiting:
            app.router.add_get("/v1/waiting", self._waiting)
        if self._sources.status:
            app.router.add_get("/v1/status", self._status)
        if self._sources.autoscale:
            app.router.add_get("/v1/autoscale/{service}", self._autoscale)
        if self._sources.replicas:
            app.router.add_get("/v1/replicas", self._replicas)
            app.router.add_get("/v1/replicas/{id}/logs", self._logs)
            app.router.add_post("/v1/replicas/{id}/exec", self._exec)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port, reuse_address=True)
        try:
            await site.start()
        except OSError as error:
            raise StartError(
                f"admin HTTP cannot listen on {self._host}:{self._port}: {os.strerror(error.errno or 0)}: "
                "choose another address with --admin-listen (--admin of mesh dns and mesh proxy)"
            ) from None
        if self._port == 0:
            self.address = f"http://{self._host}:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    # ── who may ask ──────────────────────────────────────────────────────────────────────────

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if _is_loopback(self._host) and not _names_this_machine(request.host):
            raise web.HTTPForbidden(text=f"Host {request.host!r} is not this machine: use its address or localhost\n")
        try:
            return await handler(request)
        except RuntimeFault as fault:
            raise web.HTTPConflict(text=f"{fault}\n") from None

    def _authorize(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if not self._token or not hmac.compare_digest(given.encode(), self._token.encode()):
            raise web.HTTPUnauthorized(
                text="needs `Authorization: Bearer <token>`: the token is in the state folder's admin.token, "
                "the CLI takes it from MESH_ADMIN_TOKEN\n",
                headers={"WWW-Authenticate": "Bearer"},
            )

    # ── answers ──────────────────────────────────────────────────────────────────────────────

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        reasons = self._sources.waiting_for()
        return web.Response(status=503 if reasons else 200, text="\n".join(reasons or ["ok"]) + "\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        body = render(await self._sources.metrics())
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _table(self, _: web.Request) -> web.Response:
        table = self._sources.table() if self._sources.table else None
        if table is None:
            raise web.HTTPServiceUnavailable(text="no Table yet\n")
        return _json(table)

    async def _stats(self, request: web.Request) -> web.Response:
        """`?usage=web,api`: with the CPU and memory of these services' replicas; `?active=1`: without idle services."""
        report = await self._sources.load() if self._sources.load else None
        if report and request.query.get("active"):
            report = msgspec.structs.replace(
                report, services={name: each for name, each in report.services.items() if each.active}
            )
        if report and self._sources.usage and (services := request.query.get("usage")):
            report = msgspec.structs.replace(report, usage=await self._sources.usage(services.split(",")))
        return _json(report)

    async def _waiting(self, request: web.Request) -> web.Response:
        assert self._sources.waiting is not None  # else there is no such path
        wait, since = request.query.get("wait", "0"), request.query.get("since", "")
        if not _SECONDS.fullmatch(wait):
            raise web.HTTPBadRequest(text=f"wait: must be a number of seconds, got {wait!r}\n")
        if since and not _VERSION.fullmatch(since):
            raise web.HTTPBadRequest(text=f"since: must be the `version` of an answer, got {since!r}\n")
        if self._waits.locked():
            raise web.HTTPTooManyRequests(text=f"{MAX_WAITS} others ask already\n")
        async with self._waits:
            return _json(await self._sources.waiting(int(since) if since else None, min(float(wait), LONGEST_WAIT)))

    async def _status(self, _: web.Request) -> web.Response:
        return _json(self._sources.status() if self._sources.status else None)

    async def _autoscale(self, request: web.Request) -> web.Response:
        service = request.match_info["service"]
        told = self._sources.autoscale(service) if self._sources.autoscale else None
        if told is None:
            raise web.HTTPNotFound(text=f"this scheduler does not lead, or {service!r} does not follow its load\n")
        return _json(told)

    async def _replicas(self, _: web.Request) -> web.Response:
        return _json(self._agent.list())

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        self._authorize(request)
        tail = request.query.get("tail")
        if tail is not None and not tail.isdecimal():
            raise web.HTTPBadRequest(text=f"tail: must be a count of lines, got {tail!r}\n")
        follow = request.query.get("follow", "") in ("1", "true")
        lines = self._agent.logs(
            self._known(request), follow=follow, tail=int(tail) if tail else None
        )  # fmt: skip
        async with self._stream():
            first = await anext(lines, None)  # a fault becomes a status only before the first byte
            response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
            await response.prepare(request)
            if first is not None:
                await response.write(first)
                async for line in lines:
                    await response.write(line)
            await response.write_eof()
        return response

    async def _exec(self, request: web.Request) -> web.Response:
        self._authorize(request)
        try:
            asked = msgspec.json.decode(await request.read(), type=ExecRequest)
        except msgspec.DecodeError as error:
            raise web.HTTPBadRequest(text=f'wants {{"command": ["…"], "timeout": 60}}: {error}\n') from None
        if not asked.command or not 0 < asked.timeout <= LONGEST_EXEC:
            raise web.HTTPBadRequest(text=f"needs a command, and a timeout up to {LONGEST_EXEC:g} s\n")
        async with self._stream():
            result = await self._agent.exec(self._known(request), asked.command, timeout=asked.timeout)
        return _json(ExecAnswer(result.code, result.output.decode(errors="replace")))

    @contextlib.asynccontextmanager
    async def _stream(self) -> AsyncIterator[None]:
        if self._streams.locked():
            raise web.HTTPTooManyRequests(text=f"{MAX_STREAMS} logs and exec calls are open already\n")
        async with self._streams:
            yield

    @property
    def _agent(self) -> Replicas:
        assert self._sources.replicas is not None  # else there is no such path
        return self._sources.replicas

    def _known(self, request: web.Request) -> str:
        id = request.match_info["id"]
        if id not in {replica.id for replica in self._agent.list()}:
            raise web.HTTPNotFound(text=f"there is no replica {id!r} on this node: see `mesh status`\n")
        return id


_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_VERSION = re.compile("[0-9]{1,18}")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value) + b"\n", content_type="application/json")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _names_this_machine(host: str) -> bool:
    """True for addresses and localhost: no page elsewhere can have those as its origin by changing its DNS."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name == "localhost"
    return True
