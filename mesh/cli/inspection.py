"""`mesh status`, `nodes`, `top`, `events`: what is."""

import time
from typing import Annotated

import msgspec
import typer

from mesh import console
from mesh.cli.base import Json, Mesh, command, with_mesh

_PANEL = "See what is"

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show it again after every change, until Ctrl-C.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is new, until Ctrl-C.")]
Times = Annotated[int | None, typer.Option("--times", "-n", min=1, metavar="COUNT", help="Show it so often, then end.")]
Once = Annotated[bool, typer.Option("--once", help="Show it once.")]
OneService = Annotated[str | None, typer.Argument(metavar="SERVICE", help="Only this one, in detail.")]


@command(_PANEL, example="mesh status web --watch")
@with_mesh
async def status(mesh: Mesh, service: OneService = None, watch: Watch = False, json: Json = False) -> None:
    """Services: ready and desired replicas, release, rollout, problems. One service: its replicas and why."""
    from mesh.cli import screens

    async for view in mesh.views():
        if service:
            mesh.known_services(view, [service])
        if watch:
            console.clear()
        if json:
            console.print_json(screens.status_json(view, service))
        elif service:
            screens.show_service(view, service, time.time())
        else:
            screens.show_services(view, time.time())
        screens.warn_of_nodes(view)
        mesh.warn_without_leader()
        if not watch:
            break


@command(_PANEL, example="mesh nodes --json")
@with_mesh
async def nodes(mesh: Mesh, watch: Watch = False, json: Json = False) -> None:
    """Nodes: state, address, what they have and what is reserved."""
    from mesh.cli import screens

    async for view in mesh.views():
        if watch:
            console.clear()
        if json:
            console.print_json(screens.nodes_json(view))
        else:
            screens.show_nodes(view)
        if not watch:
            break


@command(_PANEL, example="mesh top")
@with_mesh
async def top(mesh: Mesh, times: Times = None, once: Once = False, json: Json = False) -> None:
    """Services by their traffic, over the last ten seconds and all nodes, every second until Ctrl-C."""
    from mesh.cli.top import looks, show

    left = 1 if once or (json and times is None) else times
    live = left is None
    async for look in looks(mesh):
        if live:
            console.clear()
        if json:
            console.print_json(msgspec.to_builtins(look))
        else:
            show(look)
        if left is not None and (left := left - 1) == 0:
            break


@command(_PANEL, example="mesh events web --follow")
@with_mesh
async def events(mesh: Mesh, service: OneService = None, follow: Follow = False, json: Json = False) -> None:
    """What happened, oldest first, with its cause."""
    from mesh.cli import screens
    from mesh.cli.status import EventStatus
    from mesh.cli.status import events as events_of

    shown: set[EventStatus] = set()
    async for view in mesh.views():
        if service:
            mesh.known_services(view, [service])
        present = events_of(view, service)
        screens.show_events([event for event in present if event not in shown], json_lines=json)
        shown = set(present)
        if not follow:
            break
