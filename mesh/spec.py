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
    """Cores or millicores."""
    memory: Memory = 64 * 2**20
    """Bytes, with K, M, G or Ki, Mi, Gi."""
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
    """Unlimited if absent."""
    memory: Memory | None = None
    """As much as is reserved, if absent."""


class PortSpec(Part):
    port: PortNumber
    """The port clients use, on the service's address."""
    target: PortNumber | None = None
    """The port inside the container; defaults to `port`."""
    protocol: Literal["http", "tcp", "udp"] = "tcp"
    """What the proxy speaks on it: requests for `http`, connections for `tcp`, datagrams for `udp`."""
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
    """Time between probes."""
    timeout: Duration = 1.0
    """A probe that takes longer has failed."""
    rise: Annotated[int, Field(ge=1)] = 2
    """Successes in a row until it counts as healthy."""
    fall: Annotated[int, Field(ge=1)] = 3
    """Failures in a row until it counts as unhealthy."""
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
    """Towards nodes for which this constraint holds: `zone == eu-1`."""
    service: str | None = None
    """Towards nodes that run this service."""
    weight: Annotated[int, Field(ge=-100, le=100)] = 50
    """-100 (away from) to 100 (towards)."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.match is None) == (self.service is None):
            raise ValueError("needs exactly one of match or service")
        return self


class Spread(Part):
    label: str
    """Node label whose values the replicas are spread over."""
    targets: dict[str, Percent] = {}
    """Share of the replicas per value; the rest is shared evenly among values not named."""


class Placement(Part):
    strategy: Literal["spread", "binpack"] | None = None
    """Even load, or full nodes first; default: the cluster's."""
    constraints: list[str] = []
    """What a node must be: `zone == eu-1`, `disk in [ssd, nvme]`, `kernel >= 5.10`, `gpu-model exists`."""
    affinities: list[Affinity] = []
    """What a node should be."""
    spread: list[Spread] = []
    """Over which labels to spread."""
    max_per_node: Annotated[int, Field(ge=1)] | None = None
    """Most replicas on one node."""
    max_per: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Most replicas per value of a node label: `{rack: 4}`."""
    priority: Annotated[int, Field(ge=0, le=100)] = 50
    """Who comes first when room is scarce."""


CountOrShare = Annotated[
    int | str,
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^\d+(\.\d+)?%$"}]}),
    BeforeValidator(lambda v: _count_or_share(v)),
]


class Update(Part):
    """How a new release replaces the old one. Start-first unless a static port or volume forbids it."""

    max_surge: CountOrShare = 1
    """How many replicas, or what share, may run beyond `replicas` meanwhile."""
    max_unavailable: CountOrShare = 0
    """How many, or what share, may be missing meanwhile."""
    min_healthy: Duration = 10.0
    """How long a new replica must be ready before the next is begun."""
    healthy_deadline: Duration = 300.0
    """A new replica that is not ready by then has failed."""
    progress_deadline: Duration = 600.0
    """Without any progress for so long, the update has failed."""
    canary: CountOrShare = 0
    """How many, or what share, of the new release to start before it must be promoted."""
    auto_promote: bool = False
    """Promote as soon as all canaries are healthy."""
    on_failure: Literal["rollback", "pause", "continue"] = "rollback"
    """What to do when the update fails."""

    @model_validator(mode="after")
    def _can_move(self) -> Self:
        if self.max_surge in (0, "0%") and self.max_unavailable in (0, "0%"):
            raise ValueError("max_surge and max_unavailable must not both be zero")
        return self


class Restart(Part):
    """Back-off between replacements of a crashing slot."""

    delay: Duration = 1.0
    """After the first failure; doubles with each."""
    max_delay: Duration = 60.0
    """Where it stops doubling."""
    reset_after: Duration = 600.0
    """Running well for so long forgets earlier failures."""


class Stop(Part):
    drain: Duration = 5.0
    """How long a withdrawn replica may finish what it has before it gets the signal."""
    signal: Annotated[str, Field(pattern=r"^SIG[A-Z0-9]+$")] = "SIGTERM"
    """What asks it to end."""
    grace: Duration = 10.0
    """How long it may take to end before it is killed."""


class Volume(Part):
    path: Annotated[str, Field(pattern=r"^/")]
    """Where it is mounted in a container; a plain process finds its folder in `VOLUME_<NAME>`."""


class Mount(Part):
    source: Annotated[str, Field(pattern=r"^/")]
    """On the host."""
    path: Annotated[str, Field(pattern=r"^/")]
    """In the container."""
    read_only: bool = False
    """Mounted so that it cannot be written."""


class HashBalance(Part):
    hash: Annotated[str, Field(pattern=r"^(client|header:.+|cookie:.+)$")]
    """Requests alike in this go to the same replica."""


class Retries(Part):
    attempts: Annotated[int, Field(ge=0, le=10)] = 2
    """Further tries after the first."""
    on: list[Literal["connect-failure", "reset", "timeout"] | Annotated[int, Field(ge=400, le=599)]] = [
        "connect-failure", "reset", 502, 503,
    ]  # fmt: skip
    """After what; only what is safe to repeat is repeated."""
    budget: Share = 0.2
    """Most retries, as a share of the requests."""
    per_try_timeout: Duration = 5.0
    """Time for each try."""


class Breaker(Part):
    consecutive: Annotated[int, Field(ge=1)] = 5
    """Failures in a row that eject a replica."""
    success_ratio: Annotated[float, Field(ge=0, le=1)] = 0.8
    """A lower share of successes within `window` ejects it too."""
    window: Duration = 10.0
    """Over which the ratio is taken."""
    open: Duration = 1.0
    """First time of ejection; doubles with each."""
    max_open: Duration = 60.0
    """Where it stops doubling."""
    max_ejected: Share = 0.5
    """Most of the replicas that may be ejected at once."""


class TrafficLimits(Part):
    in_flight: Annotated[int, Field(ge=1)] = 1024
    """Most requests under way at once."""
    queue: Annotated[int, Field(ge=0)] = 1024
    """Most requests that wait."""
    queue_timeout: Duration = 5.0
    """How long one may wait."""
    rate: Annotated[float, Field(ge=0)] = 0
    """Requests per second; 0 is unlimited."""


class Traffic(Part):
    balance: Literal["least-request", "round-robin", "ewma"] | HashBalance = "least-request"
    """How a replica is chosen."""
    timeout: Duration = 15.0
    """For a whole request, with its retries."""
    connect_timeout: Duration = 1.0
    """For connecting to a replica."""
    idle_timeout: Duration = 300.0
    """A connection without traffic for so long is closed."""
    retries: Retries = Retries()
    """When a request is tried again."""
    breaker: Breaker = Breaker()
    """When a replica that fails is left alone."""
    limits: TrafficLimits = TrafficLimits()
    """How much a service takes on."""


class PrometheusMetric(Part):
    url: str
    """Base URL of the Prometheus server."""
    query: str
    """PromQL that yields one number."""
    target: float
    """What it should be per replica."""


class Metric(Part):
    """Exactly one of these."""

    in_flight: Annotated[float, Field(gt=0)] | None = None
    """Requests under way per replica."""
    requests_per_second: Annotated[float, Field(gt=0)] | None = None
    """Per replica."""
    cpu: Share | None = None
    """Share of the reserved CPU in use."""
    memory: Share | None = None
    """Share of the reserved memory in use."""
    prometheus: PrometheusMetric | None = None
    """A number from elsewhere."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("needs exactly one of in_flight, requests_per_second, cpu, memory or prometheus")
        return self


