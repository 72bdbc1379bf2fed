"""The Table: everything the data plane needs, the seam between it and the control plane.

`build_table` derives it from what is planned and observed; `table_diff` and `apply_delta` carry a
change of the size of the change to the workers; `parse_table` reads one from a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from mesh.model import ReplicaState, Slot


class TableError(ValueError):
    """A Table that cannot be read; says where."""


class Struct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    pass


class TableNode(Struct, frozen=True, kw_only=True):
    address: str


class ProxyProtocol(Struct, frozen=True, kw_only=True):
    """Whether connections begin with whom they come from."""

    accept: bool = False  # all that come in do
    send: Literal["v1", "v2"] | None = None  # ours to the endpoints


class TablePort(Struct, frozen=True, kw_only=True):
    port: int
    protocol: str = "tcp"  # http | tcp | udp
    listen: str | None = None  # overrides VIP:port
    proxy_protocol: ProxyProtocol = ProxyProtocol()


class Endpoint(Struct, frozen=True, kw_only=True):
    """An address worth sending to. `state`: ready, running (alive, not ready), or suspect (was ready)."""

    id: str
    slot: Slot
    node: str
    release: int = 0
    tags: list[str] = []
    weight: int = 100
    state: str = "ready"
    address: str
    ports: dict[str, int] = {}


class TableService(Struct, frozen=True, kw_only=True):
    vip: str = ""
    ttl: int = 5
    discovery: str = "vip"  # vip | direct
    all_unready: str = "any"  # any | nodata
    desired: int = 0
    seats: list[tuple[int, int]] = []  # the first and last of its slots in a row, if they are not 1 to `desired`
    asleep: bool = False  # at zero until it is asked for: requests are held until a replica is ready
    ports: dict[str, TablePort] = {}
    traffic: dict[str, Any] = {}
    endpoints: list[Endpoint] = []


_pack_service = msgspec.msgpack.Encoder().encode
_unpack_service = msgspec.msgpack.Decoder(TableService).decode


class PackedServices(Mapping[str, TableService]):
    """Services kept as the bytes they came in and read when asked for: a fifth of the memory of objects, for a
    worker that looks at few of many."""

    def __init__(self, packed: Mapping[str, bytes]) -> None:
        self._packed = packed

    def __getitem__(self, name: str) -> TableService:
        return _unpack_service(self._packed[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def patched(self, changes: Mapping[str, TableService | None]) -> PackedServices:
        packed = {name: _pack_service(service) if service else None for name, service in changes.items()}
        return PackedServices(_patched(self._packed, packed))

    def changes_since(self, old: PackedServices) -> dict[str, TableService | None]:
        changed = _changes(old._packed, self._packed)
        return {name: _unpack_service(packed) if packed else None for name, packed in changed.items()}


class Target(Struct, frozen=True, kw_only=True):
    """Where requests go. Without a `tag`, beside a target that has one: to the endpoints that lack that tag."""

    service: str
    port: str = "http"
    tag: str | None = None
    weight: int = 100


REDIRECTS = (301, 302, 303, 307, 308)


class Redirect(Struct, frozen=True, kw_only=True):
    """Where clients are sent; what is not named stays. `path` replaces all of it, `prefix` what the rule matched."""

    code: int = 302
    scheme: str | None = None
    host: str | None = None  # with a port, if one is meant
    path: str | None = None
    prefix: str | None = None


class Rewrite(Struct, frozen=True, kw_only=True):
    """What the service is asked for instead; as in `Redirect`."""

    host: str | None = None
    path: str | None = None
    prefix: str | None = None


class RateLimit(Struct, frozen=True, kw_only=True):
    """Requests per second that one worker lets through, for each client or value of a header, or for all together."""

    rate: Annotated[float, msgspec.Meta(gt=0, le=1e12)]
    burst: Annotated[int, msgspec.Meta(ge=0)] = 0  # 0: as many as come in a second
    per: str = "client"  # client | header:NAME | rule


class Rule(Struct, frozen=True, kw_only=True):
    """Which requests, and what becomes of them: they go `to` services, or get a `redirect`."""

    host: str = ""
    path: str = "/"
    methods: list[str] = []
    headers: dict[str, str] = {}
    to: list[Target] = []
    redirect: Redirect | None = None
    rewrite: Rewrite | None = None
    timeout: str | float | None = None  # None: the service's; so too for each of `retries`
    retries: dict[str, Any] = {}
    limits: RateLimit | None = None


class PemSource(Struct, frozen=True, kw_only=True):
    """Where a certificate or key is to be had; the Table itself never holds one."""

    secret: str = ""
    file: str = ""


class TableTls(Struct, frozen=True, kw_only=True):
    cert: PemSource
    key: PemSource


class TableRoute(Struct, frozen=True, kw_only=True):
    """`tls`: it ends here with this certificate, or goes on to the services unopened, by the name that is asked for."""

    listen: str
    rules: list[Rule] = []
    tls: TableTls | Literal["passthrough"] | None = None
    proxy_protocol: ProxyProtocol = ProxyProtocol()


class Table(Struct, frozen=True, kw_only=True):
    index: int = 0
    domain: str = "cluster"
    vip_range: str = "10.96.0.0/16"
    nodes: dict[str, TableNode] = {}
    services: Mapping[str, TableService] = {}
    routes: dict[str, TableRoute] = {}


class RawTable(Struct, frozen=True, kw_only=True):
    """A Table as it is read where its services are to stay packed; such a worker is no proxy and needs no routes."""

    index: int = 0
    domain: str = "cluster"
    vip_range: str = "10.96.0.0/16"
    nodes: dict[str, TableNode] = {}
    services: dict[str, msgspec.Raw] = {}

    def packed(self) -> Table:
        services = PackedServices({name: bytes(service) for name, service in self.services.items()})
        return Table(index=self.index, domain=self.domain, vip_range=self.vip_range, nodes=self.nodes,
                     services=services)  # fmt: skip


class TableDelta(Struct, frozen=True, kw_only=True):
    """What changed between two Tables; None means removed."""

    index: int
    domain: str
    vip_range: str
    nodes: dict[str, TableNode | None] = {}
    services: dict[str, TableService | None] = {}
    routes: dict[str, TableRoute | None] = {}


_decoder = msgspec.json.Decoder(Table)


class _ToldService(msgspec.Struct):
    desired: int | None = None


class _Told(msgspec.Struct):
    """What a file says, and what it leaves to us."""

    services: dict[str, _ToldService] = {}


def parse_table(data: bytes) -> Table:
    """The Table in a file of the shape in docs/table.md.

    Raises:
        TableError: with the place, such as `services.web.ports.http.port: expected int, got str`.
    """
    try:
        table = _decoder.decode(data)
        told = msgspec.json.decode(data, type=_Told)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TableError(_plain(_with_names(data, str(error)))) from None
    try:
        msgspec.msgpack.encode(table)  # as it goes to the workers
    except OverflowError:
        raise TableError("a number beyond 64 bits") from None
    for name, service in table.services.items():
        for port_name, port in service.ports.items():
            where = f"services.{name}.ports.{port_name}"
            if not 1 <= port.port <= 65535:
                raise TableError(f"{where}.port: must be 1..65535, got {port.port}")
            if port.protocol not in ("http", "tcp", "udp"):
                raise TableError(f"{where}.protocol: must be http, tcp or udp, got {port.protocol!r}")
    for name, route in table.routes.items():
        for number, rule in enumerate(route.rules):
            if fault := _rule_fault(rule):
                raise TableError(f"routes.{name}.rules.{number}{fault}")
    services = {
        name: msgspec.structs.replace(service, desired=len(service.endpoints))
        if told.services[name].desired is None else service
        for name, service in table.services.items()
    }  # fmt: skip
    return msgspec.structs.replace(table, services=services)


def _rule_fault(rule: Rule) -> str | None:
    if bool(rule.to) == (rule.redirect is not None):
        return ": needs one of to and redirect"
    if not rule.path.startswith("/"):
        return f".path: must begin with /, got {rule.path!r}"
    if rule.redirect and rule.redirect.code not in REDIRECTS:
        return f".redirect.code: must be one of {', '.join(map(str, REDIRECTS))}, got {rule.redirect.code}"
    if rule.to and not any(target.weight > 0 for target in rule.to):
        return ".to: needs a weight above zero"
    if any(target.weight < 0 for target in rule.to):
        return ".to: a weight must not be below zero"
    for name in ("redirect", "rewrite"):
        change: Redirect | Rewrite | None = getattr(rule, name)
        for place in ("path", "prefix"):
            if (path := getattr(change, place, None)) and not path.startswith("/"):
                return f".{name}.{place}: must begin with /, got {path!r}"
        if change and not _VISIBLE.fullmatch(f"{change.host or ''}{change.path or ''}{change.prefix or ''}"):
            return f".{name}: must be in visible ASCII characters, others escaped (%20)"
    return None


_VISIBLE = re.compile("[!-~]*")
"""What may stand in a request line or a `Location`."""


def _with_names(data: bytes, message: str) -> str:
    """The message with the names that msgspec leaves out: `$.services[...].vip` → `$.services.web.vip`."""
    if "[...]" not in message:
        return message
    document = json.loads(data)
    here: Any = document
    path = message.partition(" - at `$")[2]
    steps = []
    for step in re.findall(r"\.\w+|\[[\d.]+\]", path):
        name: Any = step[1:] if step[0] == "." else step[1:-1]
        if step == "[...]":
            name = _culprit(document, here, message)
            if name is None:  # two keys of one name
                return message
            step = f".{name}"
        steps.append(step)
        here = here[int(name) if isinstance(here, list) else name]
    return message.replace(path, f"{''.join(steps)}`")


def _culprit(document: Any, here: dict[str, Any], message: str) -> str | None:
    """The key of `here`, a part of the document, whose value alone brings the message about."""
    everything = dict(here)
    for name, value in everything.items():
        here.clear()
        here[name] = value
        try:
            _decoder.decode(msgspec.json.encode(document))
        except msgspec.DecodeError as error:
            if str(error) == message:
                return name
    return None


def _plain(message: str) -> str:
    """msgspec's ``Expected `int`, got `str` - at `$.services[...].port` `` with the place first."""
    what, _, where = message.replace("`", "").partition(" - at ")
    what = what[:1].lower() + what[1:]
    return f"{where.removeprefix('$.')}: {what}" if where else what


