"""`mesh simulate`: files in, answers and exit codes out. What the answers mean is tested in `test_forecast.py`."""

from __future__ import annotations

import io
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mesh.model import Release, ServicePlan
from tests.cli.conftest import Kv, Mesh, Result
from tests.cli.live import running

NODES: dict[str, Any] = {f"n{number}": {"cpu": 2, "memory": "4Gi"} for number in (1, 2, 3)}
WEB: dict[str, Any] = {"image": "web:1", "replicas": 3, "resources": {"cpu": 1, "memory": "1Gi"}}


def on(node: str, slot: int = 1, service: str = "web") -> dict[str, Any]:
    return {"service": service, "slot": slot, "node": node, "release": 1, "state": "ready"}


@pytest.fixture
def simulate(mesh: Mesh, tmp_path: Path) -> Any:
    """Runs `mesh simulate` on a cluster, with these flags."""

    def call(cluster: Any, *flags: str) -> Result:
        file = tmp_path / "cluster.json"
        file.write_text(cluster if isinstance(cluster, str) else json.dumps(cluster))
        return mesh("simulate", file.name, "--json", *flags)

    return call


def test_the_answer_has_all_its_parts(simulate: Any) -> None:
    result = simulate({"nodes": NODES, "services": {"web": WEB}, "replicas": [on("n1")]})
    assert (result.code, result.err) == (0, "")
    assert result.json == {
        "placements": [{"service": "web", "slot": 2, "node": "n2"}, {"service": "web", "slot": 3, "node": "n3"}],
        "stops": [],
        "pending": [],
        "warnings": [],
        "nodes": {name: {"cpu_free": 1000, "memory_free": 3 * 2**30, "resources_free": {}} for name in NODES},
    }


def test_what_does_not_fit_is_exit_code_3_with_the_reasons(simulate: Any) -> None:
    result = simulate({"nodes": {"n1": NODES["n1"]}, "services": {"web": WEB}})
    assert result.code == 3
    assert result.json["pending"] == [
        {"service": "web", "slots": [3], "reasons": {"n1": "needs 1 cpu, 0 free"}, "why": ""}
    ]


