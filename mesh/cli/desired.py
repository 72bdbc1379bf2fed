"""`mesh apply`, `delete`, `scale`: what operators wish."""

import re
from typing import Annotated

import typer

from mesh import console
from mesh.cli.asking import ask, ask_before_mass_stop
from mesh.cli.base import Failed, Invalid, Json, Mesh, Yes, command, seconds, with_mesh

_PANEL = "Say what should run"
_ROUTE = "route/"

Wait = Annotated[bool, typer.Option("--wait", "-w", help="Follow until it is done or has failed.")]
Timeout = Annotated[str, typer.Option("--timeout", metavar="DURATION", help="How long --wait waits.")]
Wishes = Annotated[list[str], typer.Argument(metavar="SERVICE|route/NAME…", help="Names of services, or of routes.")]


@command(_PANEL, example="mesh apply examples/guestbook --wait")
@with_mesh
async def apply(
    mesh: Mesh,
    paths: Annotated[
        list[str], typer.Argument(metavar="FILE…|DIR|-", help="JSON, YAML or TOML files; - is standard input.")
    ],
    plan: Annotated[
        int | None,
        typer.Option("--plan", metavar="INDEX", help="Only if nothing was changed since mesh plan said this index."),
    ] = None,
    yes: Yes = False,
    wait: Wait = False,
    timeout: Timeout = "10m",
    json: Json = False,
) -> None:
    """Write services and routes. All are validated first: if one is wrong, none is written."""
    from mesh.cli import changes, wishes
    from mesh.cli.specs import read_specs
    from mesh.scheduler.count import AUTOSCALER, Count, counted

    longest = seconds("--timeout", timeout)
    services, routes = read_specs(paths)
    view = await mesh.view()
    counts = {spec.name: counted(view, spec) for spec in services if spec.kind == "service"}
    ask_before_mass_stop(view, {name: count.replicas for name, count in counts.items()}, yes)
    seen = (await changes.unchanged_since(mesh, plan)).entries if plan is not None else None
    results = await wishes.write(mesh, [*services, *routes], seen)
    if json:
        console.print_json([
            *({"service": spec.name, "result": results[wishes.label(spec)]} for spec in services),
            *({"route": spec.name, "result": results[wishes.label(spec)]} for spec in routes),
        ])  # fmt: skip
    for name, result in results.items():
        if not json:
            console.say(f"{name}: {result}")
    for spec in services:
        if spec.name in view.scale and spec.kind == "service":
            heir = "the autoscaler" if spec.scale else "the spec"
            console.note(f"{spec.name}: `mesh scale` holds it at {_replicas(view.scale[spec.name])}; "
                         f"`mesh scale {spec.name}=spec` gives the count back to {heir}")  # fmt: skip
        elif counts.get(spec.name, Count(0)).by == AUTOSCALER:
            console.note(f"{spec.name}: the autoscaler holds it at {_replicas(counts[spec.name].replicas)}; "
                         f"see mesh autoscale {spec.name}")  # fmt: skip
    for sentence in wishes.lost_targets(routes, services, view):
        console.note(f"warning: {sentence}; until there is, it answers 503")
    if wait:
        await wishes.follow_rollouts(mesh, services, view, longest)


@command(_PANEL, example="mesh delete web")
@with_mesh
async def delete(
    mesh: Mesh, names: Wishes, yes: Yes = False, wait: Wait = False, timeout: Timeout = "10m", json: Json = False
) -> None:
    """Take services and routes away: replicas are drained, then stopped."""
    from mesh.cli import wishes

    longest = seconds("--timeout", timeout)
    names = list(dict.fromkeys(names))
    routes = [name.removeprefix(_ROUTE) for name in names if name.startswith(_ROUTE)]
    services = [name for name in names if not name.startswith(_ROUTE)]
    view = await mesh.view()
    await mesh.known_routes(routes)
    if meant := [name for name in services if name in view.routes and name not in view.wishes]:
        raise Failed(*(f"{name} is a route, no service: mesh delete {_ROUTE}{name}" for name in meant))
    mesh.known_services(view, services)
    ask_before_mass_stop(view, dict.fromkeys(services, 0), yes)
    ask(f"Delete {', '.join(names)}{' and stop all replicas' if services else ''}?", yes)
    await wishes.remove(mesh, services, routes)
    if json:
        console.print_json([
            *({"service": name, "result": "deleted"} for name in services),
            *({"route": name, "result": "deleted"} for name in routes),
        ])  # fmt: skip
    else:
        for name in names:
            console.say(f"{name}: deleted")
    if wait:
        await wishes.follow_removal(mesh, services, longest)


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
    if len(wanted) < len(counts):
        raise Invalid("each service can be scaled once at a time")
    view = await mesh.view()
    mesh.known_services(view, list(wanted))
    for name in wanted:
        wish = view.wishes.get(name)
        if wish and wish.spec and wish.spec.kind != "service":
            raise Invalid(f"{name}: only kind service can be scaled, it is of kind {wish.spec.kind}")
    ask_before_mass_stop(view, {name: count for name, count in wanted.items() if count is not None}, yes)
    if nothing := [name for name, count in wanted.items() if count == 0]:
        ask(f"Stop all replicas of {', '.join(nothing)}?", yes)
    for name, count in wanted.items():
        if count is None:
            await mesh.store.delete(mesh.keys.scale(name))
        else:
            await mesh.store.put(mesh.keys.scale(name), str(count).encode())
        if not json:
            wish = view.wishes.get(name)
            follows = wish is not None and wish.spec is not None and wish.spec.scale is not None
            released = "the autoscaler decides" if follows else "as its spec says"
            console.say(f"{name}: {released if count is None else _replicas(count)}")
            if follows and count is not None:
                console.note(f"{name}: the autoscaler leaves it alone until `mesh scale {name}=spec`")
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
