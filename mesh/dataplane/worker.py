"""One data-plane process: `python -m mesh.dataplane.worker dns|proxy DESCRIPTOR SOCKET ARGUMENTS`.

Kept small on purpose: it imports what serving needs and nothing else. It ends when its supervisor says so,
and serves on with the last Table while the supervisor is away. Told to end by a signal, it first lets its supervisor
find a successor.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from mesh import __version__
from mesh.aio import Backoff, Tasks
from mesh.dataplane.follower import Follower
from mesh.dataplane.frames import Hello, Quit
from mesh.dataplane.load import PortLoad
from mesh.dataplane.newcomer import Place, hear_of_place
from mesh.dataplane.plane import DataPlane
from mesh.dataplane.sockets import Offers
from mesh.metrics import Family
from mesh.table import Table, TableDelta

log = logging.getLogger(__name__)

SOCKETS = "fds.sock"
"""Where a supervisor takes copies of listening sockets, in the workers' folder."""
DRAIN = 30.0
"""Seconds that open requests and connections have to end in a worker that is told to."""
SUCCESSION = 15.0
"""Seconds that a worker which is to end serves on, for a supervisor that finds a successor."""


class DnsArguments(msgspec.Struct, frozen=True, kw_only=True, tag="dns"):
    listen: tuple[str, ...]
    upstreams: tuple[str, ...] = ()
    forward: bool = True
    allow: tuple[str, ...] | None = None  # None: the server's default
    node: str | None = None
    survive: bool = True  # its supervisor's death


class ProxyArguments(msgspec.Struct, frozen=True, kw_only=True, tag="proxy"):
    node: str | None = None
    access_log: str | None = None  # file, or - for standard output
    access_log_sample: float = 1.0
    trust: tuple[str, ...] = ()
    survive: bool = True


Arguments = DnsArguments | ProxyArguments


def kind_of(arguments: Arguments) -> str:
    return "dns" if isinstance(arguments, DnsArguments) else "proxy"


def command(arguments: Arguments, socket: Path, descriptor: int) -> list[str]:
    """What starts a worker that hears of its place on `descriptor`."""
    told = msgspec.json.encode(arguments).decode()
    return [sys.executable, "-P", "-m", "mesh.dataplane.worker", kind_of(arguments), str(descriptor), str(socket), told]


def write_secret(folder: Path) -> None:
    """A new secret for the workers of a folder: in a file, since arguments are for all to see (`ps`)."""
    path = folder / "secret"
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(os.urandom(32))


def read_secret(folder: Path) -> bytes | None:
    """None: there is none, and each worker has its own."""
    try:
        return (folder / "secret").read_bytes()
    except OSError:
        return None


def build(arguments: Arguments, secret: bytes | None = None) -> DataPlane:
    """The server itself; each kind imports only its own part."""
    if isinstance(arguments, DnsArguments):
        from mesh.dns.server import DEFAULT_ALLOW, DnsServer

        allow = DEFAULT_ALLOW if arguments.allow is None else arguments.allow
        return DnsServer(
            arguments.listen,
            upstreams=arguments.upstreams,
            forward=arguments.forward,
            allow=allow,
            node=arguments.node,
            secret=secret,
        )
    from mesh.proxy.access_log import AccessLog
    from mesh.proxy.server import ProxyServer

    access_log = AccessLog(arguments.access_log, arguments.access_log_sample) if arguments.access_log else None
    return ProxyServer(node=arguments.node, trust=arguments.trust, access_log=access_log)


class _Serving:
    """A data plane that opens its fixed listeners when it has an answer, and tries again where it cannot.

    Workers share a port: one that listened before it has the Table would fail queries that its siblings answer.
    """

    def __init__(self, plane: DataPlane, kind: str, offers: Offers) -> None:
        self._plane = plane
        self._kind = kind
        self._offers = offers
        self._met = False  # a supervisor
        self._started = False
        self._closing = False
        self._cannot_start = ""
        self._tasks = Tasks()

    def connected(self) -> None:
        if self._met:
            self._offers.forget()
        self._met = True
        self._give_sockets()

    def _give_sockets(self) -> None:
        if self._started and not self._closing:
            self._offers.give(self._plane.export())

    async def begin(self) -> None:
        if self._started or self._closing:
            return
        self._started = True
        if not await self._try_to_start():
            log.warning("%s: trying again until it can", self._cannot_start)
            self._tasks.spawn(self._keep_trying(), "start")

    async def update(self, table: Table, delta: TableDelta | None) -> None:
        if self._kind == "proxy":  # has no fixed listeners
            await self.begin()
        await self._plane.update(table, delta)
        await self.begin()
        self._give_sockets()

    def give_secrets(self, secrets: Mapping[str, str]) -> None:
        self._plane.give_secrets(secrets)

    def each_second(self) -> None:
        self._give_sockets()  # what was opened at another try

    def metrics(self) -> list[Family]:
        return self._plane.metrics()

    def loads(self) -> list[PortLoad]:
        return self._plane.loads()

    def problems(self) -> list[str]:
        return [self._cannot_start] if self._cannot_start else self._plane.problems()

    async def close(self, seconds: float, *, successor: bool) -> None:
        self._closing = True
        await self._tasks.close()
        await self._plane.close(seconds, shared=successor)

    async def _try_to_start(self) -> bool:
        try:
            await self._plane.start()
        except OSError as error:
            self._cannot_start = f"{self._kind}: {error}"
            return False
        self._cannot_start = ""
        return True

    async def _keep_trying(self) -> None:
        backoff = Backoff(0.2, 2.0)
        while not await self._try_to_start():
            await backoff.sleep()


async def serve(plane: DataPlane, arguments: Arguments, place: Place, socket: Path) -> None:
    """Runs until told to quit."""
    kind = kind_of(arguments)
    plane.adopt(place.sockets)
    serving = _Serving(plane, kind, Offers(socket.parent / SOCKETS, f"{kind}-{place.number}", place.sockets))
    hello = Hello(kind, place.number, os.getpid(), __version__, msgspec.json.encode(arguments).decode())
    follower = Follower(socket, hello, serving, packed=kind == "dns")
    plane.tell_waiting(follower.tell_waiting)
    signalled = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, signalled.set)
    following = asyncio.create_task(follower.run(survive=arguments.survive), name="follow")
    told = asyncio.create_task(signalled.wait(), name="signal")
    over: set[asyncio.Future[Any]] = {following, follower.leaving}
    await asyncio.wait({*over, told}, return_when=asyncio.FIRST_COMPLETED)
    if told.done() and follower.ask_to_leave():
        log.info("%s-%d: told to end", kind, place.number)
        await asyncio.wait(over, timeout=SUCCESSION, return_when=asyncio.FIRST_COMPLETED)
    goodbye = follower.leaving.result() if follower.leaving.done() else Quit(drain=DRAIN)
    await serving.close(goodbye.drain, successor=goodbye.successor)
    await follower.close()
    for task in (following, told):
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following  # it may have failed


def main(argv: list[str]) -> None:
    _, descriptor, socket, told = argv
    level = os.environ.get("MESH_LOG_LEVEL", "INFO")  # the supervisor's
    logging.basicConfig(level=level, format="%(levelname)s %(name)s %(message)s")
    arguments = msgspec.json.decode(told, type=Arguments)
    plane = build(arguments, read_secret(Path(socket).parent))
    gc.collect()
    gc.freeze()
    if place := hear_of_place(int(descriptor)):
        uvloop.run(serve(plane, arguments, place, Path(socket)))


if __name__ == "__main__":
    main(sys.argv[1:])
