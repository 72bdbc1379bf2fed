"""What the proxies of all nodes carry, as `mesh top` shows it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import msgspec

from mesh import console
from mesh.autoscaling.agents import Silent, ask, session
from mesh.cli.base import Mesh
from mesh.cli.status import ServiceStatus, service_names, service_status
from mesh.dataplane.load import LoadReport, ServiceReport, merged
from mesh.view import View

_INTERVAL = 1.0
_COLUMNS = ["service", "ready", "rps", "in flight", "queued", "success", "p50", "p99", "retries/s", "conns", "ejected"]


class ServiceTop(msgspec.Struct, frozen=True, kw_only=True):
    """A service, over all nodes and the last ten seconds. Rates per second, times in seconds."""

    name: str
    ready: int
    desired: int
    rps: float
    in_flight: float
    queued: int
    success_ratio: float | None
    p50: float | None
    p99: float | None
    retries: float
    connections: int
    ejected: int


class Top(msgspec.Struct, frozen=True, kw_only=True):
    """One look: the busiest service first."""

    services: list[ServiceTop]
    silent: list[Silent]


async def looks(mesh: Mesh) -> AsyncIterator[Top]:
    """One each second, at the services and nodes as they are then."""
    loop = asyncio.get_running_loop()
    views = mesh.views()
    view = await anext(views)
    following = asyncio.ensure_future(anext(views))
    try:
        async with session() as http:
            while True:
                due = loop.time() + _INTERVAL
                yield await _look(http, view)
                while (wait := due - loop.time()) > 0:
                    await asyncio.wait([following], timeout=wait)
                    if following.done():
                        view = following.result()
                        following = asyncio.ensure_future(anext(views))
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


async def _look(http: aiohttp.ClientSession, view: View) -> Top:
    asked = (ask(http, name, node.report.admin) for name, node in sorted(view.nodes.items()))
    answers = await asyncio.gather(*asked)
    loads = merged(answer for answer in answers if isinstance(answer, LoadReport))
    services = [_service(service_status(view, name), loads.get(name, ServiceReport())) for name in service_names(view)]
    return Top(
        services=sorted(services, key=lambda each: (-each.rps, -each.connections, each.name)),
        silent=[answer for answer in answers if isinstance(answer, Silent)],
    )


def _service(status: ServiceStatus, load: ServiceReport) -> ServiceTop:
    return ServiceTop(
        name=status.name, ready=status.ready, desired=status.desired, rps=load.rps, in_flight=load.in_flight,
        queued=load.queued, success_ratio=load.success_ratio, p50=load.p50, p99=load.p99, retries=load.retries,
        connections=load.connections, ejected=load.ejected,
    )  # fmt: skip


def show(top: Top) -> None:
    """The table, and which nodes it lacks."""
    if top.services:
        console.print_table(_COLUMNS, [_row(service) for service in top.services])
    else:
        console.note("no services yet; write one with: mesh apply FILE")
    for silent in top.silent:
        console.note(f"warning: without node {silent.node}: {silent.problem}")


def _row(service: ServiceTop) -> list[object]:
    return [
        service.name, f"{service.ready}/{service.desired}", number(service.rps), number(service.in_flight),
        service.queued, share(service.success_ratio), time(service.p50), time(service.p99), number(service.retries),
        service.connections, service.ejected,
    ]  # fmt: skip


def number(value: float) -> str:
    """Three digits or so: `1204`, `8.3`, `0.25`."""
    return f"{value:.0f}" if value >= 100 or value == 0 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def share(value: float | None) -> str:
    """`99.93%`; 100 % only where nothing failed."""
    if value is None:
        return ""
    return "100%" if value == 1 else f"{min(value * 100, 99.99):.2f}%"


def time(seconds: float | None) -> str:
    """`3.2ms`, `250ms`, `1.5s`."""
    if seconds is None:
        return ""
    if seconds >= 1:
        return f"{seconds:.1f}s"
    return f"{seconds * 1000:.1f}ms" if seconds < 0.1 else f"{seconds * 1000:.0f}ms"
