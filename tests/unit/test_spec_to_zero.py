"""Which services may fall asleep: those that something can wake."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.spec.service import SpecError, parse_spec

HTTP = {"http": {"port": 80, "protocol": "http"}}
DNS = {"dns": {"port": 53, "protocol": "udp"}}
QUEUE = {"prometheus": {"url": "http://prometheus:9090", "query": "queue_length", "target": 5}}


def errors(**fields: Any) -> list[str]:
    scale = {"to_zero_after": "1m", **fields.pop("scale", {})}
    try:
        parse_spec({"name": "web", "image": "web:1", "scale": scale, **fields})
    except SpecError as error:
        return error.errors
    return []


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"ports": HTTP}, None),
        ({"ports": {**HTTP, **DNS}}, None),
        ({"ports": {"db": {"port": 5432}}}, None),
        ({"ports": HTTP, "discovery": "direct"}, "needs discovery: vip"),
        ({"ports": DNS}, "needs a port with protocol http or tcp"),
        ({}, "needs a port with protocol http or tcp"),
        ({"scale": {"metrics": [QUEUE]}}, None),
        ({"ports": HTTP, "discovery": "direct", "scale": {"metrics": [QUEUE]}}, None),
        ({"ports": HTTP, "discovery": "direct", "scale": {"to_zero_after": 0}}, None),
    ],
)
def test_something_can_wake_it(fields: dict[str, Any], fault: str | None) -> None:
    if fault is None:
        assert errors(**fields) == []
    else:
        (error,) = errors(**fields)
        assert error.startswith(f"scale.to_zero_after: {fault}")


def test_nobody_is_held_for_ever() -> None:
    assert errors(ports=HTTP, traffic={"limits": {"held_timeout": 0}}) == [
        "traffic.limits.held_timeout: must be longer than 0 s"
    ]
    assert errors(ports=HTTP, traffic={"limits": {"held": 0}})[0].startswith("traffic.limits.held: ")
