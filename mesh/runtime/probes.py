"""The checks behind health: an HTTP GET, a TCP connection, a command inside the replica."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import cast

from mesh import __version__
from mesh.runtime import Instance, Runtime, RuntimeFault, RuntimeUnavailable
from mesh.spec.service import Probe, ServiceSpec

Check = Callable[[], Awaitable[None]]
"""Raises `ProbeFailed`, or `RuntimeUnavailable` where the engine could not be asked. Ends within the time-out."""

LONGEST_ANSWER = 64 * 1024
FAREWELL = 1.0
"""Seconds that a server gets to send the rest of an answer whose status is known."""


class ProbeFailed(Exception):
    """What was wrong, in words for the operator."""


def check_of(probe: Probe, spec: ServiceSpec, instance: Instance, runtime: Runtime) -> Check:
    """What the probe asks of this instance."""
    if probe.exec is not None:
        return partial(_exec, runtime, instance.id, probe.exec, probe.timeout)
    if probe.tcp is not None:
        return partial(_within, probe.timeout, partial(_connect, instance, probe.tcp))
    assert probe.http is not None, "the spec sees to it that one of the three is set"
    return partial(_within, probe.timeout, partial(_get, instance, probe.port or _http_port(spec), probe.http))


async def _within(timeout: float, check: Check) -> None:
    try:
        async with asyncio.timeout(timeout):
            await check()
    except TimeoutError:
        raise ProbeFailed(f"no answer within {timeout:g} s") from None


def _http_port(spec: ServiceSpec) -> str:
    """The only port, or the first http one, or the first."""
    return next((name for name, port in spec.ports.items() if port.protocol == "http"), next(iter(spec.ports)))


async def _exec(runtime: Runtime, id: str, command: list[str], timeout: float) -> None:
    try:
        result = await runtime.exec(id, command, timeout=timeout)
    except RuntimeUnavailable:
        raise
    except RuntimeFault as fault:
        raise ProbeFailed(str(fault)) from fault
    if result.code != 0:
        said = result.output[-200:].decode(errors="replace").strip()
        raise ProbeFailed(f"{command[0]}: exit code {result.code}" + (f": {said}" if said else ""))


async def _connect(instance: Instance, port: str) -> None:
    transport = await _open(asyncio.Protocol, instance, port)
    transport.close()


async def _get(instance: Instance, port: str, path: str) -> None:
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    address = f"[{instance.address}]" if ":" in instance.address else instance.address
    host = f"{address}:{instance.ports.get(port)}"
    transport = await _open(partial(_Get, host, path, answer), instance, port)
    try:
        status = await answer
    except BaseException:
        transport.abort()
        raise
    if not 200 <= status < 400:
        raise ProbeFailed(f"GET {path}: {status}")


async def _open(protocol: Callable[[], asyncio.Protocol], instance: Instance, port: str) -> asyncio.Transport:
    if port not in instance.ports or not instance.address:
        raise ProbeFailed(f"port {port} has no address")
    try:
        transport, _ = await asyncio.get_running_loop().create_connection(
            protocol, instance.address, instance.ports[port]
        )
    except OSError as error:
        raise ProbeFailed(f"port {port}: {error.strerror or error}") from error
    return transport


class _Get(asyncio.Protocol):
    """Sends one request and reads the status line; the rest of the answer is let pass, within bounds."""

    def __init__(self, host: str, path: str, answer: asyncio.Future[int]) -> None:
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: mesh-probe/{__version__}\r\n"
            "Accept: */*\r\nConnection: close\r\n\r\n"
        ).encode()
        self._answer = answer
        self._head = b""
        self._received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no instances of it
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > LONGEST_ANSWER:
            self._transport.abort()
        if self._answer.done():
            return
        self._head += data[:16]
        if len(self._head) < len(b"HTTP/1.1 200"):
            return
        version, _, status = self._head[:12].partition(b" ")
        if version in (b"HTTP/1.1", b"HTTP/1.0") and status.isdigit():
            self._answer.set_result(int(status))
            asyncio.get_running_loop().call_later(FAREWELL, self._transport.abort)
        else:
            self._answer.set_exception(ProbeFailed("the answer is not HTTP"))
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(ProbeFailed("the connection ended without an answer"))
