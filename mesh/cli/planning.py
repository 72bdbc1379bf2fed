"""`mesh simulate`: what would be, without touching anything."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from mesh.cli.base import Config, Invalid, Json, Root, StoreAddress, TokenFile, command

if TYPE_CHECKING:
    from mesh.scheduler.cluster import Cluster

_PANEL = "Look ahead"

_SHARE = "5%"


class _OptionalShare(TyperCommand):
    """Lets `--rebalance` stand without its value, which typer alone does not."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f"{arg}={_SHARE}" if arg == "--rebalance" else arg for arg in args])


@command(_PANEL, example="mesh simulate cluster.yaml --lose-any 1 --until-full web", cls=_OptionalShare)
def simulate(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="A cluster in JSON or YAML; - is standard input.")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="The running cluster instead of a file.")] = False,
    lose: Annotated[
        list[str] | None, typer.Option("--lose", metavar="NODE[,NODE…]", help="As if these nodes were lost.")
    ] = None,
    lose_any: Annotated[
        int | None, typer.Option("--lose-any", metavar="K", help="Whether all still fits, whichever K nodes are lost.")
    ] = None,
    until_full: Annotated[
        str | None, typer.Option("--until-full", metavar="SERVICE", help="How many more replicas of it fit.")
    ] = None,
    rebalance: Annotated[
        str | None,
        typer.Option("--rebalance", metavar="[=SHARE]", help=f"Also move at most this share of replicas ({_SHARE})."),
    ] = None,
    store: StoreAddress = None,
    token_file: TokenFile = None,
    root: Root = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Where everything would run in the end, and what would not fit: of a cluster in a file, or the running one.

    Exit code 3 if something does not fit.
    """
    from mesh.cli.cluster_file import read_cluster
    from mesh.cli.simulate import Questions, simulate

    if live == (file is not None):
        raise Invalid("give either a FILE or --live")
    lost = [name for names in lose or [] for name in names.split(",")]
    questions = Questions(lost, lose_any, until_full, rebalance)
    cluster = read_cluster(file) if file is not None else _running(store, token_file, root, config)
    raise typer.Exit(simulate(cluster, questions, as_json=json))


def _running(store: str | None, token_file: Path | None, root: str | None, config: Path | None) -> "Cluster":
    """The running cluster."""
    import asyncio

    from mesh.cli.base import connected
    from mesh.scheduler.live_cluster import live_cluster

    async def read() -> "Cluster":
        async with connected(store, token_file, root, config) as mesh:
            return live_cluster(await mesh.view())

    return asyncio.run(read())
