"""A route as an operator writes it: which requests from outside go to which services."""

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from mesh.spec.checks import label_fault, shape_fault
from mesh.spec.errors import SpecError, sentences
from mesh.spec.fields import (
    Attempts,
    Count,
    Duration,
    FieldFault,
    HeaderName,
    HeaderValue,
    HostAndPort,
    Method,
    Number,
    Part,
    RateOf,
    RouteHost,
    RouteWeight,
    UrlPath,
    Word,
)
from mesh.spec.service import ProxyProtocolSpec, SecretRef
from mesh.spec.strict_json import DocumentError, parse_json
from mesh.spec.traffic import RetryReasons
from mesh.units import shown

_ODD_PATH = re.compile(r"[?#]|//|/\.\.?(/|$)|%(2[dDeE]|3\d|4[1-9A-Fa-f]|5[0-9AaFf]|6[1-9A-Fa-f]|7[0-9AaEe])")


def _listen(value: object) -> str:
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        if (":" in host) == host.startswith("[") and port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535:
            return f"{host}:{port}"
    except ValueError:
        pass
    raise ValueError(f"must be an address of the host and a port, such as 0.0.0.0:80 or [::]:80, got {shown(value)}")


def _plain(path: str) -> str:
    """Requests' paths are compared in one spelling alone."""
    if _ODD_PATH.search(path):
        raise ValueError(f"must be a path without query, //, . and .. segments or needless escapes, got {shown(path)}")
    return path


Listen = Annotated[str, BeforeValidator(_listen), WithJsonSchema({"type": "string", "examples": ["0.0.0.0:80"]})]
PlainPath = Annotated[UrlPath, AfterValidator(_plain)]


class RouteTarget(Part):
    """Where requests go."""

    service: Word
    """Name of the service."""
    port: Word = "http"
    """Name of its port."""
    tag: Word | None = None
    """Only to replicas with this tag. Beside a target with a tag, one without means the replicas that lack it."""
    weight: RouteWeight = 100
    """Its part of all weights is its part of the requests. One without any endpoint leaves its part to the others."""


class RouteRedirect(Part):
    """Where clients are sent instead. What is not named stays as it was asked for, the query always."""

    code: Literal[301, 302, 303, 307, 308] = 302
    """301 and 308 are remembered by clients, 307 and 308 keep the method."""
    scheme: Literal["http", "https"] | None = None
    """`https`: the usual reason for a redirect."""
    host: HostAndPort | None = None
    """Another host, with a port where it needs one."""
    path: PlainPath | None = None
    """Instead of the whole path."""
    prefix: PlainPath | None = None
    """Instead of the part of the path that the rule names."""

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.scheme is self.host is self.path is self.prefix is None:
            raise ValueError("needs a scheme, host, path or prefix: it would lead to itself")
        _one_path(self.path, self.prefix)
        return self


class RouteRewrite(Part):
    """What the service is asked for instead."""

    host: HostAndPort | None = None
    """Another `Host`; the client's stays in `X-Forwarded-Host`."""
    path: PlainPath | None = None
    """Instead of the whole path; the query stays."""
    prefix: PlainPath | None = None
    """Instead of the part of the path that the rule names: `/` takes it away."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.host is self.path is self.prefix is None:
            raise ValueError("needs a host, path or prefix")
        _one_path(self.path, self.prefix)
        return self


def _one_path(path: str | None, prefix: str | None) -> None:
    if path is not None and prefix is not None:
        raise FieldFault("prefix", "must not stand beside path")


class RouteRetries(Part):
    """Overrides `traffic.retries` of the services; what is not named stays theirs."""

    attempts: Attempts | None = None
    """Further tries after the first."""
    on: RetryReasons | None = None
    """After what."""
    per_try_timeout: Duration | None = None
    """Time for each try, where `on` has `timeout`."""


class RouteLimits(Part):
    """How many requests a rule lets through, in each proxy worker; the others get 429 and when to come again."""

    rate: Number
    """Requests per second."""
    burst: Count = 0
    """How many may come at once; 0: as many as in a second."""
    per: RateOf = "client"
    """Each `client` address or value of `header:NAME` by itself, or all requests of the `rule` together."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.rate:
            raise FieldFault("rate", "must be above zero")
        return self


