"""`mesh logs`, `exec`: into replicas, through the admin HTTP of their nodes' agents."""

from typing import Annotated

import typer

from mesh import console
from mesh.cli.base import Json, Mesh, command, seconds, with_mesh

_PANEL = "Look inside"


@command(_PANEL, example="mesh logs web --follow --tail 20")
@with_mesh
async def logs(
    mesh: Mesh,
    target: Annotated[str, typer.Argument(metavar="SERVICE|REPLICA", help="All replicas of a service, or one.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is new, also of new replicas.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", "-n", min=0, help="Only the last so many lines of each.")
    ] = None,
    json: Json = False,
) -> None:
    """What replicas print, on all nodes, each line behind its replica's id."""
    from mesh.cli.streams import Printer, follow_logs, print_logs

    printer = Printer(json_lines=json)
    if follow:
        await follow_logs(mesh, target, tail, printer)
    else:
        await print_logs(mesh, target, tail, printer)


@command(
    _PANEL, example="mesh exec web-1-6f3a -- cat /etc/resolv.conf", context_settings={"ignore_unknown_options": True}
)
@with_mesh
async def exec(
    mesh: Mesh,
    replica: Annotated[str, typer.Argument(metavar="REPLICA", help="Its id, as mesh status SERVICE shows it.")],
    arguments: Annotated[list[str], typer.Argument(metavar="-- CMD…", help="The command and its arguments.")],
    timeout: Annotated[str, typer.Option("--timeout", metavar="DURATION", help="Give up after so long.")] = "1m",
    json: Json = False,
) -> None:
    """Run a command inside a replica; its exit code is this command's."""
    from mesh.cli.streams import run_inside

    answer = await run_inside(mesh, replica, arguments, seconds("--timeout", timeout))
    if json:
        console.print_json({"replica": replica, "code": answer.code, "output": answer.output})
    else:
        print(console.foreign(answer.output), end="", flush=True)
    raise typer.Exit(answer.code)
