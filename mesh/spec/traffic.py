"""The `traffic` of a spec: how the proxy treats the service's requests and connections."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mesh.spec.fields import (
    Attempts,
    Count,
    Duration,
    FieldFault,
    HashOf,
    Number,
    Part,
    Positive,
    Ratio,
    Share,
    Status,
    one_sentence,
)


class HashBalance(Part):
    hash: HashOf
    """Requests alike in this go to the same replica."""


RetryReasons = Annotated[
    list[
        Annotated[
            Literal["connect-failure", "reset", "timeout"] | Status,
            one_sentence("connect-failure, reset, timeout or a status 400..599"),
        ]
    ],
    Field(max_length=64),
]


class Retries(Part):
    """Requests that are tried again, elsewhere."""

    attempts: Attempts = 2
    """Further tries after the first."""
    on: RetryReasons = ["connect-failure", "reset", 502, 503]
    """After what; only what is safe to repeat is repeated."""
    budget: Share = 0.2
    """Most retries, as a share of the requests."""
    per_try_timeout: Duration = 5.0
    """Time for each try, where `on` has `timeout`."""


class Breaker(Part):
    """When an endpoint that fails is left alone."""

    consecutive: Positive = 5
    """Failures in a row that eject a replica (also a 5xx, but 501 and 505)."""
    success_ratio: Ratio = 0.8
    """A lower share of successes within `window` ejects it too; 0: never."""
    window: Duration = 10.0
    """Over which the ratio is taken."""
    open: Duration = 1.0
    """First time of ejection, after which one request tries it; doubles with each."""
    max_open: Duration = 60.0
    """Where it stops doubling."""
    max_ejected: Share = 0.5
    """Most of the replicas that may be ejected at once (always one of two); 0%: none."""


class TrafficLimits(Part):
    """What one proxy worker lets through to each port of the service."""

    in_flight: Positive = 1024
    """Most requests under way at once."""
    queue: Count = 1024
    """Most requests that wait for one of them to end; further ones get a 503."""
    queue_timeout: Duration = 5.0
    """How long one may wait before it gets a 503."""
    held: Positive = 1000
    """Most requests and connections that wait while it starts from zero; further ones get a 503, or a reset."""
    held_timeout: Duration = 60.0
    """How long one may wait for that; `timeout` begins once there is a replica."""
    rate: Number = 0.0
    """Requests per second, and at once; more get a 429. 0: unlimited."""
    connections: Count = 0
    """Most connections of clients; further ones are reset. 0: as many as the worker holds (50,000)."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if not self.held_timeout:
            raise FieldFault("held_timeout", "must be longer than 0 s")
        return self


class Traffic(Part):
    """How the proxy treats the service's traffic."""

    balance: Annotated[
        Literal["least-request", "round-robin", "ewma"] | HashBalance,
        one_sentence("least-request, round-robin, ewma or {hash: client, header:NAME or cookie:NAME}"),
    ] = "least-request"
    """How a replica is chosen."""
    prefer: Literal["any", "node"] = "any"
    """`node`: replicas on the client's node come first, as long as one of them is fit."""
    slow_start: Duration = 0.0
    """How long a new replica's share grows from a tenth to the whole."""
    timeout: Duration = 15.0
    """From a whole request to the head of its response, with all tries; what streams is bound by `idle_timeout`."""
    connect_timeout: Duration = 1.0
    """For connecting to a replica."""
    idle_timeout: Duration = 300.0
    """A body, tunnel or connection on which nothing moves for so long is closed."""
    retries: Retries = Retries()
    """When a request is tried again."""
    breaker: Breaker = Breaker()
    """When a replica that fails is left alone."""
    limits: TrafficLimits = TrafficLimits()
    """How much a service takes on."""
