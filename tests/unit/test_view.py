"""Decoding the store: broken documents change nothing, newer ones are told apart, nothing is decoded twice."""

import json

import pytest

from mesh.keys import Keys
from mesh.model import NodePlan, NodeReport, ServicePlan
from mesh.store import Entry
from mesh.view import ViewReader, decode_document, encode_document

KEYS = Keys()


def entry(key: str, value: object, index: int = 1, session: str | None = None) -> dict[str, Entry]:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return {key: Entry(key, data, index, index, session)}


def test_reads_every_kind_of_key() -> None:
    view = ViewReader(KEYS).read(
        {
            **entry("mesh/desired/config", {"domain": "example"}),
            **entry("mesh/desired/services/web", {"image": "web:1"}, 7),
            **entry("mesh/desired/scale/web", {"replicas": 5}),
            **entry("mesh/desired/scale/api", 2),
            **entry("mesh/desired/nodes/n1", {"availability": "drain"}),
            **entry("mesh/planned/services/web", {"service": "web", "vip": "10.96.0.1"}, 9),
            **entry("mesh/planned/nodes/n1", {"node": "n1"}),
            **entry("mesh/observed/nodes/n1", {"node": "n1", "address": "10.0.0.1"}, session="s"),
            **entry("mesh/observed/nodes/n2", {"node": "n2", "address": "10.0.0.2"}),
        },
        index=9,
    )
    assert view.problems == ()
    assert view.config.domain == "example"
    wish = view.wishes["web"]
    assert wish.spec is not None
    assert (wish.spec.name, wish.index) == ("web", 7)
    assert view.scale == {"web": 5, "api": 2}
    assert view.settings["n1"].availability == "drain"
    assert view.plans["web"].vip == "10.96.0.1"
    assert view.plan_indexes == {"mesh/planned/services/web": 9, "mesh/planned/nodes/n1": 1}
    assert view.nodes["n1"].held
    assert not view.nodes["n2"].held


def test_an_operator_s_broken_spec_is_a_wish_with_errors() -> None:
    view = ViewReader(KEYS).read(
        {
            **entry("mesh/desired/services/bad", b"{nope"),
            **entry("mesh/desired/services/odd", {"image": "x", "replica": 3}),
        }
    )
    assert view.wishes["bad"].spec is None
    assert view.wishes["bad"].errors[0].startswith("not JSON: ")
    assert view.wishes["odd"].errors == ("replica: unknown field (did you mean 'replicas'?)",)


@pytest.mark.parametrize("value", [b"", b"[]", b'{"format": 2, "node": "n1", "address": 7}', b"\xff"])
def test_a_document_that_cannot_be_read_leaves_the_last_good_one(value: bytes) -> None:
    reader = ViewReader(KEYS)
    key = "mesh/observed/nodes/n1"
    before = reader.read(entry(key, {"node": "n1", "address": "10.0.0.1"}, 1, "s"))
    after = reader.read(entry(key, value, 2, "s"))
    assert after.nodes == before.nodes
    assert len(after.problems) == 1
    assert after.problems[0].startswith(key)


def test_a_newer_format_is_named_as_such() -> None:
    newer = json.dumps({"format": 2, "node": "n1", "address": "10.0.0.1"}).encode()
    with pytest.raises(ValueError, match="newer mesh \\(format 2, this version reads 1\\): upgrade"):
        decode_document(newer, NodeReport)


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert decode_document(b'{"node": "n1", "later": 1}', NodePlan) == NodePlan(node="n1")


def test_an_unchanged_entry_keeps_its_object_and_a_lost_lock_is_seen() -> None:
    reader = ViewReader(KEYS)
    key = "mesh/observed/nodes/n1"
    first = reader.read(entry(key, {"node": "n1", "address": "a"}, 1, "s"))
    again = reader.read(entry(key, {"node": "n1", "address": "a"}, 1, "s"))
    assert again.nodes["n1"] is first.nodes["n1"]
    assert not reader.read(entry(key, {"node": "n1", "address": "a"}, 2, None)).nodes["n1"].held
    assert reader.read({}).nodes == {}


@pytest.mark.parametrize("count", [-1, True, "3", None, 10**9])
def test_an_impossible_scale_is_a_problem(count: object) -> None:
    view = ViewReader(KEYS).read(entry("mesh/desired/scale/web", {"replicas": count}))
    assert view.scale == {}
    assert "must be a count of replicas" in view.problems[0]


def test_documents_survive_the_round_trip() -> None:
    plan = ServicePlan(service="web", vip="10.96.0.1", errors=["no"])
    assert decode_document(encode_document(plan), ServicePlan) == plan


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"\xff", "must be text in UTF-8"),
        (b"a\0b", "must not contain a NUL character"),
        (b"x" * 40_000, "has 40000 bytes"),
    ],
)
def test_a_config_is_text_of_bounded_length(value: bytes, problem: str) -> None:
    key = KEYS.config_value("mode")
    view = ViewReader(KEYS).read({key: Entry(key, value, 5)})
    assert not view.configs
    assert problem in view.problems[0]
