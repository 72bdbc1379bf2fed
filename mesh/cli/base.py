"""What every command shares: the application, the options that say where the store is, and how a command fails."""

import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh import console, units
from mesh.keys import Keys
from mesh.settings.sources import Sources
from mesh.suggestion import suggestion

if TYPE_CHECKING:
    from mesh.store import Entry, Store
    from mesh.view import View

app = typer.Typer(
    name="mesh",
    help="A lightweight service mesh and DNS-centric orchestrator for Docker hosts.",
    epilog="Start here: mesh dev   and then, beside it: mesh apply examples/guestbook, mesh status",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_CONNECTION = "Connection"

StoreAddress = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="The store; default: MESH_STORE, CONSUL_HTTP_ADDR, a running mesh dev.",
        rich_help_panel=_CONNECTION,
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="File that holds the store's ACL token.", rich_help_panel=_CONNECTION),
]
Root = Annotated[
    str | None,
    typer.Option("--root", help="Prefix of all keys; default: MESH_ROOT, mesh.", rich_help_panel=_CONNECTION),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Config file (TOML); default: ~/.config/mesh, /etc/mesh/config.toml.",
        rich_help_panel=_CONNECTION,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class Failed(Exception):
    """What was asked did not work: one sentence per fault. Exit code 1, or `code`."""

    def __init__(self, *sentences: str, code: int = 1) -> None:
        super().__init__(*sentences)
        self.code = code

    def report(self) -> int:
        for sentence in self.args:
            console.error(sentence)
        return self.code


class Invalid(Failed):
    """What was asked makes no sense. Exit code 2."""

    def __init__(self, *sentences: str) -> None:
        super().__init__(*sentences, code=2)


def command(panel: str, example: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function a command of `mesh`: its docstring is the help, `example` the last line of it."""
    return app.command(rich_help_panel=panel, epilog=f"Example: {example}", **options)


class Mesh:
    """What a command works with: the store, and the keys in it."""

    def __init__(self, store: "Store", keys: Keys, sources: Sources) -> None:
        self.store = store
        self.keys = keys
        self.sources = sources
        self._leader: bool | None = None

    async def view(self) -> "View":
        """What the store holds now."""
        from mesh.view import ViewReader

        listing = await self.store.list(f"{self.keys.root}/")
        self._note_leader(listing.entries)
        return ViewReader(self.keys).read(listing.entries, listing.index)

    async def views(self) -> "AsyncIterator[View]":
        """What the store holds now, and again after every change."""
        from mesh.view import ViewReader

        first = await self.view()  # at once, or its error: a watch would wait for a store that is away
        yield first
        reader = ViewReader(self.keys)
        async for change in self.store.watch(f"{self.keys.root}/"):
            self._note_leader(change.entries)
            view = reader.read(change.entries, change.index)
            if view.index != first.index:
                yield view

    def _note_leader(self, entries: "Mapping[str, Entry]") -> None:
        entry = entries.get(self.keys.leader)
        self._leader = entry is not None and entry.session is not None

    def warnings(self) -> list[str]:
        """What makes that which was read last less than it seems."""
        return ["no scheduler leads, nothing will change; start one: mesh scheduler"] if self._leader is False else []

    def warn_without_leader(self) -> None:
        for warning in self.warnings():
            console.note(f"warning: {warning}")

    def known_services(self, view: "View", names: Sequence[str]) -> None:
        """Raises `Failed` for names that are no service."""
        from mesh.cli.status import service_names

        known = service_names(view)
        if unknown := [name for name in names if name not in known]:
            raise Failed(*(f"there is no service {name!r}{suggestion(name, known)}" for name in unknown))

    async def known_routes(self, names: Sequence[str]) -> None:
        """Raises `Failed` for names that are no route, also none that cannot be read."""
        prefix = self.keys.route("")
        known = [key.removeprefix(prefix) for key in (await self.store.list(prefix)).entries] if names else []
        if unknown := [name for name in names if name not in known]:
            raise Failed(*(f"there is no route {name!r}{suggestion(name, known)}" for name in unknown))


def seconds(flag: str, duration: str) -> float:
    """The seconds of a flag's duration; raises `Invalid`."""
    try:
        return units.parse_duration(duration)
    except ValueError as error:
        raise Invalid(f"{flag}: {error}") from None


def with_mesh(body: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Turns `async body(mesh, …)` into a command that also takes the options which say where the store is."""
    signature = inspect.signature(body)
    _, *own = signature.parameters.values()

    @functools.wraps(body)
    def run(**values: Any) -> None:
        import asyncio

        asyncio.run(_run(body, values))

    parameters = [*own, *inspect.signature(_connection).parameters.values()]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _connection(
    store: StoreAddress = None, token_file: TokenFile = None, root: Root = None, config: Config = None
) -> None:
    """Only its parameters are used: they are those of every command that needs the store."""


async def _run(body: Callable[..., Awaitable[None]], values: dict[str, Any]) -> None:
    flags = {name: values.pop(name) for name in inspect.signature(_connection).parameters}
    async with connected(**flags) as mesh:
        await body(mesh, **values)


@contextlib.asynccontextmanager
async def connected(
    store: str | None, token_file: Path | None, root: str | None, config: Path | None
) -> AsyncIterator[Mesh]:
    """The mesh that these options name."""
    from mesh.store.consul import ConsulStore

    sources = Sources.read(config)
    settings = sources.store(address=store, token_file=token_file, root=root)
    client = ConsulStore(settings)
    try:
        yield Mesh(client, Keys(settings.root), sources)
    finally:
        await client.close()
