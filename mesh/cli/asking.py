"""The question before a change that would stop what runs."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from mesh.cli.base import Failed

if TYPE_CHECKING:
    from mesh.view import View


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
