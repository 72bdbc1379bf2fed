"""What operators write into a route: every fault at once, each with its path; and what becomes of it in the Table."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from mesh.keys import Keys
from mesh.spec.errors import SpecError
from mesh.spec.route import is_route, parse_route, parse_route_json
from mesh.spec.schema import route_schema
from mesh.store import Entry
from mesh.table import (
    PemSource,
    ProxyProtocol,
    RateLimit,
    Redirect,
    Rewrite,
    Rule,
    Table,
    TableRoute,
    TableTls,
    Target,
    parse_table,
)
from mesh.view import ViewReader

TO = [{"service": "web"}]

FULL: dict[str, Any] = {
    "listen": "0.0.0.0:80",
    "rules": [
        {"host": "shop.example.com", "path": "/api", "headers": {"x-beta": "1"}, "methods": ["GET", "HEAD"],
         "to": [{"service": "web", "port": "http", "tag": "v2", "weight": 10}, {"service": "web", "weight": 90}],
         "rewrite": {"prefix": "/", "host": "inner"}, "timeout": "5000ms", "retries": {"attempts": 0, "on": [503]},
         "limits": {"rate": 10, "burst": 20, "per": "header:X-Key"}},
        {"host": "*.example.com", "redirect": {"code": 308, "scheme": "https"}},
    ],
}  # fmt: skip


def rules(*each: dict[str, Any]) -> dict[str, Any]:
    return {"listen": "0.0.0.0:80", "rules": list(each)}


def faults(data: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_route(data, "shop")
    return caught.value.errors


def entry(value: Any, index: int = 1) -> Entry:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Entry("mesh/desired/routes/shop", data, modify_index=index)


def test_a_route_becomes_what_the_data_plane_reads() -> None:
    view = ViewReader(Keys()).read({"mesh/desired/routes/shop": entry(FULL)})
    assert view.problems == ()
    assert view.routes["shop"] == TableRoute(listen="0.0.0.0:80", rules=[
        Rule(host="shop.example.com", path="/api", headers={"x-beta": "1"}, methods=["GET", "HEAD"],
             to=[Target(service="web", tag="v2", weight=10), Target(service="web", weight=90)],
             rewrite=Rewrite(prefix="/", host="inner"), timeout="5s", retries={"attempts": 0, "on": [503]},
             limits=RateLimit(rate=10, burst=20, per="header:X-Key")),
        Rule(host="*.example.com", redirect=Redirect(code=308, scheme="https")),
    ])  # fmt: skip
    table = Table(routes=dict(view.routes))
    assert parse_table(msgspec.json.encode(table)) == table


@pytest.mark.parametrize(
    ("tls", "expected"),
    [
        (None, None),
        ("passthrough", "passthrough"),
        (
            {"cert": {"secret": "shop-cert"}, "key": {"secret": "shop-key"}},
            TableTls(cert=PemSource(secret="shop-cert"), key=PemSource(secret="shop-key")),
        ),
    ],
)
def test_how_tls_is_meant(tls: Any, expected: TableTls | str | None) -> None:
    told = rules({"to": TO, "host": "shop.example.com"}) | {"tls": tls, "proxy_protocol": {"accept": True}}
    route = ViewReader(Keys()).read({"mesh/desired/routes/shop": entry(told)}).routes["shop"]
    assert route.tls == expected
    assert route.proxy_protocol == ProxyProtocol(accept=True)


def test_a_route_that_someone_broke_changes_nothing() -> None:
    reader = ViewReader(Keys())
    good = reader.read({"mesh/desired/routes/shop": entry(FULL)}).routes
    view = reader.read({"mesh/desired/routes/shop": entry({"rules": [{"to": []}]}, 2)})
    assert view.routes == good
    assert view.problems == (
        "mesh/desired/routes/shop: listen: is required; rules.0: needs a target in `to`, or a redirect",
    )
    assert reader.read({"mesh/desired/routes/shop": entry(b"{", 3)}).routes == good


def test_it_reads_back_as_the_same() -> None:
    route = parse_route(FULL, "shop")
    assert parse_route_json(json.dumps(route.canonical()).encode(), "shop") == route
    assert route.rules[0].timeout == 5.0


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (5, ["a route must be an object, got 5"]),
        ({}, ["listen: is required", "rules: is required"]),
        (rules(), ["rules: needs at least one rule"]),
        ({"name": "other", **FULL}, ["name: 'other' must equal the key's last part, 'shop'"]),
        (rules({}), ["rules.0: needs a target in `to`, or a redirect"]),
        (rules({"to": TO, "redirect": {"scheme": "https"}}), ["rules.0.to: must not stand beside redirect"]),
        (rules({"to": [{"service": "web", "weight": 0}]}), ["rules.0.to: needs a weight above zero"]),
        (rules({"to": TO, "rewrite": {}}), ["rules.0.rewrite: needs a host, path or prefix"]),
        (rules({"redirect": {}}), ["rules.0.redirect: needs a scheme, host, path or prefix: it would lead to itself"]),
        (rules({"redirect": {"path": "/a", "prefix": "/b"}}), ["rules.0.redirect.prefix: must not stand beside path"]),
        (rules({"to": TO, "limits": {"rate": 0}}), ["rules.0.limits.rate: must be above zero"]),
        (rules({"to": TO}) | {"tls": "pass"}, ["tls: must be passthrough, got 'pass'"]),
        (rules({"to": TO}) | {"tls": {"cert": {"secret": "a"}}}, ["tls.key: is required"]),
        (rules({"to": TO, "host": "a.b", "path": "/x", "timeout": "1s"}) | {"tls": "passthrough"},
         [f"rules.0.{field}: cannot be told where tls is passthrough; only host and to can"
          for field in ("path", "timeout")]),
        (rules({"to": TO}) | {"proxy_protocol": {"send": "v2"}},
         ["proxy_protocol.send: is for tls: passthrough; X-Forwarded-For tells it for http"]),
        (rules({"to": TO}, {"to": TO, "path": "/"}, {"to": TO, "host": "*"}),
         [f"rules.{n}: asks for just what rules.0 does, and never gets a request" for n in (1, 2)]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(data: Any, expected: list[str]) -> None:
    assert faults(data) == expected


def test_every_fault_is_said_at_once() -> None:
    found = faults(
        {"listen": "80", "tls": {"cert": "x"}, "rules": [
            {"host": "a:80", "path": "x", "methods": ["get"], "headers": {"a b": "\n"}, "to": [{"servce": "x"}]},
            {"path": "/a/../b", "redirect": {"code": 300, "host": "a/b"}},
            {"to": [{"service": "a", "weight": -1}], "timeout": "x", "retries": {"on": ["x"]}, "limits": {"per": "ip"}},
        ]}
    )  # fmt: skip
    assert [fault.partition(": ")[0] for fault in found] == [
        "listen", "tls.cert", "tls.key", "rules.0.host", "rules.0.path", "rules.0.methods.0", "rules.0.headers.a b",
        "rules.0.headers.a b", "rules.0.to.0.service", "rules.0.to.0.servce", "rules.1.path", "rules.1.redirect.code",
        "rules.1.redirect.host", "rules.2.to.0.weight", "rules.2.timeout", "rules.2.retries.on.0",
        "rules.2.limits.rate", "rules.2.limits.per",
    ]  # fmt: skip
    assert "did you mean 'service'?" in found[9]


@pytest.mark.parametrize("listen", ["0.0.0.0:80", "[::]:443", "127.0.0.1:65535"])
def test_addresses(listen: str) -> None:
    assert parse_route({**FULL, "listen": listen}, "shop").listen == listen


@pytest.mark.parametrize(
    "listen", [80, "", ":80", "80", "localhost:80", "::1:80", "[1.2.3.4]:80", "1.2.3.4:0", "1.2.3.4:x"]
)
def test_what_is_no_address(listen: object) -> None:
    assert len(faults({**FULL, "listen": listen})) == 1


@pytest.mark.parametrize("path", ["/", "/a", "/a/", "/a%2Fb", "/.well-known", "/a..b", "/a,b;c=d"])
def test_paths(path: str) -> None:
    parse_route(rules({"to": TO, "path": path}), "shop")


@pytest.mark.parametrize(
    "path", ["", "a", "/a b", "/a?b", "/a#b", "//", "/a//b", "/./a", "/a/..", "/%41", "/%7e", "/ä"]
)
def test_what_no_request_s_path_is_compared_with(path: str) -> None:
    assert faults(rules({"to": TO, "path": path}))[0].startswith("rules.0.path: ")


def test_a_path_beyond_ascii_is_told_to_be_escaped() -> None:
    assert "all but visible ASCII escaped" in faults(rules({"to": TO, "path": "/café"}))[0]


def test_what_is_meant_as_a_route() -> None:
    assert is_route(FULL)
    assert not is_route({"image": "x", "rules": []})
    assert not is_route([])


def test_the_schema_names_every_field() -> None:
    schema = route_schema()
    assert schema["properties"].keys() == {"name", "listen", "tls", "proxy_protocol", "rules"}
    assert all("description" in field for part in schema["$defs"].values() for field in part["properties"].values())