class RouteRule(Part):
    """Which requests, and what becomes of them."""

    host: RouteHost = ""
    """`shop.example.com`, or `*.example.com` for all names below; empty: any."""
    path: PlainPath = "/"
    """A prefix, on the borders of segments: `/api` means `/api` and `/api/x`, not `/apis`."""
    methods: Annotated[list[Method], Field(max_length=32)] = []
    """Empty: all."""
    headers: Annotated[dict[HeaderName, HeaderValue], Field(max_length=32)] = {}
    """Each must be there with just this value."""
    to: Annotated[list[RouteTarget], Field(max_length=64)] = []
    """The services, by weight."""
    redirect: RouteRedirect | None = None
    """Instead of `to`."""
    rewrite: RouteRewrite | None = None
    """What the service is asked for instead."""
    timeout: Duration | None = None
    """Instead of the services' `traffic.timeout`."""
    retries: RouteRetries | None = None
    """Instead of the services' `traffic.retries`."""
    limits: RouteLimits | None = None
    """A limit of requests per second."""

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.redirect is not None:
            if named := [name for name in ("to", "rewrite", "timeout", "retries") if getattr(self, name)]:
                raise FieldFault(named[0], "must not stand beside redirect")
        elif not self.to:
            raise ValueError("needs a target in `to`, or a redirect")
        elif not any(target.weight for target in self.to):
            raise FieldFault("to", "needs a weight above zero")
        return self

    @property
    def conditions(self) -> tuple[str, str, frozenset[str], frozenset[tuple[str, str]]]:
        """Two rules that have the same are met by the same requests."""
        headers = frozenset((name.lower(), value) for name, value in self.headers.items())
        return self.host.lower().removeprefix("*") or "*", self.path.rstrip("/"), frozenset(self.methods), headers


class RouteTls(Part):
    """TLS is terminated with this certificate."""

    cert: SecretRef
    """The chain, PEM."""
    key: SecretRef
    """Its key, PEM."""


Tls = Annotated[
    Annotated[RouteTls, Tag("[object]")] | Annotated[Literal["passthrough"], Tag("[text]")],
    Discriminator(lambda value: "[text]" if isinstance(value, str) else "[object]"),
]


class RouteSpec(Part):
    """Requests from outside: a listener and the rules that say where they go."""

    name: str
    """A DNS label; equals the key's last part."""
    listen: Listen
    """An address of the hosts and a port. Routes that share one are one set of rules."""
    tls: Tls | None = None
    """A certificate to end TLS with, or `passthrough`: TLS goes unopened to the service whose host is asked for.
    Without it: plain HTTP."""
    proxy_protocol: ProxyProtocolSpec = ProxyProtocolSpec()
    """Whether connections begin with whom they come from; `send` is for `passthrough` alone."""
    rules: Annotated[list[RouteRule], Field(max_length=1000)]
    """The most specific rule that matches a request has it."""

    def canonical(self) -> dict[str, Any]:
        """The route as JSON in the fields' notation, without what equals the default."""
        return self.model_dump(mode="json", exclude_defaults=True)


def is_route(data: Any) -> bool:
    """Whether a document is meant as a route, not as a service."""
    return isinstance(data, dict) and "rules" in data and not data.keys() & {"image", "command"}


def parse_route(data: Any, name: str | None = None) -> RouteSpec:
    """The route in `data`; `name` is the key's last part, which must agree with the route's.

    Raises:
        SpecError: with every fault at once.
    """
    if not isinstance(data, dict):
        raise SpecError([f"a route must be an object, got {shown(data)}"])
    if fault := shape_fault(data):
        raise SpecError([fault])
    if name is not None:
        data = {"name": name, **data}
    try:
        route = RouteSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(sentences(error, RouteSpec)) from None
    if errors := _faults(route, name):
        raise SpecError(errors)
    return route


def parse_route_json(data: bytes, name: str) -> RouteSpec:
    """The route in a key of the store. Raises `SpecError` also where it is no JSON."""
    try:
        value = parse_json(data)
    except DocumentError as error:
        raise SpecError([str(error)]) from None
    return parse_route(value, name)


def _faults(route: RouteSpec, name: str | None) -> list[str]:
    errors = []
    if fault := label_fault(route.name):
        errors.append(f"name: {fault}")
    elif name is not None and route.name != name:
        errors.append(f"name: {shown(route.name)} must equal the key's last part, {name!r}")
    if not route.rules:
        errors.append("rules: needs at least one rule")
    errors += _passing_faults(route) if route.tls == "passthrough" else []
    if route.proxy_protocol.send is not None and route.tls != "passthrough":
        errors.append("proxy_protocol.send: is for tls: passthrough; X-Forwarded-For tells it for http")
    first: dict[object, int] = {}
    for number, rule in enumerate(route.rules):
        if (earlier := first.setdefault(rule.conditions, number)) != number:
            errors.append(f"rules.{number}: asks for just what rules.{earlier} does, and never gets a request")
    return errors


def _passing_faults(route: RouteSpec) -> Iterator[str]:
    """All that is known of a TLS connection which is not opened is the host that is asked for."""
    for number, rule in enumerate(route.rules):
        for field in sorted(rule.model_fields_set - {"host", "to"}):
            yield f"rules.{number}.{field}: cannot be told where tls is passthrough; only host and to can"
