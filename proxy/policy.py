"""How one service wants its traffic treated: `traffic` of its spec, read once per change of the Table.

Defaults are those of the spec reference; the operator's notation (`15s`, `20%`) is read by `mesh.units`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mesh.units import parse_duration, parse_share

BALANCES = ("least-request", "round-robin")
RETRY_ON: frozenset[str | int] = frozenset({"connect-failure", "reset", 502, 503})


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings in force for one service. Durations in seconds; infinite where the spec says 0."""

    balance: str = "least-request"
    timeout: float = 15.0  # from the whole request to the head of its response, all tries together
    connect_timeout: float | None = 1.0  # None: for as long as the kernel tries
    idle_timeout: float = 300.0  # of a body, tunnel or connection on which nothing moves
    retries: int = 2
    retry_on: frozenset[str | int] = field(default=RETRY_ON)
    retry_budget: float = 0.2  # retries as a share of requests
    per_try_timeout: float = 5.0  # in force only where `timeout` is a reason to retry


_T = TypeVar("_T")


def parse_policy(traffic: Mapping[str, Any]) -> tuple[Policy, list[str]]:
    """The policy, and what of it cannot be served: `balance: ewma is not served yet, least-request is used`.

    A value that cannot be read falls back to its default: a worker never stops serving over a setting.
    """
    problems: list[str] = []
    retries = traffic.get("retries")
    retries = retries if isinstance(retries, Mapping) else {}
    default = Policy()

    def read(source: Mapping[str, Any], name: str, parse: Callable[[Any], _T], otherwise: _T) -> _T:
        if name not in source:
            return otherwise
        try:
            return parse(source[name])
        except (ValueError, TypeError) as error:
            problems.append(f"{name}: {error}; the default is used")
            return otherwise

    policy = Policy(
        balance=read(traffic, "balance", _balance, default.balance),
        timeout=read(traffic, "timeout", _limit, default.timeout),
        connect_timeout=read(traffic, "connect_timeout", _connect_limit, default.connect_timeout),
        idle_timeout=read(traffic, "idle_timeout", _limit, default.idle_timeout),
        retries=read(retries, "attempts", _count, default.retries),
        retry_on=read(retries, "on", _reasons, default.retry_on),
        retry_budget=read(retries, "budget", parse_share, default.retry_budget),
        per_try_timeout=read(retries, "per_try_timeout", _limit, default.per_try_timeout),
    )
    return policy, problems


def _limit(value: object) -> float:
    """Seconds; 0 is none at all."""
    return parse_duration(value) or math.inf


def _connect_limit(value: object) -> float | None:
    return parse_duration(value) or None


def _balance(value: object) -> str:
    if value not in BALANCES:
        raise ValueError(f"{value!r} is not served yet")
    return str(value)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"must be a count, got {value!r}")
    return value


def _reasons(value: object) -> frozenset[str | int]:
    if not isinstance(value, list) or not all(isinstance(reason, (str, int)) for reason in value):
        raise ValueError(f"must be a list such as [connect-failure, 503], got {value!r}")
    return frozenset(value)
