"""What an operator writes: one `ServiceSpec` per service, in the spelling of the spec reference.

Validation reports every error at once, each with its path and, for a misspelt field, a suggestion.
Values read in the field's notation (`15s`, `250m`, `128Mi`) and are kept as numbers (seconds,
millicores, bytes); `canonical()` prints them in that notation again.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

from mesh import units
from mesh.spec_errors import SpecError, sentences
from mesh.suggestion import suggestion

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MAX_NAME = 40
"""So that a replica's id, `<service>-<slot>-<4 hex>`, remains one DNS label (63 bytes, RFC 1035 2.3.4)."""

RESERVED_NAMES = frozenset({"ready", "all", "svc", "node", "ns", "localhost"})
"""Words that mean something else in our zone."""


def _quantity(parse: Any, show: Any, pattern: str, example: str) -> Any:
    return (
        BeforeValidator(parse),
        PlainSerializer(show),
        WithJsonSchema({"anyOf": [{"type": "string", "pattern": pattern}, {"type": "number"}], "examples": [example]}),
    )


Duration = Annotated[
    float, *_quantity(units.parse_duration, units.format_duration, r"^(\d+(\.\d+)?(ms|s|m|h|d))+$", "15s")
]
Cpu = Annotated[int, *_quantity(units.parse_cpu, units.format_cpu, r"^\d+(\.\d+)?m?$", "250m")]
Memory = Annotated[int, *_quantity(units.parse_memory, units.format_memory, r"^\d+(\.\d+)?([KMGT]i?)?$", "128Mi")]
Share = Annotated[float, *_quantity(units.parse_share, units.format_share, r"^\d+(\.\d+)?%$", "25%")]
Percent = Annotated[
    float,
    *_quantity(lambda value: _percent(value), units.format_share, r"^\d+(\.\d+)?%?$", "70%"),
]
PortNumber = Annotated[int, Field(ge=1, le=65535)]