class ScaleSchedule(Part):
    cron: str
    """When it begins to hold."""
    min: Annotated[int, Field(ge=0)]
    """`min` from then on."""
    max: Annotated[int, Field(ge=0)]
    """`max` from then on."""


class Scale(Part):
    min: Annotated[int, Field(ge=0)] = 1
    """Fewest replicas."""
    max: Annotated[int, Field(ge=1)] = 10
    """Most replicas."""
    metrics: list[Metric] = []
    """What the count follows; the one that asks for most decides."""
    mode: Literal["predictive", "kpa", "hpa"] = "predictive"
    """How the count is computed."""
    behavior: dict[str, Any] = {}
    """Limits on how fast it changes."""
    scale_down_delay: Duration = 0.0
    """How long less must suffice before it scales down."""
    to_zero_after: Duration = 0.0
    """Without requests for so long, no replica remains; 0 keeps `min`."""
    schedules: list[ScaleSchedule] = []
    """Bounds for certain times."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not be above max ({self.max})")
        return self


class Schedule(Part):
    cron: str
    """Five fields: minute, hour, day, month, weekday."""
    zone: str = "UTC"
    """Time zone of the fields."""
    overlap: Literal["skip", "allow", "replace"] = "skip"
    """What to do when the last run has not ended."""


class Job(Part):
    completions: Annotated[int, Field(ge=1)] = 1
    """How many runs must succeed."""
    parallelism: Annotated[int, Field(ge=1)] = 1
    """How many run at once."""
    retries: Annotated[int, Field(ge=0)] = 3
    """How many may fail before the job has."""
    deadline: Duration = 3600.0
    """How long the job may take in all."""


class ServiceSpec(Part):
    """The wish: one service as an operator writes it."""

    name: str
    """A DNS label; equals the key's last part."""
    kind: Literal["service", "global", "job", "cron"] = "service"
    """Runs until told to stop, the same on every eligible node, once to its end, or that by the clock."""
    image: str | None = None
    """Image for the docker runtime."""
    command: list[str] | None = None
    """Optional with an image, required for the process runtime."""
    env: dict[str, str | SecretRef | ConfigRef] = {}
    """Environment variables: text, or where the text is kept."""
    replicas: Annotated[int, Field(ge=0, le=100_000)] = 1
    """How many; `scale` may override it."""
    tags: list[str] = []
    """Names of their own: `v2.web.svc.cluster`. Routes may pick a tag."""
    resources: Resources = Resources()
    """What is reserved for each replica."""
    limits: Limits = Limits()
    """What each replica may use at most."""
    ports: dict[str, PortSpec] = {}
    """Named ports of the service."""
    health: Health = Health()
    """When a replica is fit for traffic, and when it is beyond hope."""
    placement: Placement = Placement()
    """Where replicas may and should run."""
    update: Update = Update()
    """How a new release replaces the old one."""
    restart: Restart = Restart()
    """How soon a replica that failed is replaced."""
    stop: Stop = Stop()
    """How a replica is ended."""
    volumes: dict[str, Volume] = {}
    """Named, local to the node: pins the slot."""
    mounts: list[Mount] = []
    """Files and folders of the host."""
    discovery: Literal["vip", "direct"] = "vip"
    """Whether the name resolves to the virtual IP or to the ready replicas themselves."""
    ttl: Duration = 5.0
    """How long resolvers may keep an answer."""
    all_unready: Literal["any", "nodata"] = "any"
    """What DNS says when nothing is ready."""
    singleton: bool = False
    """True: never two at once, even across a partition."""
    on_return: Literal["keep-new", "keep-old"] = "keep-new"
    """When a lost node comes back with a replica that was replaced: which of the two stays."""
    traffic: Traffic = Traffic()
    """How requests are spread, repeated and limited."""
    scale: Scale | None = None
    """Automatic scaling."""
    schedule: Schedule | None = None
    """When a `cron` service runs."""
    job: Job | None = None
    """How a `job` or `cron` service runs to its end."""

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
