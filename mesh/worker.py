"""One data-plane process: `python -m mesh.worker dns|proxy NUMBER SOCKET ARGUMENTS`.

Kept small on purpose: it imports what serving needs and nothing else. It ends when its supervisor says so,
and serves on with the last Table while the supervisor is away.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from pathlib import Path

import msgspec
import uvloop

from mesh import __version__
from mesh.aio import Backoff
from mesh.feed import Follower, Hello
from mesh.plane import DataPlane

log = logging.getLogger(__name__)


class DnsArguments(msgspec.Struct, frozen=True, kw_only=True, tag="dns"):
    listen: tuple[str, ...]
    upstreams: tuple[str, ...] = ()
    forward: bool = True
    allow: tuple[str, ...] | None = None  # None: the server's default
    node: str | None = None
    survive: bool = True  # its supervisor's death


class ProxyArguments(msgspec.Struct, frozen=True, kw_only=True, tag="proxy"):
    node: str | None = None
    survive: bool = True


Arguments = DnsArguments | ProxyArguments


def kind_of(arguments: Arguments) -> str:
    return "dns" if isinstance(arguments, DnsArguments) else "proxy"


def command(arguments: Arguments, number: int, socket: Path) -> list[str]:
    """What starts a worker."""
    told = msgspec.json.encode(arguments).decode()
    return [sys.executable, "-P", "-m", "mesh.worker", kind_of(arguments), str(number), str(socket), told]


def build(arguments: Arguments) -> DataPlane:
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
        )
    from mesh.proxy.server import ProxyServer

    return ProxyServer(node=arguments.node)


class _Serving:
    """A data plane whose fixed listeners are opened as soon as they can be."""

    def __init__(self, plane: DataPlane, kind: str) -> None:
        self._plane = plane
        self._kind = kind
        self._cannot_start = ""

    async def start(self) -> None:
        backoff = Backoff(0.2, 2.0)
        while True:
            try:
                await self._plane.start()
            except OSError as error:
                if not self._cannot_start:
                    log.warning("%s: %s: trying again until it can", self._kind, error)
                self._cannot_start = f"{self._kind}: {error}"
                await backoff.sleep()
            else:
                self._cannot_start = ""
                return

    def problems(self) -> list[str]:
        return [self._cannot_start] if self._cannot_start else self._plane.problems()


async def serve(arguments: Arguments, number: int, socket: Path) -> None:
    """Runs until told to quit."""
    kind = kind_of(arguments)
    plane = build(arguments)
    serving = _Serving(plane, kind)
    hello = Hello(kind, number, os.getpid(), __version__, msgspec.json.encode(arguments).decode())
    follower = Follower(socket, hello, update=plane.update, problems=serving.problems, metrics=plane.metrics)
    task = asyncio.current_task()
    assert task is not None
    for number_of_signal in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number_of_signal, task.cancel)
    gc.collect()
    gc.freeze()
    try:
        async with asyncio.TaskGroup() as group:
            starting = group.create_task(serving.start(), name="start")
            await follower.run(survive=arguments.survive)
            starting.cancel()
    except asyncio.CancelledError:
        log.info("%s-%d: told to end", kind, number)
    finally:
        await plane.close()


def main(argv: list[str]) -> None:
    _, number, socket, told = argv
    level = os.environ.get("MESH_LOG_LEVEL", "INFO")  # the supervisor's
    logging.basicConfig(level=level, format="%(levelname)s %(name)s %(message)s")
    uvloop.run(serve(msgspec.json.decode(told, type=Arguments), int(number), Path(socket)))


if __name__ == "__main__":
    main(sys.argv[1:])