class Part(BaseModel):
    """Base of every part of a spec: unknown fields are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class SecretRef(Part):
    secret: str
    """Name under `desired/secrets/`; never shown in status or logs."""


class ConfigRef(Part):
    config: str
    """Name under `desired/configs/`."""


class Resources(Part):
    """What a replica reserves. Counts of anything else (`gpu: 1`) are allowed."""

    cpu: Cpu = 100
    memory: Memory = 64 * 2**20
    counts: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Written beside `cpu` and `memory`, not under a field of its own."""

    @model_validator(mode="before")
    @classmethod
    def _gather_counts(cls, value: object) -> object:
        if not isinstance(value, Mapping) or "counts" in value:
            return value
        known = {key: item for key, item in value.items() if key in ("cpu", "memory")}
        return {**known, "counts": {key: item for key, item in value.items() if key not in known}}

    @model_serializer(mode="wrap")
    def _flatten_counts(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        body: dict[str, Any] = handler(self)
        return {**{key: item for key, item in body.items() if key != "counts"}, **self.counts}


class Limits(Part):
    """What the engine enforces. Memory defaults to the reserved memory, CPU is unlimited by default."""

    cpu: Cpu | None = None
    memory: Memory | None = None


class PortSpec(Part):
    port: PortNumber
    """The port clients use, on the service's address."""
    target: PortNumber | None = None
    """The port inside the container; defaults to `port`."""
    protocol: Literal["http", "tcp", "udp"] = "tcp"
    host_port: PortNumber | None = None
    """A static port on the node; a placement dimension."""

    @property
    def inside(self) -> int:
        return self.target or self.port


class Probe(Part):
    """One of `http`, `tcp` or `exec`."""

    http: str | None = None
    """Path to GET; any 2xx or 3xx is success."""
    tcp: str | None = None
    """Name of the port to connect to."""
    exec: list[str] | None = None
    """Command to run inside the replica; exit code 0 is success."""
    port: str | None = None
    """Name of the port for `http`; defaults to the only port, or the first http one."""
    interval: Duration = 2.0
    timeout: Duration = 1.0
    rise: Annotated[int, Field(ge=1)] = 2
    fall: Annotated[int, Field(ge=1)] = 3
    start: Duration = 30.0
    """Failures within this time after the start do not count."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [kind for kind in ("http", "tcp", "exec") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"needs exactly one of http, tcp or exec, got {' and '.join(kinds) or 'none'}")
        if self.http is not None and not self.http.startswith("/"):
            raise ValueError(f"http must be a path that begins with /, got {self.http!r}")
        if self.exec is not None and not self.exec:
            raise ValueError("exec must name a command")
        if self.interval < 0.05:
            raise ValueError("interval must be 50ms or more")
        return self


class Health(Part):
    ready: Probe | None = None
    """In traffic or not. Without it a replica is ready as soon as it runs."""
    alive: Probe | None = None
    """Failing it replaces the replica."""


class Affinity(Part):
    match: str | None = None
    service: str | None = None
    weight: Annotated[int, Field(ge=-100, le=100)] = 50

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.match is None) == (self.service is None):
            raise ValueError("needs exactly one of match or service")
        return self


class Spread(Part):
    label: str
    targets: dict[str, Percent] = {}


class Placement(Part):
    strategy: Literal["spread", "binpack"] | None = None
    constraints: list[str] = []
    affinities: list[Affinity] = []
    spread: list[Spread] = []
    max_per_node: Annotated[int, Field(ge=1)] | None = None
    max_per: dict[str, Annotated[int, Field(ge=1)]] = {}
    priority: Annotated[int, Field(ge=0, le=100)] = 50


CountOrShare = Annotated[
    int | str,
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^\d+(\.\d+)?%$"}]}),
    BeforeValidator(lambda v: _count_or_share(v)),
]


class Update(Part):
    """How a new release replaces the old one. Start-first unless a static port or volume forbids it."""

    max_surge: CountOrShare = 1
    max_unavailable: CountOrShare = 0
    min_healthy: Duration = 10.0
    healthy_deadline: Duration = 300.0
    progress_deadline: Duration = 600.0
    canary: CountOrShare = 0
    auto_promote: bool = False
    on_failure: Literal["rollback", "pause", "continue"] = "rollback"

    @model_validator(mode="after")
    def _can_move(self) -> Self:
        if self.max_surge in (0, "0%") and self.max_unavailable in (0, "0%"):
            raise ValueError("max_surge and max_unavailable must not both be zero")
        return self


class Restart(Part):
    """Back-off between replacements of a crashing slot."""

    delay: Duration = 1.0
    max_delay: Duration = 60.0
    reset_after: Duration = 600.0


class Stop(Part):
    drain: Duration = 5.0
    """How long a withdrawn replica may finish what it has before it gets the signal."""
    signal: Annotated[str, Field(pattern=r"^SIG[A-Z0-9]+$")] = "SIGTERM"
    grace: Duration = 10.0
    """How long it may take to end before it is killed."""


class Volume(Part):
    path: Annotated[str, Field(pattern=r"^/")]


class Mount(Part):
    source: Annotated[str, Field(pattern=r"^/")]
    path: Annotated[str, Field(pattern=r"^/")]
    read_only: bool = False


class HashBalance(Part):
    hash: Annotated[str, Field(pattern=r"^(client|header:.+|cookie:.+)$")]


class Retries(Part):
    attempts: Annotated[int, Field(ge=0, le=10)] = 2
    on: list[Literal["connect-failure", "reset", "timeout"] | Annotated[int, Field(ge=400, le=599)]] = [
        "connect-failure", "reset", 502, 503,
    ]  # fmt: skip
    budget: Share = 0.2
    per_try_timeout: Duration = 5.0


class Breaker(Part):
    consecutive: Annotated[int, Field(ge=1)] = 5
    success_ratio: Annotated[float, Field(ge=0, le=1)] = 0.8
    window: Duration = 10.0
    open: Duration = 1.0
    max_open: Duration = 60.0
    max_ejected: Share = 0.5


class TrafficLimits(Part):
    in_flight: Annotated[int, Field(ge=1)] = 1024
    queue: Annotated[int, Field(ge=0)] = 1024
    queue_timeout: Duration = 5.0
    rate: Annotated[float, Field(ge=0)] = 0
    """Requests per second; 0 is unlimited."""


class Traffic(Part):
    balance: Literal["least-request", "round-robin", "ewma"] | HashBalance = "least-request"
    timeout: Duration = 15.0
    connect_timeout: Duration = 1.0
    idle_timeout: Duration = 300.0
    retries: Retries = Retries()
    breaker: Breaker = Breaker()
    limits: TrafficLimits = TrafficLimits()


class PrometheusMetric(Part):
    url: str
    query: str
    target: float


class Metric(Part):
    """Exactly one of these."""

    in_flight: Annotated[float, Field(gt=0)] | None = None
    requests_per_second: Annotated[float, Field(gt=0)] | None = None
    cpu: Share | None = None
    memory: Share | None = None
    prometheus: PrometheusMetric | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("needs exactly one of in_flight, requests_per_second, cpu, memory or prometheus")
        return self


class ScaleSchedule(Part):
    cron: str
    min: Annotated[int, Field(ge=0)]
    max: Annotated[int, Field(ge=0)]


class Scale(Part):
    min: Annotated[int, Field(ge=0)] = 1
    max: Annotated[int, Field(ge=1)] = 10
    metrics: list[Metric] = []
    mode: Literal["predictive", "kpa", "hpa"] = "predictive"
    behavior: dict[str, Any] = {}
    scale_down_delay: Duration = 0.0
    to_zero_after: Duration = 0.0
    schedules: list[ScaleSchedule] = []

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not be above max ({self.max})")
        return self


class Schedule(Part):
    cron: str
    zone: str = "UTC"
    overlap: Literal["skip", "allow", "replace"] = "skip"


class Job(Part):
    completions: Annotated[int, Field(ge=1)] = 1
    parallelism: Annotated[int, Field(ge=1)] = 1
    retries: Annotated[int, Field(ge=0)] = 3
    deadline: Duration = 3600.0


class ServiceSpec(Part):
    """The wish: one service as an operator writes it."""

    name: str
    """A DNS label; equals the key's last part."""
    kind: Literal["service", "global", "job", "cron"] = "service"
    image: str | None = None
    """Image for the docker runtime."""
    command: list[str] | None = None
    """Optional with an image, required for the process runtime."""
    env: dict[str, str | SecretRef | ConfigRef] = {}
    replicas: Annotated[int, Field(ge=0, le=100_000)] = 1
    tags: list[str] = []
    """Names of their own: `v2.web.svc.cluster`. Routes may pick a tag."""
    resources: Resources = Resources()
    limits: Limits = Limits()
    ports: dict[str, PortSpec] = {}
    health: Health = Health()
    placement: Placement = Placement()
    update: Update = Update()
    restart: Restart = Restart()
    stop: Stop = Stop()
    volumes: dict[str, Volume] = {}
    """Named, local to the node: pins the slot."""
    mounts: list[Mount] = []
    discovery: Literal["vip", "direct"] = "vip"
    ttl: Duration = 5.0
    all_unready: Literal["any", "nodata"] = "any"
    """What DNS says when nothing is ready."""
    singleton: bool = False
    """True: never two at once, even across a partition."""
    on_return: Literal["keep-new", "keep-old"] = "keep-new"
    traffic: Traffic = Traffic()
    scale: Scale | None = None
    schedule: Schedule | None = None
    job: Job | None = None

    @field_validator("env", mode="before")
    @classmethod
    def _env_values_are_text(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {key: str(item) if isinstance(item, (int, float)) and not isinstance(item, bool) else item
                for key, item in value.items()}  # fmt: skip

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if faults := list(_faults(self)):
            raise ValueError("\n".join(faults))
        return self

    def canonical(self) -> dict[str, Any]:
        """The spec as JSON in the field's notation, without what equals the default."""
        return self.model_dump(mode="json", exclude_defaults=True, by_alias=True)

    def digest(self) -> str:
        """What makes a release: the spec without the fields that do not need one (`replicas`, `scale`)."""
        body = self.model_dump(mode="json", exclude_defaults=True, exclude={"replicas", "scale"})
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]


def _percent(value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = f"{value}%"
    return units.parse_share(value)


def _count_or_share(value: object) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if isinstance(value, str):
        return units.format_share(units.parse_share(value))
    raise ValueError(f"must be a count or a share such as 25%, got {value!r}")


def _label_fault(what: str, name: str, longest: int = 63) -> str | None:
    if len(name) > longest:
        return f"{what} must be at most {longest} characters, got {len(name)}"
    if not NAME.fullmatch(name):
        return f"{what} must be a DNS label (a-z, 0-9 and -, beginning with a letter), got {name!r}"
    return None


def _faults(spec: ServiceSpec) -> "list[str]":
    """Faults that span fields, each with its path."""
    faults: list[str | None] = [_label_fault("name:", spec.name, MAX_NAME)]
    if spec.name in RESERVED_NAMES:
        faults.append(f"name: {spec.name!r} is a reserved name")
    if spec.image is None and spec.command is None:
        faults.append("image: an image (docker runtime) or a command (process runtime) is required")
    if spec.command is not None and not spec.command:
        faults.append("command: must name a program")
    faults.extend(_label_fault(f"ports.{name}: a port's name", name, 15) for name in spec.ports)
    seen: dict[tuple[int, bool], str] = {}
    for name, port in spec.ports.items():
        key = (port.port, port.protocol == "udp")
        if key in seen:
            faults.append(f"ports.{name}.port: {port.port} is already used by port {seen[key]!r}")
        seen.setdefault(key, name)
    for tag in spec.tags:
        fault = _label_fault(f"tags: {tag!r}", tag)
        if fault or tag in ("ready", "all") or tag.isdecimal():
            faults.append(fault or f"tags: {tag!r} is a reserved word")
    for which, probe in (("ready", spec.health.ready), ("alive", spec.health.alive)):
        wanted = probe and (probe.tcp or probe.port)
        if wanted and wanted not in spec.ports:
            faults.append(f"health.{which}: there is no port {wanted!r}{suggestion(wanted, spec.ports)}")
        elif probe and probe.http is not None and not probe.port and not spec.ports:
            faults.append(f"health.{which}: an http probe needs a port in ports")
    if spec.resources.memory and spec.limits.memory is not None and spec.limits.memory < spec.resources.memory:
        faults.append("limits.memory: must not be below resources.memory")
    if (spec.kind == "cron") != (spec.schedule is not None):
        faults.append("schedule: kind cron needs it, other kinds must not have it")
    if spec.job is not None and spec.kind not in ("job", "cron"):
        faults.append("job: only kinds job and cron have it")
    return [fault for fault in faults if fault]


def parse_spec(data: Mapping[str, Any], name: str | None = None) -> ServiceSpec:
    """The spec in `data`; `name` is the key's last part, which must agree with the spec's.

    Raises:
        SpecError: with every fault at once.
    """
    if not isinstance(data, Mapping):
        raise SpecError([f"a service spec must be an object, got {type(data).__name__}"])
    if name is not None and "name" not in data:
        data = {"name": name, **data}
    try:
        spec = ServiceSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(sentences(error, ServiceSpec)) from None
    if name is not None and spec.name != name:
        raise SpecError([f"name: {spec.name!r} must equal the key's last part, {name!r}"])
    return spec


def trusted_spec(data: Mapping[str, Any]) -> ServiceSpec:
    """A spec that the scheduler has validated; fields a newer version added are ignored."""
    return ServiceSpec.model_validate(data, extra="ignore")


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a service spec, for editors."""
    schema = ServiceSpec.model_json_schema(mode="validation")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "mesh service"
    return schema
