"""`mesh dev`, `agent`, `scheduler`, `store`, `dns`, `proxy`: each resolves its settings and runs until told to stop."""

from pathlib import Path
from typing import Annotated

import typer

from mesh import console, units
from mesh.cli.base import Config, StoreAddress, TokenFile, command
from mesh.settings import DnsSettings, ProxySettings
from mesh.settings.sources import SettingsError, Sources, check_listen, check_network

_PANEL = "Run it"

Runtime = Annotated[
    str | None, typer.Option("--runtime", metavar="auto|docker|process", help="What runs the replicas.")
]
State = Annotated[Path | None, typer.Option("--state", help="Folder for sockets, tokens and process state.")]
Labels = Annotated[list[str] | None, typer.Option("--label", "-l", metavar="NAME=VALUE", help="A label of this node.")]
Reserve = Annotated[
    list[str] | None,
    typer.Option("--reserve", metavar="NAME=AMOUNT", help="Kept for the host itself; default: cpu=100m,memory=256Mi."),
]
Vips = Annotated[
    str | None,
    typer.Option("--vips", metavar="auto|route|loopback", help="Real virtual IPs (root), or addresses of 127/8."),
]
Upstreams = Annotated[
    list[str] | None,
    typer.Option("--upstream", metavar="ADDR[:PORT]", help="DNS server for other names; default: /etc/resolv.conf."),
]
NodeName = Annotated[str | None, typer.Option("--node", help="This node's name; default: the host's.")]
DockerHost = Annotated[str | None, typer.Option("--docker-host", help="The Docker engine; default: DOCKER_HOST.")]
DnsListen = Annotated[list[str] | None, typer.Option("--dns-listen", metavar="ADDR:PORT", help="Where DNS answers.")]
AdminListen = Annotated[
    str | None, typer.Option("--admin-listen", metavar="ADDR:PORT", help="Where admin HTTP answers.")
]
DnsWorkers = Annotated[int | None, typer.Option("--dns-workers", min=1, max=64, help="DNS processes.")]
ProxyWorkers = Annotated[int | None, typer.Option("--proxy-workers", min=1, max=64, help="Proxy processes.")]
Trust = Annotated[
    list[str] | None,
    typer.Option("--trust", metavar="CIDR", help="Whose X-Forwarded-… headers the proxy believes; default: nobody's."),
]
Workers = Annotated[int, typer.Option("--workers", min=1, max=64, help="Processes that share the port.")]
AccessLog = Annotated[
    str | None,
    typer.Option(metavar="FILE|-", help="A line of JSON for each request and TCP session; - is standard output."),
]
AccessLogSample = Annotated[
    str | None,
    typer.Option(metavar="SHARE", help="How much of what went well is logged, as 1%; what failed always is."),
]
TableFile = Annotated[Path, typer.Option("--table", help="The Table; read again when it changes.")]
Admin = Annotated[str | None, typer.Option("--admin", metavar="ADDR:PORT", help="Admin HTTP: /healthz, /metrics, …")]


@command(_PANEL, example="mesh dev --runtime process")
def dev(
    state: State = None,
    store: StoreAddress = None,
    token_file: TokenFile = None,
    store_listen: Annotated[str | None, typer.Option(metavar="ADDR:PORT", help="Of the embedded store.")] = None,
    node: NodeName = None,
    runtime: Runtime = None,
    docker_host: DockerHost = None,
    label: Labels = None,
    vips: Vips = None,
    dns_listen: Annotated[str | None, typer.Option(metavar="ADDR:PORT", help="Where DNS answers.")] = None,
    admin_listen: AdminListen = None,
    upstream: Upstreams = None,
    dns_workers: DnsWorkers = None,
    proxy_workers: ProxyWorkers = None,
    trust: Trust = None,
    access_log: AccessLog = None,
    access_log_sample: AccessLogSample = None,
    config: Config = None,
) -> None:
    """All of it on this machine: store, scheduler, agent, DNS and proxy. Ctrl-C removes all that it started.

    What was applied is kept for the next time. With --store it uses that Consul instead of the embedded store.
    """
    from mesh.dev import run_dev

    sources = Sources.read(config)
    settings = sources.dev_settings(
        sources.store(address=store, token_file=token_file) if store else None,
        state=state, store_listen=store_listen, node=node, runtime=runtime, docker_host=docker_host, labels=label,
        vips=vips, dns_listen=dns_listen, admin_listen=admin_listen, upstreams=upstream, dns_workers=dns_workers,
        proxy_workers=proxy_workers, proxy_trust=trust, access_log=access_log, access_log_sample=access_log_sample,
    )  # fmt: skip
    raise typer.Exit(run_dev(settings))


