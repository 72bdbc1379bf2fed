"""The Table: reading it from a file, and carrying changes of the size of the change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.table import Endpoint, Table, TableError, TableNode, TableService, apply_delta, parse_table, table_diff

EXAMPLE = b"""
{"index": 42, "domain": "cluster",
 "nodes": {"n1": {"address": "10.77.0.11"}},
 "services": {"web": {
    "vip": "10.96.0.7", "ttl": 5, "discovery": "vip", "desired": 3,
    "ports": {"http": {"port": 80, "protocol": "http", "listen": "127.0.0.1:8080"},
              "db": {"port": 5432, "protocol": "tcp"}},
    "traffic": {"balance": "least-request", "timeout": "15s"},
    "endpoints": [{"id": "web-1-6f3a", "slot": 1, "node": "n1", "release": 3, "tags": ["v2"], "weight": 100,
                   "state": "ready", "address": "10.77.0.11", "ports": {"http": 31001, "db": 31002}}]}},
 "routes": {"shop": {"listen": "0.0.0.0:80", "rules": [
    {"host": "shop.example.com", "path": "/api", "headers": {"x-beta": "1"},
     "to": [{"service": "web", "port": "http", "tag": "v2", "weight": 10},
            {"service": "web", "port": "http", "weight": 90}]}]}}}
"""


def test_reads_the_shape_in_the_documentation() -> None:
    table = parse_table(EXAMPLE)
    web = table.services["web"]
    assert web.ports["http"].listen == "127.0.0.1:8080"
    assert web.endpoints[0].ports == {"http": 31001, "db": 31002}
    assert [target.weight for target in table.routes["shop"].rules[0].to] == [10, 90]


def test_a_file_that_does_not_say_how_many_are_wanted_wants_those_that_it_names() -> None:
    table = parse_table(
        b'{"services": {"web": {"endpoints": [{"id": "a", "slot": 1, "node": "n1", "address": "10.0.0.1"}]},'
        b' "zero": {"desired": 0, "endpoints": [{"id": "b", "slot": 1, "node": "n1", "address": "10.0.0.1"}]}}}'
    )
    assert {name: service.desired for name, service in table.services.items()} == {"web": 1, "zero": 0}


def port(value: bytes) -> bytes:
    return b'{"services": {"web": {"ports": {"http": ' + value + b"}}}}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated"),
        (b"[]", "expected object, got array"),
        (port(b'{"port": "80"}'), "services.web.ports.http.port: expected int, got str"),
        (port(b'{"port": 0}'), "services.web.ports.http.port: must be 1..65535, got 0"),
        (port(b'{"port": 1, "protocol": "sctp"}'), "must be http, tcp or udp"),
        (b'{"services": {"web": {"endpoints": [{"id": "a"}]}}}', "services.web.endpoints[0]: object missing required"),
        (b'{"services": {"web": {}, "shop": {"vip": 7}}}', "services.shop.vip: expected str, got int"),
        (b'{"services": {"a": {"vip": 7}, "a": {}}}', "services[...].vip: expected str"),
        (b'{"services": {"web": {"traffic": {"timeout": 1%s}}}}' % (b"0" * 20), "a number beyond 64 bits"),
        (b'{"routes": {"a": {"listen": "", "rules": [{"limits": {"rate": 0}}]}}}', "limits.rate: expected float > 0.0"),
        (
            b'{"routes": {"a": {"listen": "", "rules": [{"redirect": {"path": "/a\\r\\nb: c"}}]}}}',
            "routes.a.rules.0.redirect: must be in visible ASCII",
        ),
        (
            b'{"routes": {"a": {"listen": "", "rules": [{"redirect": {"host": "b.example", "path": "new"}}]}}}',
            "routes.a.rules.0.redirect.path: must begin with /, got 'new'",
        ),
    ],
)
def test_says_where_a_file_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(TableError) as caught:
        parse_table(data)
    assert message in str(caught.value)


names = st.sampled_from(["a", "b", "c", "d"])
endpoints = st.builds(Endpoint, id=names, slot=st.integers(1, 3), node=names, address=st.just("10.0.0.1"))
services = st.builds(
    TableService, vip=st.sampled_from(["10.96.0.1", "10.96.0.2"]), endpoints=st.lists(endpoints, max_size=2)
)
tables = st.builds(
    Table,
    index=st.integers(1, 9),
    domain=st.sampled_from(["cluster", "example"]),
    nodes=st.dictionaries(names, st.builds(TableNode, address=names)),
    services=st.dictionaries(names, services),
)


@given(tables, tables)
def test_a_delta_turns_one_table_into_the_other(old: Table, new: Table) -> None:
    delta = table_diff(old, new)
    if delta is None:
        assert (old.domain, old.nodes, old.services, old.routes) == (new.domain, new.nodes, new.services, new.routes)
    else:
        assert apply_delta(old, delta) == new
        assert all(old.services.get(name) != service for name, service in delta.services.items())


def test_a_delta_leaves_the_rest_alone() -> None:
    old = Table(services={"a": TableService(vip="1"), "b": TableService(vip="2")})
    new = Table(services={"a": old.services["a"], "b": TableService(vip="3")})
    delta = table_diff(old, new)
    assert delta is not None
    assert set(delta.services) == {"b"}
    assert apply_delta(old, delta).services["a"] is old.services["a"]
