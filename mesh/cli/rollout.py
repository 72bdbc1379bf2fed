"""`mesh rollout …`, `mesh promote`, `mesh history`: how a new release takes over, and what came before it."""

from typing import Annotated

import typer

from mesh import console
from mesh.cli.base import Json, Mesh, app, command, seconds, with_mesh

_PANEL = "Roll out"

Service = Annotated[str, typer.Argument(metavar="SERVICE", help="Whose rollout.")]
Wait = Annotated[bool, typer.Option("--wait", "-w", help="Follow until it is done or has failed.")]
Timeout = Annotated[str, typer.Option("--timeout", metavar="DURATION", help="How long --wait waits.")]

rollout = typer.Typer(
    no_args_is_help=True,
    help="How a new release takes over: look at it, hold it, let it go on, take it back.",
    epilog="Example: mesh rollout promote web --wait",
)
app.add_typer(rollout, name="rollout", rich_help_panel=_PANEL)


@rollout.command(epilog="Example: mesh rollout status web --watch")
@with_mesh
async def status(
    mesh: Mesh,
    service: Service,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again after every change.")] = False,
    json: Json = False,
) -> None:
    """How far the newest release has come, and what it waits for."""
    import msgspec

    from mesh.cli.rollouts import rollout_status, show

    async for view in mesh.views():
        mesh.known_services(view, [service])
        found = rollout_status(view, service)
        if watch:
            console.clear()
        if json:
            console.print_json(msgspec.to_builtins(found))
        else:
            show(found)
        mesh.warn_without_leader()
        if not watch:
            break


@rollout.command(epilog="Example: mesh rollout pause web")
@with_mesh
async def pause(mesh: Mesh, service: Service, json: Json = False) -> None:
    """Begin no further replica of the new release; what has begun goes on, and no deadline counts."""
    from mesh.cli.rollouts import tell

    await tell(mesh, service, "pause", as_json=json)


@rollout.command(epilog="Example: mesh rollout resume web --wait")
@with_mesh
async def resume(
    mesh: Mesh, service: Service, wait: Wait = False, timeout: Timeout = "10m", json: Json = False
) -> None:
    """Go on with a paused or failed rollout; it has all of its time again."""
    from mesh.cli.rollouts import tell

    await tell(mesh, service, "resume", longest=seconds("--timeout", timeout) if wait else 0, as_json=json)


@rollout.command(name="promote", epilog="Example: mesh rollout promote web --wait")
@with_mesh
async def promote_rollout(
    mesh: Mesh, service: Service, wait: Wait = False, timeout: Timeout = "10m", json: Json = False
) -> None:
    """Let the new release take over from its canaries, as soon as all of them are healthy."""
    await _promote(mesh, service, wait, timeout, as_json=json)


@command(_PANEL, example="mesh promote web --wait")
@with_mesh
async def promote(
    mesh: Mesh, service: Service, wait: Wait = False, timeout: Timeout = "10m", json: Json = False
) -> None:
    """The same as mesh rollout promote."""
    await _promote(mesh, service, wait, timeout, as_json=json)


async def _promote(mesh: Mesh, service: str, wait: bool, timeout: str, *, as_json: bool) -> None:
    from mesh.cli.rollouts import tell

    await tell(mesh, service, "promote", longest=seconds("--timeout", timeout) if wait else 0, as_json=as_json)


@rollout.command(epilog="Example: mesh rollout abort web --wait")
@with_mesh
async def abort(mesh: Mesh, service: Service, wait: Wait = False, timeout: Timeout = "10m", json: Json = False) -> None:
    """Stop the canaries, or what has been replaced so far, and go back to the last good release."""
    from mesh.cli.rollouts import tell

    await tell(mesh, service, "abort", longest=seconds("--timeout", timeout) if wait else 0, as_json=json)


@rollout.command(epilog="Example: mesh rollout undo web --to 3")
@with_mesh
async def undo(
    mesh: Mesh,
    service: Service,
    to: Annotated[
        int | None,
        typer.Option("--to", min=1, metavar="RELEASE", help="Which one; by default the last other good one."),
    ] = None,
    wait: Wait = False,
    timeout: Timeout = "10m",
    json: Json = False,
) -> None:
    """Put an earlier release back in force, as a new one. Its spec stays as it was written: mesh apply changes that."""
    from mesh.cli.rollouts import tell

    await tell(mesh, service, "undo", to=to or 0, longest=seconds("--timeout", timeout) if wait else 0, as_json=json)


@rollout.command(epilog="Example: mesh rollout simulate rollout.yaml --json")
def simulate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A rollout in YAML, JSON or TOML; - is standard input.")],
    json: Json = False,
) -> None:
    """Play a rollout from a file through the scheduler's own code, on a virtual clock; nothing is touched."""
    import msgspec

    from mesh.cli.rehearsals import show_rehearsal
    from mesh.cli.rollout_file import read_script
    from mesh.scheduler.service.rehearsal import rehearse

    found = rehearse(read_script(file))
    if json:
        console.print_json(msgspec.to_builtins(found))
    else:
        show_rehearsal(found)


@command(_PANEL, example="mesh history web -p")
@with_mesh
async def history(
    mesh: Mesh,
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="Whose releases.")],
    patch: Annotated[bool, typer.Option("--patch", "-p", help="Also what each changed, field by field.")] = False,
    json: Json = False,
) -> None:
    """The last ten releases of a service, newest first: when, why, and what became of them."""
    from mesh.cli.history import history_json, show_history

    view = await mesh.view()
    mesh.known_services(view, [service])
    if json:
        console.print_json(history_json(view, service))
    else:
        show_history(view, service, patch=patch)
