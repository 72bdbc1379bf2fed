"""How one service wants its traffic treated: `traffic` of its spec, read once per change of the Table.

Defaults are those of the spec reference; the operator's notation (`15s`, `20%`) is read by `mesh.units`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from mesh.proxy.breaker import BreakerPolicy
from mesh.units import parse_duration, parse_share

BALANCES = ("least-request", "round-robin", "ewma")
RETRY_REASONS = ("connect-failure", "reset", "timeout")
RETRY_ON: frozenset[str | int] = frozenset({"connect-failure", "reset", 502, 503})


@dataclass(frozen=True, slots=True)
class Limits:
    """`traffic.limits`, for each worker."""

    in_flight: int = 1024
    queue: int = 1024
    queue_timeout: float = 5.0
    held: int = 1000
    held_timeout: float = 60.0
    rate: float = 0.0  # requests per second; 0: unlimited
    connections: int = 0  # of clients; 0: as many as the worker holds


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings in force for one service. Durations in seconds; infinite where the spec says 0."""

    balance: str = "least-request"
    hash_of: str = ""  # client | header:NAME | cookie:NAME; empty: not by hash
    prefer: str = "any"
    slow_start: float = 0.0
    timeout: float = 15.0  # from the whole request to the head of its response, all tries together
    connect_timeout: float | None = 1.0  # None: for as long as the kernel tries
    idle_timeout: float = 300.0  # of a body, tunnel or connection on which nothing moves
    retries: int = 2
    retry_on: frozenset[str | int] = field(default=RETRY_ON)
    retry_budget: float = 0.2  # retries as a share of requests
    per_try_timeout: float = 5.0  # in force only where `timeout` is a reason to retry
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    limits: Limits = field(default_factory=Limits)


START_CONNECT_TIMEOUT = 4.0
"""Seconds for a connection to an endpoint that has just started. Where too many wait for it, it may drop the first
packet of some, and the kernel sends that again after 1 s and 3 s (RFC 6298)."""


def just_started(policy: Policy) -> Policy:
    """For those who waited for the service to start."""
    if policy.connect_timeout is None or policy.connect_timeout >= START_CONNECT_TIMEOUT:
        return policy
    return replace(policy, connect_timeout=START_CONNECT_TIMEOUT)


_T = TypeVar("_T")


def parse_policy(traffic: Mapping[str, Any]) -> tuple[Policy, list[str]]:
    """The policy, and what of it cannot be read: `retries.on: must be a list …; the default is used`.

    A value that cannot be read falls back to its default: a worker never stops serving over a setting.
    """
    problems: list[str] = []
    default = Policy()

    parts: dict[str, Mapping[str, Any]] = {"": traffic}
    known = {"retries", "breaker", "limits"}
    for name in sorted(known & traffic.keys()):
        if isinstance(traffic[name], Mapping):
            parts[name] = traffic[name]
        else:
            problems.append(f"{name}: must be an object; the defaults are used")

    def read(path: str, parse: Callable[[Any], _T], otherwise: _T) -> _T:
        known.add(path)
        part, _, name = path.rpartition(".")
        if name not in parts.get(part, ()):
            return otherwise
        try:
            return parse(parts[part][name])
        except (ValueError, TypeError) as error:
            problems.append(f"{path}: {error}; the default is used")
            return otherwise

    balance, hash_of = read("balance", _balance, (default.balance, ""))
    policy = Policy(
        balance=balance,
        hash_of=hash_of,
        prefer=read("prefer", _prefer, default.prefer),
        slow_start=read("slow_start", parse_duration, default.slow_start),
        timeout=read("timeout", _limit, default.timeout),
        connect_timeout=read("connect_timeout", _connect_limit, default.connect_timeout),
        idle_timeout=read("idle_timeout", _limit, default.idle_timeout),
        retries=read("retries.attempts", _count, default.retries),
        retry_on=read("retries.on", _reasons, default.retry_on),
        retry_budget=read("retries.budget", parse_share, default.retry_budget),
        per_try_timeout=read("retries.per_try_timeout", _limit, default.per_try_timeout),
        breaker=BreakerPolicy(
            consecutive=read("breaker.consecutive", _positive, default.breaker.consecutive),
            success_ratio=read("breaker.success_ratio", _ratio, default.breaker.success_ratio),
            window=read("breaker.window", _some_time, default.breaker.window),
            open=read("breaker.open", _some_time, default.breaker.open),
            max_open=read("breaker.max_open", _some_time, default.breaker.max_open),
            max_ejected=read("breaker.max_ejected", parse_share, default.breaker.max_ejected),
        ),
        limits=Limits(
            in_flight=read("limits.in_flight", _positive, default.limits.in_flight),
            queue=read("limits.queue", _count, default.limits.queue),
            queue_timeout=read("limits.queue_timeout", parse_duration, default.limits.queue_timeout),
            held=read("limits.held", _positive, default.limits.held),
            held_timeout=read("limits.held_timeout", _some_time, default.limits.held_timeout),
            rate=read("limits.rate", _number, default.limits.rate),
            connections=read("limits.connections", _count, default.limits.connections),
        ),
    )
    given = (f"{part}.{name}".removeprefix(".") for part, settings in parts.items() for name in settings)
    problems += [f"{path}: there is no such setting" for path in given if path not in known]
    return policy, problems


def _limit(value: object) -> float:
    """Seconds; 0 is none at all."""
    return parse_duration(value) or math.inf


def _connect_limit(value: object) -> float | None:
    return parse_duration(value) or None


def _some_time(value: object) -> float:
    seconds = parse_duration(value)
    if not seconds:
        raise ValueError("must be longer than 0 s")
    return seconds


def _balance(value: object) -> tuple[str, str]:
    """The way to choose, and what to hash."""
    if isinstance(value, Mapping) and list(value) == ["hash"]:
        return "least-request", _hash_of(value["hash"])  # where a request has nothing to hash
    if value not in BALANCES:
        raise ValueError(f"must be one of {', '.join(BALANCES)} or {{hash: …}}, got {value!r}")
    return str(value), ""


def _hash_of(value: object) -> str:
    kind, _, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    if value != "client" and not (kind in ("header", "cookie") and name):
        raise ValueError(f"hash must be client, header:NAME or cookie:NAME, got {value!r}")
    return str(value)


def _prefer(value: object) -> str:
    if value not in ("any", "node"):
        raise ValueError(f"must be any or node, got {value!r}")
    return str(value)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"must be a count, got {value!r}")
    return value


def _positive(value: object) -> int:
    if not (count := _count(value)):
        raise ValueError("must be at least 1")
    return count


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"must be a number, not below 0, got {value!r}")
    return float(value)


def _ratio(value: object) -> float:
    if (number := _number(value)) > 1:
        raise ValueError(f"must be 0..1, got {value!r}")
    return number


def _reasons(value: object) -> frozenset[str | int]:
    if not isinstance(value, list):
        raise ValueError(f"must be a list such as [connect-failure, 503], got {value!r}")
    for reason in value:
        if reason not in RETRY_REASONS and not (isinstance(reason, int) and 400 <= reason <= 599):
            raise ValueError(f"must be of {', '.join(RETRY_REASONS)} and statuses 400..599, got {reason!r}")
    return frozenset(value)