@command(_PANEL, example="mesh agent --node n1 --address 10.77.0.11 --label zone=eu-1 --store http://10.77.0.1:8500")
def agent(
    node: NodeName = None,
    address: Annotated[str | None, typer.Option(help="Where others reach this node's replicas.")] = None,
    state: State = None,
    store: StoreAddress = None,
    token_file: TokenFile = None,
    runtime: Runtime = None,
    docker_host: DockerHost = None,
    engine_address: Annotated[
        str | None,
        typer.Option(metavar="IP", help="Where containers of a remote engine are reached; default: its host."),
    ] = None,
    label: Labels = None,
    reserve: Reserve = None,
    publish: Annotated[
        str | None, typer.Option(metavar="auto|published|direct", help="How containers are reached.")
    ] = None,
    vips: Vips = None,
    dns_listen: DnsListen = None,
    admin_listen: AdminListen = None,
    upstream: Upstreams = None,
    dns_workers: DnsWorkers = None,
    proxy_workers: ProxyWorkers = None,
    trust: Trust = None,
    access_log: AccessLog = None,
    access_log_sample: AccessLogSample = None,
    config: Config = None,
) -> None:
    """This host's agent: runs its replicas, answers DNS and proxies their traffic. One per host."""
    from mesh.daemon import run_agent

    sources = Sources.read(config)
    settings = sources.agent(
        sources.store(address=store, token_file=token_file),
        node=node, address=address, state=state, runtime=runtime, docker_host=docker_host,
        engine_address=engine_address, labels=label, reserved=reserve, publish=publish, vips=vips,
        dns_listen=dns_listen, admin_listen=admin_listen,
        upstreams=upstream, dns_workers=dns_workers, proxy_workers=proxy_workers, proxy_trust=trust,
        access_log=access_log, access_log_sample=access_log_sample,
    )  # fmt: skip
    raise typer.Exit(run_agent(settings))


@command(_PANEL, example="mesh scheduler --store http://10.77.0.1:8500")
def scheduler(
    name: Annotated[str | None, typer.Option(help="Its name among schedulers; default: the host's.")] = None,
    store: StoreAddress = None,
    token_file: TokenFile = None,
    admin_listen: AdminListen = None,
    config: Config = None,
) -> None:
    """The scheduler: decides what runs where. Run one or several; one leads, the others wait."""
    from mesh.daemon import run_scheduler

    sources = Sources.read(config)
    settings = sources.scheduler(
        sources.store(address=store, token_file=token_file), name=name, admin_listen=admin_listen
    )
    raise typer.Exit(run_scheduler(settings))


@command(_PANEL, example="mesh store --data /var/lib/mesh/store --listen 127.0.0.1:8500")
def store(
    data: Annotated[Path | None, typer.Option(help="Folder of its database.")] = None,
    listen: Annotated[str | None, typer.Option(metavar="ADDR:PORT", help="Default: 127.0.0.1:8500.")] = None,
    config: Config = None,
) -> None:
    """The embedded store alone: speaks the part of Consul's HTTP API that the mesh uses."""
    from mesh.daemon import Stop, run_process
    from mesh.store.embedded import EmbeddedStore

    settings = Sources.read(config).embedded(data=data, listen=listen)

    async def serve(stop: Stop) -> None:
        server = EmbeddedStore(settings)
        await server.start()
        console.note(f"the store answers on {server.address}, its database is in {settings.data}")
        try:
            await stop.wait()
        finally:
            await server.close()

    raise typer.Exit(run_process(serve))


@command(_PANEL, example="mesh dns --table table.json --listen 127.0.0.1:5353 --workers 2")
def dns(
    table: TableFile,
    listen: Annotated[list[str], typer.Option(metavar="ADDR:PORT", help="Where it answers.")] = ["127.0.0.1:53"],  # noqa: B006
    workers: Workers = 1,
    admin: Admin = None,
    upstream: Upstreams = None,
    no_forward: Annotated[bool, typer.Option("--no-forward", help="Refuse other names.")] = False,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="CIDR", help="Who may have names forwarded; default: private networks.")
    ] = None,
) -> None:
    """The DNS server alone, from a Table in a file."""
    from mesh.daemon import run_dns

    _check_table(table)
    settings = DnsSettings(
        table=table, listen=_listens(listen), workers=workers, admin_listen=_listen("--admin", admin),
        upstreams=_split(upstream), forward=not no_forward, allow=_split(allow) or None,
    )  # fmt: skip
    raise typer.Exit(run_dns(settings))


@command(_PANEL, example="mesh proxy --table table.json --admin 127.0.0.1:7070")
def proxy(
    table: TableFile,
    node: Annotated[str | None, typer.Option(help="This host's name in the Table, for `prefer: node`.")] = None,
    workers: Workers = 1,
    admin: Admin = None,
    access_log: AccessLog = None,
    access_log_sample: AccessLogSample = None,
    trust: Trust = None,
) -> None:
    """The proxy alone, from a Table in a file. SIGHUP replaces its workers without a gap."""
    from mesh.daemon import run_proxy

    _check_table(table)
    settings = ProxySettings(
        table=table, node=node, workers=workers, admin_listen=_listen("--admin", admin), access_log=access_log,
        access_log_sample=_share(access_log_sample), trust=_networks(trust),
    )  # fmt: skip
    raise typer.Exit(run_proxy(settings))


def _share(value: str | None) -> float:
    try:
        return 1.0 if value is None else units.parse_share(value)
    except ValueError as error:
        raise SettingsError(f"--access-log-sample: {error}") from None


def _check_table(path: Path) -> None:
    if not path.is_file():
        raise SettingsError(f"--table: {path} is not a file")


def _split(values: list[str] | None) -> tuple[str, ...]:
    return tuple(word for value in values or () for part in value.split(",") if (word := part.strip()))


def _networks(values: list[str] | None) -> tuple[str, ...]:
    try:
        return tuple(map(check_network, _split(values)))
    except ValueError as error:
        raise SettingsError(f"--trust: {error}") from None


def _listens(values: list[str]) -> tuple[str, ...]:
    return tuple(_listen("--listen", value) or "" for value in _split(values))


def _listen(flag: str, value: str | None) -> str | None:
    try:
        return check_listen(value) if value else None
    except ValueError as error:
        raise SettingsError(f"{flag}: {error}") from None
