"""`mesh confirm-loss`, and the question before a change that would stop most of what runs."""

import json as json_module
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from mesh import console
from mesh.cli.base import Failed, Json, Mesh, Yes, command, with_mesh
from mesh.suggestion import suggestion

if TYPE_CHECKING:
    from mesh.view import View

_PANEL = "Say what should run"

Nodes = Annotated[list[str] | None, typer.Argument(metavar="[NODE…]", help="Default: every node that does not answer.")]


@command(_PANEL, name="confirm-loss", example="mesh confirm-loss n3 n4")
@with_mesh
async def confirm_loss(mesh: Mesh, nodes: Nodes = None, yes: Yes = False, json: Json = False) -> None:
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
        await _confirm(mesh, name, view.nodes[name].index)
    if json:
        console.print_json([{"node": name, "result": "confirmed"} for name in named])
        return
    for name in named:
        console.say(f"{name}: confirmed, what it ran is replaced")


async def _confirm(mesh: Mesh, node: str, index: int) -> None:
    """Marks the last report of the node as its last; whatever else operators said of it stays."""
    key = mesh.keys.node_settings(node)
    for _ in range(5):
        entry = await mesh.store.get(key)
        try:
            settings = json_module.loads(entry.value) if entry else {}
        except ValueError:
            settings = None
        if not isinstance(settings, dict):
            raise Failed(f"{key} cannot be read: mend it first, or delete it")
        body = json_module.dumps({**settings, "lost": index}).encode()
        if await mesh.store.put(key, body, cas=entry.modify_index if entry else 0):
            return
    raise Failed(f"{node}: others are writing {key} at the same time; try again")


def ask(question: str, yes: bool) -> None:
    """Asks on a terminal; a script has said what it wants."""
    if not yes and sys.stdin.isatty() and not typer.confirm(question):
        raise Failed("nothing was changed")


def ask_before_mass_stop(view: "View", counts: Mapping[str, int], yes: bool) -> None:
    """Asks before several services lose more than half of all that runs; a script must have said `--yes`.

    `counts`: how many replicas each service is to have from now on.
    """
    running: dict[str, int] = {}
    for seen in view.nodes.values():
        for replica in seen.report.replicas:
            if replica.state.alive:
                running[replica.service] = running.get(replica.service, 0) + 1
    losing = {name: running[name] - count for name, count in counts.items() if running.get(name, 0) > count}
    stops, total = sum(losing.values()), sum(running.values())
    if yes or len(losing) < 2 or 2 * stops <= total:
        return
    what = f"this stops {stops} of {total} running replicas ({', '.join(sorted(losing))})"
    if not sys.stdin.isatty():
        raise Failed(f"{what}; if that is meant, say --yes")
    if not typer.confirm(f"{what[0].upper()}{what[1:]}. Go on?"):
        raise Failed("nothing was changed")