def test_yaml_toml_and_standard_input(mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yaml").write_text("nodes: {n1: {cpu: 1}}\nservices: {web: {resources: {cpu: 1}}}\n")
    (tmp_path / "c.toml").write_text("[nodes.n1]\ncpu = 1\n[services.web.resources]\ncpu = 1\n")
    from_yaml = mesh("simulate", "c.yaml", "--json")
    assert from_yaml.json["placements"] == [{"service": "web", "slot": 1, "node": "n1"}]
    assert mesh("simulate", "c.toml", "--json") == from_yaml
    stdin = io.TextIOWrapper(io.BytesIO((tmp_path / "c.yaml").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert mesh("simulate", "-", "--json") == from_yaml


def test_for_people_it_is_a_table_and_a_sentence(mesh: Mesh, tmp_path: Path) -> None:
    services = {"web": {**WEB, "release": 2}, "big": {"resources": {"cpu": 9}}}
    cluster = {"nodes": NODES, "services": services, "replicas": [on("n1"), on("n1", 4)]}
    (tmp_path / "c.json").write_text(json.dumps(cluster))
    result = mesh("simulate", "c.json", "--lose-any", "1", "--until-full", "web", "--rebalance")
    assert result.code == 3
    lines = result.out.splitlines()
    assert lines[0].split() == ["SERVICE", "SLOTS", "CHANGE", "NODE", "WHY"]
    assert any(line.split()[:3] == ["web", "4", "replace"] for line in lines)
    assert "big 1 waits:" in lines
    assert "  3 nodes (n1, n2, n3): needs 9 cpu, 1 free" in lines
    answers = [
        "3 placed, 2 stopped, 1 slot waits",
        "without n1 not everything fits any more",
        "3 more of web fit, then:",
    ]
    assert [line for line in lines if line in answers] == answers


# ── what if ──────────────────────────────────────────────────────────────────────────────────


def test_lose_takes_several_nodes(simulate: Any) -> None:
    cluster = {"nodes": NODES, "services": {"web": WEB}, "replicas": [on("n1"), on("n2", 2), on("n3", 3)]}
    result = simulate(cluster, "--lose", "n1,n2")
    assert result.json["placements"] == [{"service": "web", "slot": 1, "node": "n3"}]
    assert result.json["pending"][0]["slots"] == [2]
    assert result.code == 3
    assert simulate(cluster, "--lose", "n1", "--lose", "n2").json == result.json
    assert simulate(cluster, "--lose", "n1, n2").json == result.json


def test_lose_any_says_what_the_worst_loss_is(simulate: Any) -> None:
    nodes = {**NODES, "big": {"cpu": 4, "memory": "8Gi"}}
    cluster = {"nodes": nodes, "services": {"web": {**WEB, "replicas": 6}}}
    result = simulate(cluster, "--lose-any", "1")
    assert result.json["lose_any"] == {
        "k": 1, "fits": True, "exhaustive": True, "worst": {"lose": ["big"], "pending": []},
    }  # fmt: skip
    assert result.code == 0
    two = simulate(cluster, "--lose-any", "2")
    assert (two.code, two.json["lose_any"]["fits"], two.json["pending"]) == (3, False, [])
    worst = two.json["lose_any"]["worst"]
    assert worst["lose"] == ["big", "n1"]
    assert worst["pending"][0]["slots"] == [5, 6]


def test_lose_any_is_what_lose_says_of_every_set(simulate: Any) -> None:
    replicas = [on("n1"), on("n2", 2), on("n2", 3), on("n3", 1, "db")]
    services = {"web": WEB, "db": {**WEB, "replicas": 1, "placement": {"constraints": ["name in n2, n3"]}}}
    for present in ([], replicas):
        cluster = {"nodes": NODES, "services": services, "replicas": present}
        for k in (1, 2):
            waits = {}
            for lost in itertools.combinations(NODES, k):
                pending = simulate(cluster, "--lose", ",".join(lost)).json["pending"]
                waits[lost] = sum(len(one["slots"]) for one in pending)
            answer = simulate(cluster, "--lose-any", str(k)).json["lose_any"]
            assert answer["fits"] is not any(waits.values())
            assert waits[tuple(answer["worst"]["lose"])] == max(waits.values())
            assert sum(len(one["slots"]) for one in answer["worst"]["pending"]) == max(waits.values())


def test_too_many_sets_of_nodes_are_tried_in_part(simulate: Any) -> None:
    nodes = {f"n{number:02}": {"cpu": 1} for number in range(40)}
    web = {"replicas": 21, "resources": {"cpu": 1}}
    answer = simulate({"nodes": nodes, "services": {"web": web}}, "--lose-any", "20").json["lose_any"]
    assert (answer["fits"], answer["exhaustive"]) == (False, False)
    assert len(answer["worst"]["lose"]) == 20


def test_until_full_counts_beyond_what_is_desired(simulate: Any) -> None:
    result = simulate({"nodes": NODES, "services": {"web": WEB}}, "--until-full", "web")
    assert result.code == 0
    assert result.json["until_full"] == {
        "service": "web", "more": 3, "reasons": dict.fromkeys(NODES, "needs 1 cpu, 0 free"),
    }  # fmt: skip


def test_until_full_names_further_slots(simulate: Any) -> None:
    web = {"replicas": 2, "ports": {"db": {"port": 5432, "host_port": 5432}}}
    answer = simulate({"nodes": NODES, "services": {"web": web}}, "--until-full", "web").json["until_full"]
    assert answer["more"] == 1
    assert answer["reasons"]["n3"] == "host port 5432/tcp is taken by web-3"


def test_until_full_has_an_end_where_nothing_is_taken(simulate: Any) -> None:
    answer = simulate({"nodes": NODES, "services": {"web": {}}}, "--until-full", "web").json["until_full"]
    assert answer == {"service": "web", "more": 100_000, "reasons": {}, "why": "a service has at most 100000 replicas"}


def test_until_full_evicts_nobody(simulate: Any) -> None:
    db = {**WEB, "replicas": 0, "placement": {"priority": 90}}
    cluster = {"nodes": NODES, "services": {"web": {**WEB, "replicas": 6}, "db": db}}
    assert simulate(cluster, "--until-full", "db").json["until_full"]["more"] == 0


def test_rebalance_adds_moves(simulate: Any) -> None:
    replicas = [on("n1", slot) for slot in (1, 2)] + [on("n2", 3)]
    services = {"web": {"replicas": 3, "resources": {"cpu": 1}}}
    cluster = {"nodes": {"n1": {"cpu": 8}, "n2": {"cpu": 8}}, "services": services, "replicas": replicas}
    cluster["strategy"] = "binpack"
    assert simulate(cluster, "--rebalance").json["moves"] == []  # 5 % of three replicas are none
    result = simulate(cluster, "--rebalance=50%")
    assert result.json["moves"] == [{"service": "web", "slot": 3, "from": "n2", "to": "n1"}]
    assert result.json["nodes"]["n2"]["cpu_free"] == 8000
    assert simulate(cluster, "--rebalance=0.5").json == result.json
    assert "moves" not in simulate(cluster).json


# ── bad input ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("cluster", "fault"),
    [
        ("{", "cluster.json:1: not JSON"),
        ("[]", "cluster.json: must be an object, got a list"),
        ('{"nodes": {}, "nodes": {}}', "the key 'nodes' is there twice"),
        ({"nodse": {}}, "nodse: unknown field (did you mean 'nodes'?)"),
        ({"nodes": []}, "nodes: must be an object, got a list"),
        ({"nodes": {"n1": {"cpu": -1}}}, "nodes.n1.cpu: must be CPU in cores or millicores such as 0.5"),
        ({"nodes": {"n1": {"cpu": "lots"}}}, "nodes.n1.cpu: must be CPU"),
        ({"nodes": {"n1": {"cpu": True}}}, "nodes.n1.cpu: must be CPU"),
        ({"nodes": {"n1": {"memory": "4GiB"}}}, "nodes.n1.memory: must be memory"),
        ({"nodes": {"n1": {"resources": {"gpu": 1.5}}}}, "nodes.n1.resources.gpu: must be a whole number"),
        ({"nodes": {"n1": {"reserved": {"cpu": -1}}}}, "nodes.n1.reserved.cpu: must be CPU"),
        ({"nodes": {"n1": {"reserved": {"memroy": "1Gi"}}}}, "nodes.n1.reserved.memroy: must be a whole number"),
        ({"nodes": {"n1": {"labels": ["zone"]}}}, "nodes.n1.labels: must be an object"),
        ({"nodes": {"n1": {"labels": {"zone": None}}}}, "nodes.n1.labels.zone: must be text, got nothing"),
        ({"nodes": {"n1": {"availability": "drained"}}}, "nodes.n1.availability: must be active, pause, drain or lost"),
        ({"nodes": {"n1": {"lables": {}}}}, "nodes.n1.lables: unknown field (did you mean 'labels'?)"),
        ({"nodes": {"n1": 4}}, "nodes.n1: must be an object, got 4"),
        ({"nodes": {"": {}}}, "nodes.: a node needs a name"),
        ({"nodes": {"n1": {"resources": {"cpu": 4}}}}, "resources.cpu: belongs beside resources: nodes.n1.cpu"),
        ({"services": {"web": {"release": "two"}}}, "services.web.release: must be a whole number"),
        ({"replicas": {}}, "replicas: must be a list"),
        ({"replicas": [{"slot": 1, "node": "n1"}]}, "replicas.0.service: is required"),
        ({"replicas": [{"service": "web", "node": "n1", "slot": 0}]}, "replicas.0.slot: must be a number from 1"),
        ({"replicas": [{**on("n1"), "state": "happy"}]}, "replicas.0.state: must be assigned, pulling,"),
        ({"replicas": [{**on("n1"), "release": -1}]}, "replicas.0.release: must be a whole number"),
        ({"replicas": [{**on("n1"), "id": "a"}, {**on("n1", 2), "id": "a"}]}, "replicas.1.id: 'a' is there twice"),
        ({"services": {"web": WEB}, "replicas": [{**on("n1"), "slot": "n1"}]}, "replicas.0.slot: must be a number"),
        ({"services": {"a": {"kind": "global"}}, "replicas": [{**on("n1"), "service": "a"}]}, "the node's name 'n1'"),
        ({"strategy": "pack"}, "strategy: must be spread or binpack, got 'pack' (did you mean 'binpack'?)"),
    ],
)  # fmt: skip
def test_a_bad_file_is_a_sentence_with_its_path_and_exit_code_2(simulate: Any, cluster: Any, fault: str) -> None:
    result = simulate(cluster)
    assert (result.code, result.out) == (2, "")
    assert fault in result.err
    assert result.err.startswith("error: cluster.json:")


def test_every_fault_of_a_file_is_told_at_once_with_its_line(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("nodes:\n  n1:\n    cpu: much\n    memory: -1\nstrategy: pack\n")
    assert [line.split(": ")[1:3] for line in mesh("simulate", "c.yaml").err.splitlines()] == [
        ["c.yaml:3", "nodes.n1.cpu"], ["c.yaml:4", "nodes.n1.memory"], ["c.yaml:5", "strategy"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--lose", "n9"], "--lose: there is no node 'n9'"),
        (["--lose-any", "4"], "--lose-any: must be 1..3, as many nodes as there are, got 4"),
        (["--lose-any", "0"], "--lose-any: must be 1..3"),
        (["--lose-any", "some"], "Invalid value for '--lose-any'"),
        (["--until-full", "wbe"], "--until-full: there is no service 'wbe' (did you mean 'web'?)"),
        (["--rebalance=some"], "--rebalance: must be a share such as 5% or 0.05, got 'some'"),
        (["--rebalance=150%"], "--rebalance: must be a share"),
        (["--live"], "give either a FILE or --live"),
    ],
)
def test_a_bad_flag_is_a_sentence_and_exit_code_2(simulate: Any, flags: list[str], fault: str) -> None:
    result = simulate({"nodes": NODES, "services": {"web": WEB}}, *flags)
    assert (result.code, result.out) == (2, "")
    assert fault in result.err


def test_a_file_that_is_not_there(mesh: Mesh) -> None:
    result = mesh("simulate", "none.json")
    assert (result.code, result.err) == (2, "error: none.json: cannot read it: No such file or directory\n")
    assert mesh("simulate").err == "error: give either a FILE or --live\n"


@pytest.mark.parametrize(
    ("service", "sentence"),
    [
        ({"placement": {"constraints": ["zone ="]}}, "placement.constraints.0: "),
        ({"placement": {"constraints": ["gpu exists", "gpu == none"]}}, "has no gpu, wants gpu exists"),
        ({"placement": {"constraints": ["name == n1", "name == n2"]}}, "'name == n1' contradicts 'name == n2'"),
        ({"resources": {"cpu": 1000}}, "needs 1000 cpu, 1 free"),
        ({"resources": {"unicorn": 1}}, "needs 1 unicorn, 0 free"),
        ({"placement": {"spread": [{"label": "zone", "targets": {"a": 70, "b": 40}}]}}, "must not add up to more than"),
        ({"placement": {"max_per_node": 0}}, "placement.max_per_node: must be 1.."),
        ({"placement": {"affinities": [{"match": "zone", "weight": 10}]}}, "is no constraint"),
        ({"placement": {"affinities": [{"service": "db", "weight": 500}]}}, "weight: must be -100..100"),
    ],
)
def test_what_cannot_be_is_a_parked_service_with_its_sentence(
    simulate: Any, service: dict[str, Any], sentence: str
) -> None:
    result = simulate({"nodes": NODES, "services": {"bad": service, "web": WEB}})
    assert result.code == 3
    assert len(result.json["placements"]) == 3
    (pending,) = result.json["pending"]
    assert pending["service"] == "bad"
    assert sentence in "; ".join([pending["why"], *pending["reasons"].values()])


def test_ten_thousand_replicas_on_one_node(simulate: Any) -> None:
    replicas = [on("n1", slot) for slot in range(1, 10_001)]
    cluster = {"nodes": NODES, "services": {"web": {**WEB, "replicas": 10_000}}, "replicas": replicas}
    result = simulate(cluster)
    assert (result.code, result.json["placements"], result.json["stops"]) == (0, [], [])
    assert result.json["nodes"]["n1"]["cpu_free"] == -9_998_000
    lost = simulate(cluster, "--lose", "n1")
    assert len(lost.json["placements"]) == 4
    assert len(lost.json["pending"][0]["slots"]) == 9_996
    fewer = simulate({**cluster, "services": {"web": {**WEB, "replicas": 1}}})
    assert len(fewer.json["stops"]) == 9_999


def test_an_empty_cluster_fits(simulate: Any) -> None:
    result = simulate({})
    assert (result.code, result.json) == (
        0, {"placements": [], "stops": [], "pending": [], "warnings": [], "nodes": {}},
    )  # fmt: skip


# ── the running cluster ──────────────────────────────────────────────────────────────────────


def test_the_running_cluster_is_an_input_too(mesh: Mesh, kv: Kv) -> None:
    running(kv)
    result = mesh("simulate", "--live", "--json")
    assert result.json["placements"] == [{"service": "web", "slot": 2, "node": "n1"}]
    assert result.json["nodes"] == {"n1": {"cpu_free": 800, "memory_free": 2**30 - 2**27, "resources_free": {}}}
    assert mesh("simulate", "--live", "--lose", "n1", "--json").code == 3


def test_a_service_whose_plan_makes_no_sense_stops_no_others(mesh: Mesh, kv: Kv) -> None:
    running(kv)
    release = Release(number=1, hash="x", spec={"replicas": "many"}, good=True)
    kv.put(kv.keys.service("odd"), {"name": "odd", "image": "odd:1"})
    kv.put(
        kv.keys.service_plan("odd"),
        ServicePlan(service="odd", desired=1, releases=[release], seats="1-x", pins={"a": "n1"}),
    )
    result = mesh("simulate", "--live", "--json")
    assert result.json["placements"] == [{"service": "web", "slot": 2, "node": "n1"}]
    assert [one["service"] for one in result.json["pending"]] == ["odd"]
