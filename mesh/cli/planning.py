"""`mesh plan`, `explain`, `rebalance`, `simulate`: what would be, and why, without touching anything."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from mesh.cli.base import Config, Invalid, Json, Mesh, Root, StoreAddress, TokenFile, command, connected, with_mesh

if TYPE_CHECKING:
    from mesh.scheduler.forecast.cluster import Cluster

_PANEL = "Look ahead"

_SHARE = "5%"


@command(_PANEL, example="mesh plan web.yaml, and then: mesh apply web.yaml --plan 41")
@with_mesh
async def plan(
    mesh: Mesh,
    paths: Annotated[list[str], typer.Argument(metavar="FILE…|DIR|-", help="As for mesh apply.")],
    json: Json = False,
) -> None:
    """What mesh apply would change: the specs' fields, what would be placed, replaced and stopped, what would wait.

    Exit code 3 if something would wait. The index says what the plan is of: mesh apply --plan INDEX.
    """
    from mesh.cli.plan import show_plan
    from mesh.cli.specs import read_specs

    services, routes = read_specs(paths)
    raise typer.Exit(await show_plan(mesh, services, routes, as_json=json))


@command(_PANEL, example="mesh explain web n3")
@with_mesh
async def explain(
    mesh: Mesh,
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="Whose places are explained.")],
    node: Annotated[str | None, typer.Argument(metavar="NODE", help="Only this node.")] = None,
    json: Json = False,
) -> None:
    """Why a service runs where it does: for what waits a sentence per node, for what is placed the node's score."""
    from mesh.cli.explain import explain

    explain(await mesh.view(), service, node, as_json=json)


@command(_PANEL, example="mesh rebalance --plan --share 10%")
@with_mesh
async def rebalance(
    mesh: Mesh,
    plan: Annotated[bool, typer.Option("--plan", help="Show the moves; nothing is moved.")] = False,
    share: Annotated[
        str, typer.Option("--share", metavar="SHARE", help="At most this share of all replicas moves.")
    ] = _SHARE,
    json: Json = False,
) -> None:
    """What would be moved to better places: fewer nodes in use (binpack), or a more even load (spread).

    The scheduler moves it, a share at a time, once it is told to: "rebalance": {"share": 0.05, "interval": 600} in
    desired/config.
    """
    from mesh.cli.simulate import show_rebalance
    from mesh.scheduler.forecast.live_cluster import live_cluster

    if not plan:
        raise Invalid(
            "this command moves nothing: --plan shows what would be moved; the scheduler moves it, a share every "
            f'interval, once the JSON in the key {mesh.keys.config} has "rebalance": {{"share": 0.05, "interval": 600}}'
        )
    show_rebalance(live_cluster(await mesh.view()), share, as_json=json)


class _OptionalShare(TyperCommand):
    """Lets `--rebalance` stand without its value, which typer alone does not."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f"{arg}={_SHARE}" if arg == "--rebalance" else arg for arg in args])


@command(_PANEL, example="mesh simulate cluster.yaml --lose-any 1 --until-full web", cls=_OptionalShare)
def simulate(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="A cluster in JSON, YAML or TOML; - is standard input.")
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
    lost = [name.strip() for names in lose or [] for name in names.split(",")]
    cluster = read_cluster(file) if file is not None else _running(store, token_file, root, config)
    raise typer.Exit(simulate(cluster, Questions(lost, lose_any, until_full, rebalance), as_json=json))


def _running(store: str | None, token_file: Path | None, root: str | None, config: Path | None) -> "Cluster":
    """The running cluster."""
    import asyncio

    from mesh.scheduler.forecast.live_cluster import live_cluster

    async def read() -> "Cluster":
        async with connected(store, token_file, root, config) as mesh:
            return live_cluster(await mesh.view())

    return asyncio.run(read())
