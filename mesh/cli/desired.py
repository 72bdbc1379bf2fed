"""`mesh apply`, `delete`, `scale`: what operators wish."""

import re
import sys
from typing import Annotated

import typer

from mesh import console
from mesh.cli.base import Failed, Invalid, Json, Mesh, Yes, command, seconds, with_mesh

_PANEL = "Say what should run"

Wait = Annotated[bool, typer.Option("--wait", "-w", help="Follow until it is done or has failed.")]
Timeout = Annotated[str, typer.Option("--timeout", metavar="DURATION", help="How long --wait waits.")]
Services = Annotated[list[str], typer.Argument(metavar="SERVICE…", help="Names of services.")]


@command(_PANEL, example="mesh apply examples/guestbook --wait")
@with_mesh
async def apply(
    mesh: Mesh,
    paths: Annotated[
        list[str], typer.Argument(metavar="FILE…|DIR|-", help="JSON, YAML or TOML files; - is standard input.")
    ],
    wait: Wait = False,
    timeout: Timeout = "10m",
    json: Json = False,
) -> None:
    """Write service specs. All are validated first: if one is wrong, none is written."""
    from mesh.cli import wishes
    from mesh.cli.specs import read_specs

    longest = seconds("--timeout", timeout)
    specs = read_specs(paths)
    view = await mesh.view()
    results = await wishes.write(mesh, specs)
    if json:
        console.print_json([{"service": name, "result": result} for name, result in results.items()])
    for spec in specs:
        if not json:
            console.say(f"{spec.name}: {results[spec.name]}")
        if spec.name in view.scale and spec.kind == "service":
            console.note(f"{spec.name}: `mesh scale` holds it at {view.scale[spec.name]} replicas; "
                         f"`mesh scale {spec.name}=spec` gives the count back to the spec")  # fmt: skip
    if wait:
        await wishes.follow_rollouts(mesh, specs, view, longest)


@command(_PANEL, example="mesh delete web")
@with_mesh
async def delete(
    mesh: Mesh, services: Services, yes: Yes = False, wait: Wait = False, timeout: Timeout = "10m", json: Json = False
) -> None:
    """Take services away: their replicas are drained, then stopped."""
    from mesh.cli import wishes

    longest = seconds("--timeout", timeout)
    names = list(dict.fromkeys(services))
    mesh.known_services(await mesh.view(), names)
    _ask(f"Delete {', '.join(names)} and stop all replicas?", yes)
    await wishes.remove(mesh, names)
    if json:
        console.print_json([{"service": name, "result": "deleted"} for name in names])
    else:
        for name in names:
            console.say(f"{name}: deleted")
    if wait:
        await wishes.follow_removal(mesh, names, longest)


@command(_PANEL, example="mesh scale web=5 worker=spec")
@with_mesh
async def scale(
    mesh: Mesh,
    counts: Annotated[
        list[str],
        typer.Argument(metavar="SERVICE=N…", help="N replicas instead of the spec's; SERVICE=spec takes that back."),
    ],
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Set how many replicas a service has, without editing its spec."""
    wanted = dict(map(_count, counts))
    view = await mesh.view()
    mesh.known_services(view, list(wanted))
    for name in wanted:
        wish = view.wishes.get(name)
        if wish and wish.spec and wish.spec.kind != "service":
            raise Invalid(f"{name}: only kind service can be scaled, it is of kind {wish.spec.kind}")
    if nothing := [name for name, count in wanted.items() if count == 0]:
        _ask(f"Stop all replicas of {', '.join(nothing)}?", yes)
    for name, count in wanted.items():
        if count is None:
            await mesh.store.delete(mesh.keys.scale(name))
        else:
            await mesh.store.put(mesh.keys.scale(name), str(count).encode())
        if not json:
            console.say(f"{name}: {'as its spec says' if count is None else _replicas(count)}")
    if json:
        console.print_json([{"service": name, "replicas": count} for name, count in wanted.items()])


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _count(argument: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"([^=]+)=(\d{1,6}|spec)", argument)
    if match is None:
        raise Invalid(f"{argument}: must be SERVICE=N or SERVICE=spec, such as web=5")
    if match[2] == "spec":
        return match[1], None
    if int(match[2]) > 100_000:
        raise Invalid(f"{argument}: at most 100000 replicas")
    return match[1], int(match[2])


def _ask(question: str, yes: bool) -> None:
    """Asks on a terminal; a script has said what it wants."""
    if not yes and sys.stdin.isatty() and not typer.confirm(question):
        raise Failed("nothing was changed")
