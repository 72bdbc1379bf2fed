"""`mesh drain`, `pause`, `activate`, `confirm-loss`: what operators want of a node."""

import time
from typing import Annotated

import msgspec
import typer

from mesh import console
from mesh.cli.asking import ask
from mesh.cli.base import Failed, Invalid, Json, Mesh, Yes, command, seconds, with_mesh
from mesh.cli.node_settings import change_settings, known_nodes
from mesh.suggestion import suggestion

_PANEL = "Look after nodes"

_PATIENCE = "1h"
"""Of a drain, if nobody says how long: Nomad's `-deadline`."""

Nodes = Annotated[list[str], typer.Argument(metavar="NODE…", help="Names of nodes, as mesh nodes shows them.")]
SilentNodes = Annotated[
    list[str] | None, typer.Argument(metavar="NODE…", help="Default: every node that does not answer.")
]


@command(_PANEL, example="mesh drain n3 --deadline 30m --wait")
@with_mesh
async def drain(
    mesh: Mesh,
    nodes: Nodes,
    deadline: Annotated[
        str | None,
        typer.Option(
            "--deadline", metavar="DURATION|never", help=f"When what is left is stopped; by default after {_PATIENCE}."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Stop all of it now: a deadline of no time.")] = False,
    yes: Yes = False,
    wait: Annotated[bool, typer.Option("--wait", "-w", "-f", help="Follow until nothing is left.")] = False,
    timeout: Annotated[str, typer.Option("--timeout", metavar="DURATION", help="How long --wait waits.")] = "10m",
    json: Json = False,
) -> None:
    """Move everything off a node, successors first. Said again, it goes on; mesh activate takes it back.

    What has not moved by the deadline is stopped: volumes, what fits nowhere else, jobs that have not ended.
    """
    from mesh.cli import drains

    longest = seconds("--timeout", timeout)
    if force and deadline is not None:
        raise Invalid("--force is a deadline of no time: leave out --deadline")
    until = _until("0s" if force else deadline or _PATIENCE)
    view = await mesh.view()
    names = known_nodes(view, nodes)
    if force:
        ask(f"Stop all that runs on {', '.join(names)} before its successors are ready?", yes)
    for name in names:
        if force or deadline is not None or drains.drain_of(view, name) is None:
            await change_settings(mesh, name, availability="drain", deadline=until)
    mesh.warn_without_leader()
    if wait:
        await drains.follow(mesh, names, longest)
    view = await mesh.view()
    found = [one for name in names if (one := drains.drain_of(view, name)) is not None]
    if json:
        console.print_json(msgspec.to_builtins(found))
        return
    for one in found:
        drains.show(one, time.time())


def _until(deadline: str) -> float | None:
    """Unix seconds; None: never."""
    return None if deadline == "never" else round(time.time() + seconds("--deadline", deadline), 3)


@command(_PANEL, example="mesh pause n3")
@with_mesh
async def pause(mesh: Mesh, nodes: Nodes, json: Json = False) -> None:
    """Give a node nothing new; what it runs stays, and is replaced elsewhere if it fails. Ends a drain, too."""
    await _set(mesh, nodes, "pause", "gets nothing new", as_json=json)


@command(_PANEL, example="mesh activate n3")
@with_mesh
async def activate(mesh: Mesh, nodes: Nodes, json: Json = False) -> None:
    """Give a node work again: the end of a drain or a pause. What has not moved yet stays."""
    await _set(mesh, nodes, "active", "gets work again", as_json=json)


async def _set(mesh: Mesh, nodes: list[str], availability: str, what: str, *, as_json: bool) -> None:
    names = known_nodes(await mesh.view(), nodes)
    for name in names:
        await change_settings(mesh, name, availability=availability, deadline=None)
        if not as_json:
            console.say(f"{name}: {what}")
    if as_json:
        console.print_json([{"node": name, "availability": availability} for name in names])
    mesh.warn_without_leader()


@command(_PANEL, name="confirm-loss", example="mesh confirm-loss n3 n4")
@with_mesh
async def confirm_loss(mesh: Mesh, nodes: SilentNodes = None, yes: Yes = False, json: Json = False) -> None:
    """Say that silent nodes will not come back: what they ran is replaced at once, even if replacement is frozen.

    It holds for this life of a node: when its agent reports again, it is a node like any other.
    """
    view = await mesh.view()
    silent = [name for name, doubt in view.cluster.nodes.items() if doubt.state == "suspected"]
    silent += [name for name, seen in view.nodes.items() if not seen.held and name not in view.cluster.nodes]
    named = list(dict.fromkeys(nodes or silent))
    if unknown := [name for name in named if name not in view.nodes]:
        raise Failed(*(f"there is no node {name!r}{suggestion(name, view.nodes)}" for name in unknown))
    if answering := [name for name in named if name not in silent]:
        raise Failed(*(f"{name} is not suspected: it answers, or was given up already" for name in answering))
    if not named:
        raise Failed("every node answers, or was given up already: nothing to confirm")
    ask(f"Replace what ran on {', '.join(named)} now? What still runs there stops when they return.", yes)
    for name in named:
        await change_settings(mesh, name, lost=view.nodes[name].index)
    if json:
        console.print_json([{"node": name, "result": "confirmed"} for name in named])
        return
    for name in named:
        console.say(f"{name}: confirmed, what it ran is replaced")
