"""`mesh cron next`: when a schedule runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from mesh import console
from mesh.cli.base import Invalid, Json, app

_PANEL = "Check and explain"
_COUNT = 10
"""Runs that are listed where no end is given."""

cron = typer.Typer(
    no_args_is_help=True, help="When a schedule runs.", epilog="Example: mesh cron next @daily --zone Europe/Berlin"
)
app.add_typer(cron, name="cron", rich_help_panel=_PANEL)


@cron.command(epilog='Example: mesh cron next "30 2 * * *" --zone Europe/Berlin')
def next(
    expression: Annotated[str, typer.Argument(metavar="EXPR", help="Five fields, or an alias such as @hourly.")],
    zone: Annotated[str, typer.Option("--zone", metavar="TZ", help="Time zone of the fields.")] = "UTC",
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="T", help="From then on, inclusive: ISO 8601 or Unix seconds; default: now."),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="T", help=f"Until then, inclusive; default: {_COUNT} runs.")
    ] = None,
    json: Json = False,
) -> None:
    """The runs of a schedule that are due in a time. A time without an offset is one of the zone."""
    import math
    import time
    from itertools import islice, takewhile

    from mesh.cron import local_text, parse_time, parse_zone, runs

    with _fault_of("--zone"):
        parse_zone(zone)
    with _fault_of("--from"):
        first = parse_time(start, zone) if start else time.time()
    with _fault_of("--to"):
        last = parse_time(end, zone) if end else math.inf
    with _fault_of("EXPR"):
        due = takewhile(lambda run: run <= last, runs(expression, zone, math.nextafter(first, -math.inf)))
        found = [{"time": int(run), "local": local_text(run, zone)} for run in islice(due, None if end else _COUNT)]
    if json:
        console.print_json(found)
    else:
        for run in found:
            console.say(str(run["local"]))


@contextmanager
def _fault_of(what: str) -> Iterator[None]:
    """Raises `Invalid` that names the flag or argument."""
    try:
        yield
    except ValueError as error:
        raise Invalid(f"{what}: {error}") from None