_Value = TypeVar("_Value")


def _changes(old: Mapping[str, _Value], new: Mapping[str, _Value]) -> dict[str, _Value | None]:
    if old is new:
        return {}
    changed: dict[str, _Value | None] = {
        key: value for key, value in new.items() if (was := old.get(key)) is not value and was != value
    }
    changed.update(dict.fromkeys(old.keys() - new.keys()))
    return changed


def _changed_services(
    old: Mapping[str, TableService], new: Mapping[str, TableService]
) -> dict[str, TableService | None]:
    if isinstance(old, PackedServices) and isinstance(new, PackedServices):
        return new.changes_since(old)
    return _changes(old, new)


def table_diff(old: Table, new: Table) -> TableDelta | None:
    """What turns `old` into `new`; None if nothing but the index differs."""
    delta = TableDelta(
        index=new.index,
        domain=new.domain,
        vip_range=new.vip_range,
        nodes=_changes(old.nodes, new.nodes),
        services=_changed_services(old.services, new.services),
        routes=_changes(old.routes, new.routes),
    )
    same_zone = (old.domain, old.vip_range) == (new.domain, new.vip_range)
    if same_zone and not (delta.nodes or delta.services or delta.routes):
        return None
    return delta


def _patched(old: Mapping[str, _Value], changes: Mapping[str, _Value | None]) -> dict[str, _Value]:
    new = dict(old)
    for key, value in changes.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = value
    return new


def _patched_services(
    old: Mapping[str, TableService], changes: Mapping[str, TableService | None]
) -> Mapping[str, TableService]:
    return old.patched(changes) if isinstance(old, PackedServices) else _patched(old, changes)


def apply_delta(table: Table, delta: TableDelta) -> Table:
    """The Table after the change; parts that did not change are the same objects."""
    return Table(
        index=delta.index,
        domain=delta.domain,
        vip_range=delta.vip_range,
        nodes=_patched(table.nodes, delta.nodes) if delta.nodes else table.nodes,
        services=_patched_services(table.services, delta.services) if delta.services else table.services,
        routes=_patched(table.routes, delta.routes) if delta.routes else table.routes,
    )


IN_TABLE = {ReplicaState.READY: "ready", ReplicaState.RUNNING: "running"}
"""Draining and ended replicas are no endpoints: they are in no answer."""
