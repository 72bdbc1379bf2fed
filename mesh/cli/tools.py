"""`mesh validate`, `schema`, `version`, `doctor`, `resolve`."""

from pathlib import Path
from typing import Annotated

import typer

from mesh import __version__, console
from mesh.cli.base import Config, Invalid, Json, StoreAddress, TokenFile, command
from mesh.settings.sources import Sources

_PANEL = "Check and explain"


@command(_PANEL, example="mesh validate examples/guestbook")
def validate(
    paths: Annotated[list[str], typer.Argument(metavar="FILE…|DIR|-", help="As for mesh apply.")], json: Json = False
) -> None:
    """Say everything that is wrong with services and routes, without a store."""
    from mesh.cli.specs import read_specs
    from mesh.spec.errors import SpecError

    try:
        services, routes = read_specs(paths)
    except SpecError as error:
        if not json:
            raise
        console.print_json({"valid": False, "errors": error.errors})
        raise typer.Exit(2) from None
    if json:
        console.print_json({
            "valid": True,
            "services": [spec.canonical() for spec in services],
            "routes": [route.canonical() for route in routes],
        })  # fmt: skip
        return
    for spec in services:
        console.say(f"{spec.name}: valid ({spec.kind})")
    for route in routes:
        console.say(f"route/{route.name}: valid ({len(route.rules)} rule{'s' * (len(route.rules) != 1)})")


@command(_PANEL, example="mesh schema > mesh-service.schema.json")
def schema(
    kind: Annotated[str, typer.Argument(metavar="service|route", help="Of which kind of spec.")] = "service",
) -> None:
    """JSON Schema of a service's or route's spec, for editors that complete and check it."""
    from mesh.spec.schema import json_schema, route_schema

    schemas = {"service": json_schema, "route": route_schema}
    if kind not in schemas:
        raise Invalid(f"there is no schema of {kind!r}: it is service or route")
    console.print_json(schemas[kind]())


@command(_PANEL, example="mesh version --json")
def version(json: Json = False) -> None:
    """The versions of mesh and of Python."""
    import platform

    if json:
        console.print_json({"mesh": __version__, "python": platform.python_version()})
    else:
        console.say(f"mesh {__version__} (Python {platform.python_version()})")


@command(_PANEL, example="mesh doctor")
def doctor(
    store: StoreAddress = None,
    token_file: TokenFile = None,
    runtime: Annotated[str | None, typer.Option(metavar="auto|docker|process", help="What shall run replicas.")] = None,
    dns_listen: Annotated[list[str] | None, typer.Option(metavar="ADDR:PORT", help="Where DNS shall answer.")] = None,
    admin_listen: Annotated[
        str | None, typer.Option(metavar="ADDR:PORT", help="Where admin HTTP shall answer.")
    ] = None,
    upstream: Annotated[list[str] | None, typer.Option(metavar="ADDR[:PORT]", help="Where other names go.")] = None,
    state: Annotated[Path | None, typer.Option(help="The agent's state folder.")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """What is missing or misconfigured on this host for an agent, and how to mend it."""
    import asyncio
    from dataclasses import asdict

    from mesh.cli.doctor import examine

    sources = Sources.read(config)
    settings = sources.agent(
        sources.store(address=store, token_file=token_file),
        runtime=runtime, dns_listen=dns_listen, admin_listen=admin_listen, upstreams=upstream, state=state,
    )  # fmt: skip
    findings = asyncio.run(examine(settings))
    if json:
        console.print_json([asdict(finding) for finding in findings])
    else:
        console.print_table(
            ["", "check", "finding", "to do"],
            [[finding.level, finding.check, finding.what, finding.mend] for finding in findings],
        )
    raise typer.Exit(any(finding.level == "fail" for finding in findings))


@command(_PANEL, example="mesh resolve web SRV")
def resolve(
    name: Annotated[str, typer.Argument(metavar="NAME", help="web is short for web.svc.cluster; or an address.")],
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="A, AAAA, SRV, PTR, TXT, …")] = "A",
    table: Annotated[Path | None, typer.Option("--table", help="A Table in a file instead of an agent's.")] = None,
    admin: Annotated[
        str | None, typer.Option("--admin", metavar="URL", help="The agent to ask; default: the one on this machine.")
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """What DNS answers for a name, and why."""
    from dataclasses import asdict

    from mesh.cli.tables import read_table
    from mesh.dns.explain import explain

    try:
        explanation = explain(read_table(table, admin, Sources.read(config)), name, kind)
    except ValueError as error:
        raise Invalid(str(error)) from None
    if json:
        console.print_json(asdict(explanation))
    else:
        for line in explanation.lines():
            console.say(line)
