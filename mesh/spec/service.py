"""What an operator writes: one `ServiceSpec` per service, in the spelling of the spec reference.

Validation reports every error at once, each with its path and, for a misspelt field, a suggestion.
Values read in the field's notation (`15s`, `250m`, `128Mi`) and are kept as numbers (seconds,
millicores, bytes); `canonical()` prints them in that notation again.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from mesh.spec.checks import MAX_NAME as MAX_NAME
from mesh.spec.checks import faults, shape_fault
from mesh.spec.errors import SpecError as SpecError
from mesh.spec.errors import sentences
from mesh.spec.fields import (
    Count,
    CountOrShare,
    Cpu,
    Duration,
    FieldFault,
    FilePath,
    Memory,
    NetworkName,
    Part,
    PortNumber,
    Positive,
    Ratio,
    Replicas,
    Signal,
    Text,
    UrlPath,
    VariableName,
    Word,
    one_sentence,
)
from mesh.spec.mounts import Mount as Mount
from mesh.spec.placement import Placement
from mesh.spec.scale import Job, Scale, Schedule
from mesh.spec.strict_json import DocumentError, parse_json
from mesh.spec.traffic import Traffic
from mesh.units import shown


class SecretRef(Part):
    secret: Word
    """Name under `desired/secrets/`; never shown in status or logs."""


class ConfigRef(Part):
    config: Word
    """Name under `desired/configs/`."""


EnvValue = Annotated[Text | SecretRef | ConfigRef, one_sentence("text, {secret: NAME} or {config: NAME}")]


class Resources(Part):
    """What a replica reserves. Counts of anything else (`gpu: 1`) are allowed."""

    cpu: Cpu = 100
    """Cores or millicores."""
    memory: Memory = 64 * 2**20
    """Bytes, with K, M, G or Ki, Mi, Gi."""
    counts: dict[Word, Count] = {}
    """Written beside `cpu` and `memory`, not under a field of its own."""

    @model_validator(mode="before")
    @classmethod
    def _gather_counts(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        known = {key: item for key, item in value.items() if key in ("cpu", "memory")}
        return {**known, "counts": {key: item for key, item in value.items() if key not in known}}

    @model_serializer(mode="wrap")
    def _flatten_counts(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        body: dict[str, Any] = handler(self)
        return {**{key: item for key, item in body.items() if key != "counts"}, **self.counts}


class Limits(Part):
    """What the engine enforces."""

    cpu: Cpu | None = None
    """Unlimited if absent."""
    memory: Memory | None = None
    """As much as is reserved, if absent."""


class ProxyProtocolSpec(Part):
    """Whether TCP connections begin with whom they come from: HAProxy's PROXY protocol."""

    accept: bool = False
    """All connections that come in begin so, as a load balancer in front makes them. Others are refused."""
    send: Literal["v1", "v2"] | None = None
    """Those to the replicas begin so, in this version."""


class PortSpec(Part):
    """A port of the service."""

    port: PortNumber
    """The port clients use, on the service's address."""
    target: PortNumber | None = None
    """The port inside the container; defaults to `port`."""
    protocol: Literal["http", "tcp", "udp"] = "tcp"
    """What the proxy speaks on it: requests for `http`, connections for `tcp`, datagrams for `udp`."""
    host_port: PortNumber | None = None
    """A static port on the node; a placement dimension."""
    proxy_protocol: ProxyProtocolSpec = ProxyProtocolSpec()
    """Whether connections begin with whom they come from."""

    @model_validator(mode="after")
    def _tells_addresses(self) -> Self:
        if self.protocol == "udp" and self.proxy_protocol != ProxyProtocolSpec():
            raise FieldFault("proxy_protocol", "is for http and tcp ports")
        if self.protocol == "http" and self.proxy_protocol.send is not None:
            raise FieldFault("proxy_protocol.send", "is for tcp ports: X-Forwarded-For tells it for http")
        return self

    @property
    def inside(self) -> int:
        return self.target or self.port


