"""`mesh autoscale`: how many replicas a service should have by its load, and why."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from mesh import console
from mesh.cli.base import Config, Invalid, Json, Mesh, Root, StoreAddress, TokenFile, command, connected

_PANEL = "See what is"


@command(_PANEL, example="mesh autoscale web --follow, or: mesh autoscale --replay examples/autoscale.json --json")
def autoscale(
    service: Annotated[
        str | None, typer.Argument(metavar="SERVICE", help="A service whose spec has a `scale`.")
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option("--replay", metavar="FILE", help="A recorded series instead; - is standard input."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is new, until Ctrl-C.")] = False,
    store: StoreAddress = None,
    token_file: TokenFile = None,
    root: Root = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """What the autoscaler measures and asks for, the limit that bit, and why nothing happens, if so.

    With --replay, a series in a file goes through the same code, without a cluster: what was measured when, the
    replicas that were ready, unready or told nothing. Every recommendation is printed with its sentence;
    docs/autoscaling.md has the format: {"scale": {...}, "replicas": 2, "series": [{"time": 0, "load": 38}, ...]}.
    """
    if (service is None) == (replay is None):
        raise Invalid("give either a SERVICE or --replay FILE")
    if replay is not None:
        from mesh.cli.replay import show_replay

        show_replay(replay, as_json=json)
    elif service is not None:
        asyncio.run(_connected(service, follow, json, store, token_file, root, config))


async def _connected(
    service: str, follow: bool, json: bool, store: str | None, token_file: Path | None, root: str | None,
    config: Path | None
) -> None:  # fmt: skip
    async with connected(store, token_file, root, config) as mesh:
        await _tell(mesh, service, follow=follow, json=json)


async def _tell(mesh: Mesh, service: str, *, follow: bool, json: bool) -> None:
    from mesh.cli.autoscaled import explanations, line, show

    said = ""
    warned: Sequence[str] = ()
    async for told, warnings in explanations(mesh, service):
        if json and follow:
            console.say(msgspec.json.encode(told).decode())
        elif json:
            console.print_json(msgspec.to_builtins(told))
        elif not follow:
            show(told)
        elif (news := line(told)) != said:
            console.say(f"{time.strftime('%H:%M:%S')}  {news}")
            said = news
        for warning in warnings:
            if warning not in warned:
                console.note(f"warning: {warning}")
        warned = warnings
        if not follow:
            break
