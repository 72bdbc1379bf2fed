"""`mesh plan`, `apply --plan`, `explain`, `rebalance --plan`, against what the store holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.model import (
    Assignment,
    Capacity,
    NodePlan,
    NodeReport,
    NodeSettings,
    Pending,
    Release,
    ReplicaReport,
    ReplicaState,
    ServicePlan,
    SlotState,
)
from mesh.spec.service import parse_spec
from tests.cli.conftest import Kv, Mesh
from tests.cli.live import WEB, report, running

NEXT = "name: web\nimage: web:2\nreplicas: 3\nenv: {GREETING: hello}\n"


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return name


# ── plan ─────────────────────────────────────────────────────────────────────────────────────


def test_plan_shows_what_would_change_and_touches_nothing(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    running(kv)
    file = write(tmp_path, "web.yaml", NEXT)
    result = mesh("plan", file, "--json")
    assert result.code == 0
    answer = result.json
    assert answer["changes"] == [
        {
            "service": "web",
            "result": "changed",
            "fields": [
                {"path": "image", "before": "web:1", "after": "web:2"},
                {"path": "replicas", "before": 2, "after": 3},
                {"path": "env.GREETING", "before": None, "after": "hello"},
            ],
        }
    ]
    assert [one["slot"] for one in answer["placements"]] == [1, 2, 3]
    assert answer["stops"] == [{"service": "web", "slot": 1, "node": "n1", "why": "replaced by release 2"}]
    assert answer["replaced"] == [
        {"service": "web", "slot": 1, "from": "n1", "to": "n1", "why": "replaced by release 2"}
    ]
    assert kv.get(kv.keys.service("web")) == {"name": "web", "image": "web:1", "replicas": 2}
    assert mesh("plan", file, "--json").json == answer


def test_plan_for_people(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    running(kv)
    write(tmp_path, "big.yaml", "name: big\nimage: x\nresources: {cpu: 2}\n")
    write(tmp_path, "web.yaml", NEXT)
    result = mesh("plan", "web.yaml", "big.yaml")
    assert result.code == 3
    lines = result.out.splitlines()
    assert lines[:4] == [
        "~ web (changed)",
        "    ~ image: web:1 → web:2",
        "    ~ replicas: 2 → 3",
        "    + env.GREETING: hello",
    ]
    assert "+ big (created)" in lines
    assert "  n1: needs 2 cpu, 700m free" in lines
    assert lines[-1].startswith("index ")
    (created,) = mesh("plan", "big.yaml", "--json").json["changes"]
    assert created["result"] == "created"
    assert {"path": "image", "before": None, "after": "x"} in created["fields"]
    assert {"path": "resources.cpu", "before": None, "after": "2"} in created["fields"]


def test_an_unchanged_spec_changes_nothing(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    running(kv)
    report(kv, NodeReport(node="n2", address="10.0.0.2", capacity=Capacity(cpu=1000, memory=2**30)))
    answer = mesh("plan", write(tmp_path, "web.yaml", "name: web\nimage: web:1\nreplicas: 2\n"), "--json").json
    assert answer["changes"] == [{"service": "web", "result": "unchanged", "fields": []}]
    assert (answer["placements"], answer["stops"], answer["pending"]) == ([], [], [])


def test_plan_refuses_a_bad_spec(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    result = mesh("plan", write(tmp_path, "web.yaml", NEXT + "replcias: 2\n"))
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: web.yaml:5: replcias: unknown field")


def test_without_nodes_everything_waits(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    result = mesh("plan", write(tmp_path, "web.yaml", NEXT), "--json")
    assert result.code == 3
    assert result.json["pending"] == [
        {"service": "web", "slots": [1, 2, 3], "reasons": {}, "why": "there are no nodes"}
    ]


# ── apply --plan ─────────────────────────────────────────────────────────────────────────────


def test_a_plan_is_applied_if_nothing_changed_since(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    running(kv)
    file = write(tmp_path, "web.yaml", NEXT)
    index = mesh("plan", file, "--json").json["index"]
    report(kv, NodeReport(node="n3", address="10.0.0.3"))  # what agents say is no change of the wishes
    assert mesh("apply", file, "--plan", index).out == "web: changed\n"
    assert kv.get(kv.keys.service("web"))["image"] == "web:2"


def test_the_first_plan_is_applied_too(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    file = write(tmp_path, "web.yaml", NEXT)
    index = mesh("plan", file, "--json").json["index"]
    report(kv, NodeReport(node="n1", address="10.0.0.1"))
    assert mesh("apply", file, "--plan", index).out == "web: created\n"


@pytest.mark.parametrize("change", ["edited", "other", "scaled", "drained", "deleted"])
def test_a_plan_that_is_overtaken_is_refused(mesh: Mesh, kv: Kv, tmp_path: Path, change: str) -> None:
    running(kv)
    kv.put(kv.keys.service("old"), {"image": "old:1"})
    file = write(tmp_path, "web.yaml", NEXT)
    index = mesh("plan", file, "--json").json["index"]
    match change:
        case "edited":
            kv.put(kv.keys.service("web"), {**WEB, "replicas": 5})
        case "other":
            kv.put(kv.keys.service("db"), {"image": "db:1"})
        case "scaled":
            kv.put(kv.keys.scale("web"), 7)
        case "drained":
            kv.put(kv.keys.node_settings("n1"), NodeSettings(availability="drain"))
        case "deleted":
            assert mesh("delete", "old", "--yes").code == 0
    result = mesh("apply", file, "--plan", index)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"error: the plan is of index {index}, the store is at ")
    assert kv.get(kv.keys.service("web"))["image"] == "web:1"
    again = mesh("plan", file, "--json").json["index"]
    assert mesh("apply", file, "--plan", again).code == 0


# ── explain ──────────────────────────────────────────────────────────────────────────────────


def test_explain_gives_the_score_of_what_is_placed(mesh: Mesh, kv: Kv) -> None:
    running(kv)
    answer = mesh("explain", "web", "--json").json
    (placed,) = answer["placed"]
    assert (placed["id"], placed["node"], placed["place"], placed["fit"]) == ("web-1-aaaa", "n1", 1, 1)
    assert "load" in placed["score"]
    assert "1 of 1" in mesh("explain", "web").out


def test_explain_of_a_global_replica_asks_about_its_node_alone(mesh: Mesh, kv: Kv) -> None:
    running(kv)
    spec = parse_spec({"name": "mon", "kind": "global", "image": "mon:1"})
    release = Release(number=1, hash=spec.digest(), spec=spec.canonical(), good=True)
    kv.put(kv.keys.service("mon"), spec.canonical())
    kv.put(kv.keys.service_plan("mon"), ServicePlan(service="mon", kind="global", releases=[release]))
    assignment = Assignment(id="mon-n1-aaaa", service="mon", slot="n1", release=1)
    kv.put(kv.keys.node_plan("n1"), NodePlan(node="n1", replicas=[assignment]))
    report(kv, NodeReport(node="n2", address="10.0.0.2", capacity=Capacity(cpu=1000, memory=2**30)))
    (placed,) = mesh("explain", "mon", "--json").json["placed"]
    assert (placed["node"], placed["place"], placed["fit"]) == ("n1", 1, 1)


def test_explain_gives_a_sentence_per_node_for_what_waits(mesh: Mesh, kv: Kv) -> None:
    running(kv)
    report(kv, NodeReport(node="n2", address="10.0.0.2", labels={"disk": "ssd"}))
    spec = {"name": "db", "image": "db:1", "replicas": 2, "placement": {"constraints": ["disk == ssd"]}}
    kv.put(kv.keys.service("db"), spec)
    answer = mesh("explain", "db", "--json").json
    assert answer["placed"] == []
    (pending,) = answer["pending"]
    assert pending["slots"] == [1, 2]
    assert "disk" in pending["reasons"]["n1"]
    assert pending["reasons"]["n2"] == "needs 100m cpu, 0 free"
    out = mesh("explain", "db").out
    assert "db 1-2 waits:" in out
    assert "n2: needs 100m cpu, 0 free" in out


def test_explain_one_node(mesh: Mesh, kv: Kv) -> None:
    running(kv)
    kv.put(kv.keys.node_settings("n1"), NodeSettings(availability="pause"))
    answer = mesh("explain", "web", "n1", "--json").json
    assert answer["node"] == {"node": "n1", "why_not": "is paused", "score": {}}
    assert answer["pending"][0]["reasons"] == {"n1": "is paused"}
    assert mesh("explain", "web", "n2", "--json").json["node"]["why_not"] == "does not answer"


def test_explain_names_a_node_that_lacks_the_network_though_it_runs_elsewhere(mesh: Mesh, kv: Kv) -> None:
    running(kv)
    report(kv, NodeReport(node="n2", address="10.0.0.2", capacity=Capacity(cpu=1000, memory=2**30)))
    spec = parse_spec({**WEB, "network": "shop"})
    release = Release(number=1, hash=spec.digest(), spec=spec.canonical(), good=True)
    lacks = "there is no network shop on node n2: `docker network create shop` there"
    slots = {"1": SlotState(failures=1, node="n2", nodes=["n2"], why=lacks, release=1)}
    kv.put(kv.keys.service("web"), spec.canonical())
    kv.put(kv.keys.service_plan("web"), ServicePlan(service="web", desired=1, releases=[release], slots=slots))
    answer = mesh("explain", "web", "n2", "--json").json
    assert answer["failed"] == {"n2": lacks}
    assert answer["node"]["score"]["failed before"] == 1
    assert f"n2 has failed it lately and comes last: {lacks}" in mesh("explain", "web").out
    assert mesh("explain", "web", "n1", "--json").json["failed"] == {}


def test_explain_tells_what_the_scheduler_waits_for(mesh: Mesh, kv: Kv) -> None:
    running(kv)
    spec = parse_spec(WEB)
    release = Release(number=1, hash=spec.digest(), spec=spec.canonical(), good=True)
    waits = Pending(slot=2, reasons=["backs off after its last failure: failed 3 times, last on n1"])
    kv.put(kv.keys.service_plan("web"), ServicePlan(service="web", desired=2, releases=[release], pending=[waits]))
    (pending,) = mesh("explain", "web", "--json").json["pending"]
    assert (pending["slots"], pending["why"]) == ([2], waits.reasons[0])


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["wbe"], "there is no service 'wbe' (did you mean 'web'?)"),
        (["web", "n9"], "there is no node 'n9'"),
    ],
)
def test_explain_of_what_is_not_there(mesh: Mesh, kv: Kv, arguments: list[str], fault: str) -> None:
    running(kv)
    result = mesh("explain", *arguments)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"error: {fault}")


# ── rebalance ────────────────────────────────────────────────────────────────────────────────


def test_rebalance_shows_its_moves(mesh: Mesh, kv: Kv) -> None:
    spec = parse_spec({**WEB, "replicas": 8})
    kv.put(kv.keys.service("web"), spec.canonical())
    release = Release(number=1, hash=spec.digest(), spec=spec.canonical(), good=True)
    kv.put(kv.keys.service_plan("web"), ServicePlan(service="web", desired=8, releases=[release]))
    slots = range(1, 9)
    assignments = [Assignment(id=f"web-{slot}-aaaa", service="web", slot=slot, release=1) for slot in slots]
    replicas = [ReplicaReport(id=one.id, service="web", slot=one.slot, release=1, state=ReplicaState.READY)
                for one in assignments]  # fmt: skip
    kv.put(kv.keys.node_plan("n1"), NodePlan(node="n1", replicas=assignments))
    capacity = Capacity(cpu=1000, memory=2**30)
    report(kv, NodeReport(node="n1", address="10.0.0.1", capacity=capacity, replicas=replicas))
    report(kv, NodeReport(node="n2", address="10.0.0.2", capacity=capacity))
    moves = mesh("rebalance", "--plan", "--share", "25%", "--json").json["moves"]
    assert len(moves) == 2
    assert {(move["service"], move["from"], move["to"]) for move in moves} == {("web", "n1", "n2")}
    assert "after 2 moves:" in mesh("rebalance", "--plan", "--share=0.25").out
    assert mesh("rebalance", "--plan", "--share", "much").code == 2
    without = mesh("rebalance")
    assert without.code == 2
    assert '"rebalance": {"share": 0.05, "interval": 600}' in without.err
    assert kv.keys.config in without.err
