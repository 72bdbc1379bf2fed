"""What each process is told: flags first, then `MESH_…` and Consul's own variables, then a config file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NewType

from mesh.model import Capacity

Share = NewType("Share", float)
"""0..1, written `25%`."""


RESERVED = Capacity(cpu=100, memory=256 * 2**20)
"""What an agent with its data plane needs, and a little for the engine (as `kube-reserved` does for a kubelet)."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How to reach the store. The variables are Consul's own."""

    address: str = "http://127.0.0.1:8500"  # CONSUL_HTTP_ADDR; also host:port or https://…
    token: str | None = field(default=None, repr=False)  # CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE
    ca_file: Path | None = None  # CONSUL_CACERT
    cert_file: Path | None = None  # CONSUL_CLIENT_CERT
    key_file: Path | None = None  # CONSUL_CLIENT_KEY
    verify: bool = True  # CONSUL_HTTP_SSL_VERIFY
    root: str = "mesh"  # MESH_ROOT: the prefix of all keys


@dataclass(frozen=True, slots=True)
class EmbeddedStoreSettings:
    """The embedded store as a server."""

    data: Path  # folder of its database
    listen: str = "127.0.0.1:8500"


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """One agent with its data plane."""

    node: str
    store: StoreSettings
    state: Path  # folder for sockets, tokens, process state
    address: str = "127.0.0.1"  # where others reach this node's replicas
    runtime: str = "auto"  # auto | docker | process
    docker_host: str | None = None  # DOCKER_HOST
    engine_address: str | None = None
    """Where containers of an engine on another host are reached; None: that host's address, from `docker_host`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    reserved: Capacity = RESERVED
    """Of the host's capacity, kept for the host itself, the engine and mesh: replicas never get it."""
    publish: str = "auto"
    """How containers are reached: `published` (host ports on `address`), `direct` (their own addresses; right
    on one machine, or where container networks are routed), `auto` (direct while `address` is loopback and the
    engine is this machine's)."""
    dns_listen: tuple[str, ...] = ("127.0.0.1:53",)
    dns_workers: int = 1
    proxy_workers: int = 1
    proxy_trust: tuple[str, ...] = ()  # networks (CIDR) whose X-Forwarded-… the proxy believes and adds to
    admin_listen: str = "127.0.0.1:7070"
    vips: str = "auto"
    """`route`: real VIPs through a local route (root); `loopback`: an address of 127/8 per service and
    unprivileged ports; `auto`: route where allowed."""
    upstreams: tuple[str, ...] = ()  # DNS servers to forward to; empty: /etc/resolv.conf
    access_log: str | None = None  # file, or - for standard output; None: none is written
    access_log_sample: Share = Share(1.0)
    session_ttl: float = 10.0


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """One scheduler; several may run, one leads."""

    store: StoreSettings
    name: str
    admin_listen: str = "127.0.0.1:7071"
    session_ttl: float = 10.0


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """The DNS server alone, from a Table in a file."""

    table: Path
    listen: tuple[str, ...] = ("127.0.0.1:53",)
    workers: int = 1
    admin_listen: str | None = None
    upstreams: tuple[str, ...] = ()
    forward: bool = True
    allow: tuple[str, ...] | None = None  # who may have names forwarded (CIDR); None: the server's default


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """The proxy alone, from a Table in a file."""

    table: Path
    node: str | None = None  # this host's name in it; None: no endpoint is nearer than another
    workers: int = 1
    admin_listen: str | None = None
    access_log: str | None = None  # file, or - for standard output; None: none is written
    access_log_sample: float = 1.0  # share of what went well that is logged; what failed always is
    trust: tuple[str, ...] = ()  # as the agent's proxy_trust


@dataclass(frozen=True, slots=True)
class DevInfo:
    """What a running `mesh dev` writes into `<state>/dev.json`, so that the CLI finds it without a flag."""

    pid: int
    store: str  # http://127.0.0.1:8500
    dns: str  # 127.0.0.1:5353
    admin: str  # http://127.0.0.1:7070
    root: str = "mesh"


@dataclass(frozen=True, slots=True)
class DevSettings:
    """A whole mesh on one machine: store, scheduler and agent in one process, with the agent's workers.

    Default ports that are taken are replaced by free ones; ports that were asked for are not.
    """

    state: Path
    """Folder of everything it keeps; one `mesh dev` per folder."""
    store: StoreSettings | None = None  # a real Consul; None: the embedded store
    store_listen: str | None = None  # of the embedded store; None: 127.0.0.1:8500, or a free port
    node: str | None = None  # None: the host's name
    runtime: str = "auto"  # auto | docker | process
    docker_host: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    vips: str = "auto"  # auto | route | loopback
    dns_listen: str | None = None  # None: 127.0.0.1:53, or 5353.. without the privilege
    admin_listen: str | None = None  # None: 127.0.0.1:7070, or a free port
    dns_workers: int = 1
    proxy_workers: int = 1
    proxy_trust: tuple[str, ...] = ()
    upstreams: tuple[str, ...] = ()
    access_log: str | None = None
    access_log_sample: Share = Share(1.0)