class Probe(Part):
    """One of `http`, `tcp` or `exec`."""

    http: UrlPath | None = None
    """Path to GET; any 2xx or 3xx is success."""
    tcp: Word | None = None
    """Name of the port to connect to."""
    exec: list[Text] | None = None
    """Command to run inside the replica; exit code 0 is success."""
    port: Word | None = None
    """Name of the port for `http`; defaults to the only port, or the first http one."""
    interval: Duration = 2.0
    """Time between probes."""
    timeout: Duration = 1.0
    """A probe that takes longer has failed."""
    rise: Positive = 2
    """Successes in a row until it counts as healthy."""
    fall: Positive = 3
    """Failures in a row until it counts as unhealthy."""
    start: Duration = 30.0
    """Failures within this time after the start do not count."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [kind for kind in ("http", "tcp", "exec") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"needs exactly one of http, tcp or exec, got {' and '.join(kinds) or 'none'}")
        if self.exec == []:
            raise FieldFault("exec", "must name a command")
        if self.interval < 0.05:
            raise FieldFault("interval", "must be 50ms or more")
        if not self.timeout:
            raise FieldFault("timeout", "must be more than zero")
        if self.port is not None and self.http is None:
            raise FieldFault("port", "is for http probes; tcp names its port itself")
        return self


class Health(Part):
    """When a replica is in traffic, and when it is replaced."""

    ready: Probe | None = None
    """In traffic or not. Without it a replica is ready as soon as it runs."""
    alive: Probe | None = None
    """Failing it replaces the replica."""


class Update(Part):
    """How a new release replaces the old one. Start-first unless a static port or volume forbids it."""

    max_surge: CountOrShare = 1
    """How many replicas, or what share, may run beyond `replicas` meanwhile."""
    max_unavailable: CountOrShare = 0
    """How many, or what share, may be missing meanwhile."""
    min_healthy: Duration = 10.0
    """How long a new replica must be ready before the next is begun."""
    healthy_deadline: Duration = 300.0
    """A new replica that has not been ready for `min_healthy` by then has failed."""
    progress_deadline: Duration = 600.0
    """Without any progress for so long, the update has failed."""
    canary: CountOrShare = 0
    """How many, or what share, of the new release start beside all old replicas, and wait to be promoted. `100%`:
    blue/green."""
    auto_promote: bool = False
    """Promote as soon as all canaries are healthy, without being asked."""
    success_ratio: Ratio = 0.95
    """Canaries have failed if less than this share of their requests goes well, as the proxies see it: without a status
    from 500 on. 0: they are not judged by that."""
    min_requests: Positive = 10
    """How many requests canaries must have had, in the last ten seconds, to be judged by them."""
    on_failure: Literal["rollback", "pause", "continue"] = "rollback"
    """What to do when the update fails."""

    @model_validator(mode="before")
    @classmethod
    def _other_words(cls, value: object) -> object:
        """Nomad's and Swarm's words for the same: `min_healthy_time`, `failure_action`, `auto_rollback`."""
        if not isinstance(value, Mapping):
            return value
        body = {**value}
        for other, ours in (("min_healthy_time", "min_healthy"), ("failure_action", "on_failure")):
            if other in body and ours in body:
                raise FieldFault(other, f"is another word for {ours}: leave one of them out")
            if other in body:
                body[ours] = body.pop(other)
        if "auto_rollback" in body:
            wanted, said = body.pop("auto_rollback"), body.get("on_failure", "rollback")
            if not isinstance(wanted, bool):
                raise FieldFault("auto_rollback", f"must be true or false, got {shown(wanted)}")
            if wanted != (said == "rollback") and said in ("rollback", "pause", "continue"):
                body["on_failure"] = "rollback" if wanted else "pause"
        return body

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

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.delay > self.max_delay:
            raise FieldFault("max_delay", "must not be below delay")
        return self


class Stop(Part):
    """How a replica ends."""

    drain: Duration = 5.0
    """How long a withdrawn replica may finish what it has before it gets the signal."""
    signal: Signal = "SIGTERM"
    """What asks it to end."""
    grace: Duration = 10.0
    """How long it may take to end before it is killed."""


class Volume(Part):
    """A folder that stays on its node."""

    path: FilePath
    """Where it is mounted in a container; a plain process finds its folder in `VOLUME_<NAME>`."""


class ServiceSpec(Part):
    """The wish: one service as an operator writes it."""

    name: str
    """A DNS label; equals the key's last part."""
    kind: Literal["service", "global", "job", "cron"] = "service"
    """Runs until told to stop, the same on every eligible node, once to its end, or that by the clock."""
    image: Word | None = None
    """Image for the docker runtime."""
    command: Annotated[list[Text], Field(max_length=1024)] | None = None
    """Optional with an image, required for the process runtime."""
    env: dict[VariableName, EnvValue] = {}
    """Environment variables: text, or where the text is kept."""
    replicas: Replicas = 1
    """How many; `scale` may override it."""
    tags: Annotated[list[str], Field(max_length=32)] = []
    """Names of their own: `v2.web.svc.cluster`. Routes may pick a tag."""
    resources: Resources = Resources()
    """What is reserved for each replica."""
    limits: Limits = Limits()
    """What each replica may use at most."""
    ports: Annotated[dict[str, PortSpec], Field(max_length=64)] = {}
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
    volumes: Annotated[dict[str, Volume], Field(max_length=64)] = {}
    """Named, local to the node: pins the slot."""
    network: NetworkName | None = None
    """A network of the nodes' Docker engines that containers join instead of the default bridge. It must be there."""
    mounts: Annotated[list[Mount], Field(max_length=64)] = []
    """Files and folders of the host; configs and secrets as files."""
    discovery: Literal["vip", "direct"] = "vip"
    """Whether the name resolves to the virtual IP or to the ready replicas themselves."""
    ttl: Duration = 5.0
    """How long resolvers may keep an answer."""
    all_unready: Literal["any", "nodata"] = "any"
    """What DNS says when nothing is ready."""
    singleton: bool = False
    """True: never two at once, even across a partition."""
    on_return: Literal["keep-new", "keep-old"] = "keep-new"
    """When a lost node comes back with a replica that was replaced: which of the two stays. `keep-old`: the old one, if
    it is still ready when its node reports again. A singleton's new one stays always."""
    traffic: Traffic = Traffic()
    """How requests are spread, repeated and limited."""
    scale: Scale | None = None
    """Automatic scaling."""
    schedule: Schedule | None = None
    """When a `cron` service runs."""
    job: Job | None = None
    """How a `job` or `cron` service runs to its end."""

    def canonical(self) -> dict[str, Any]:
        """The spec as JSON in the field's notation, without what equals the default."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def digest(self) -> str:
        """What makes a release: the spec without the fields that do not need one (`replicas`, `scale`)."""
        body = self.model_dump(mode="json", exclude_defaults=True, exclude={"replicas", "scale"})
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]

    def probe_port(self, probe: Probe) -> str | None:
        """The name of the port that a probe asks; None for `exec`, or if there is none to ask."""
        if probe.exec is not None:
            return None
        named = probe.tcp or probe.port
        if named is not None or len(self.ports) == 1:
            return named or next(iter(self.ports))
        return next((name for name, port in self.ports.items() if port.protocol == "http"), None)


def parse_spec(data: Any, name: str | None = None) -> ServiceSpec:
    """The spec in `data`; `name` is the key's last part, which must agree with the spec's.

    Raises:
        SpecError: with every fault at once.
    """
    if not isinstance(data, dict):
        raise SpecError([f"a service spec must be an object, got {shown(data)}"])
    if fault := shape_fault(data):
        raise SpecError([fault])
    if name is not None:
        data = {"name": name, **data}
    spec, errors, broken = _validated(data)
    errors += faults(spec, broken)
    if name is not None and "name" not in broken and spec.name != name:
        errors.append(f"name: {shown(spec.name)} must equal the key's last part, {name!r}")
    if errors:
        raise SpecError(errors)
    return spec


def parse_spec_json(data: bytes, name: str) -> ServiceSpec:
    """The spec in a key of the store. Raises `SpecError` also where it is no JSON."""
    try:
        value = parse_json(data)
    except DocumentError as error:
        raise SpecError([str(error)]) from None
    return parse_spec(value, name)


def _validated(data: dict[str, Any]) -> tuple[ServiceSpec, list[str], set[str]]:
    """The spec, without those fields that are broken; what is wrong with them; their names."""
    try:
        return ServiceSpec.model_validate(data), [], set()
    except ValidationError as error:
        broken = {str(detail["loc"][0]) for detail in error.errors(include_url=False)}
        sound = {"name": "", **{key: value for key, value in data.items() if key not in broken}}
        return ServiceSpec.model_validate(sound), sentences(error, ServiceSpec), broken


def trusted_spec(data: Mapping[str, Any]) -> ServiceSpec:
    """A spec that the scheduler has validated; fields a newer version added are ignored."""
    return ServiceSpec.model_validate(data, extra="ignore")
