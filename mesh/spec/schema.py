"""JSON Schema of services and routes, for editors that complete and check what is written."""

from typing import Any

from mesh.spec.checks import MAX_NAME
from mesh.spec.route import RouteSpec
from mesh.spec.service import ServiceSpec

_LABEL = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
_EXACTLY_ONE = {
    "Probe": ("http", "tcp", "exec"),
    "Affinity": ("match", "service"),
    "Metric": ("in_flight", "requests_per_second", "cpu", "memory", "prometheus"),
}


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12); what it accepts may still fail a check of several fields."""
    schema = ServiceSpec.model_json_schema(mode="validation")
    parts = schema["$defs"]
    resources = parts["Resources"]
    resources["additionalProperties"] = resources["properties"].pop("counts")["additionalProperties"]
    for part, kinds in _EXACTLY_ONE.items():
        parts[part]["oneOf"] = [{"required": [kind]} for kind in kinds]
    schema["properties"]["name"] |= {"pattern": _LABEL, "maxLength": MAX_NAME, "examples": ["web"]}
    schema["properties"]["image"]["examples"] = ["guestbook-web:1.4"]
    schema["properties"]["env"]["additionalProperties"]["anyOf"][0]["type"] = ["string", "number"]
    schema["properties"]["tags"]["items"]["pattern"] = _LABEL
    schema["anyOf"] = [{"required": ["image"]}, {"required": ["command"]}]
    _tidy(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mesh service",
        **schema,
        "examples": [
            {"name": "web", "image": "web:1.4", "replicas": 3, "ports": {"http": {"port": 80, "protocol": "http"}}}
        ],
    }


def route_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a route."""
    schema = RouteSpec.model_json_schema(mode="validation")
    schema["properties"]["name"] |= {"pattern": _LABEL, "examples": ["shop"]}
    schema["$defs"]["RouteRule"]["oneOf"] = [{"required": ["to"]}, {"required": ["redirect"]}]
    _tidy(schema)
    target = {"service": "web", "port": "http"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mesh route",
        **schema,
        "examples": [{"name": "shop", "listen": "0.0.0.0:80", "rules": [{"host": "shop.example.com", "to": [target]}]}],
    }


def _tidy(schema: Any) -> None:
    """Drops what an editor would show for nothing: titles that repeat the names, defaults that are whole objects."""
    for item in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _tidy(item)
    if isinstance(schema, dict):
        if isinstance(schema.get("title"), str):
            del schema["title"]
        if isinstance(schema.get("default"), dict):
            del schema["default"]
