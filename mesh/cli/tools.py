"""`mesh validate`, `schema`, `version`, `doctor`, `resolve`."""

from typing import Annotated

import typer

from mesh import __version__, console
from mesh.cli.base import Json, command

_PANEL = "Check and explain"


@command(_PANEL, example="mesh validate examples/guestbook")
def validate(
    paths: Annotated[list[str], typer.Argument(metavar="FILE…|DIR|-", help="As for mesh apply.")], json: Json = False
) -> None:
    """Say everything that is wrong with specs, without a store."""
    from mesh.spec_errors import SpecError
    from mesh.specfile import read_specs

    try:
        specs = [source.spec for source in read_specs(paths)]
    except SpecError as error:
        if not json:
            raise
        console.print_json({"valid": False, "errors": error.errors})
        raise typer.Exit(2) from None
    if json:
        console.print_json({"valid": True, "services": [spec.canonical() for spec in specs]})
        return
    for spec in specs:
        console.say(f"{spec.name}: valid ({spec.kind})")


@command(_PANEL, example="mesh schema > mesh-service.schema.json")
def schema() -> None:
    """JSON Schema of a service spec, for editors that complete and check it."""
    from mesh.spec_schema import json_schema

    console.print_json(json_schema())


@command(_PANEL, example="mesh version --json")
def version(json: Json = False) -> None:
    """The versions of mesh and of Python."""
    import platform

    if json:
        console.print_json({"mesh": __version__, "python": platform.python_version()})
    else:
        console.say(f"mesh {__version__} (Python {platform.python_version()})")
