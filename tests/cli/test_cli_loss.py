"""`mesh confirm-loss`, what `nodes` and `status` say of doubtful nodes, and mass edits."""

from __future__ import annotations

import json
from pathlib import Path

from mesh.model import ClusterPlan, NodeDoubt, NodeReport, ReplicaReport, ReplicaState
from tests.cli.conftest import Kv, Mesh

FROZEN = "replacement is frozen: 2 of 3 nodes vanished together (n1, n2)"


def three_nodes(kv: Kv) -> None:
    """Of which two are suspected, and so is everything."""
    for node in ("n1", "n2", "n3"):
        replicas = [
            ReplicaReport(id=f"{service}-{node}-aaaa", service=service, slot=1, release=1, state=ReplicaState.READY)
            for service in ("web", "api")
        ]
        kv.put(kv.keys.node_report(node), NodeReport(node=node, address="10.0.0.1", replicas=replicas))
    doubts = {node: NodeDoubt(state="suspected", why="does not answer") for node in ("n1", "n2")}
    doubts["n3"] = NodeDoubt(state="degraded", why="runs no agent; what it runs may serve")
    kv.put(kv.keys.cluster, ClusterPlan(frozen=FROZEN, nodes=doubts))
    for service in ("web", "api"):
        kv.put(kv.keys.service(service), {"image": "x", "replicas": 3})


def test_doubtful_nodes_are_shown_with_a_sentence(mesh: Mesh, kv: Kv) -> None:
    three_nodes(kv)
    nodes = {node["name"]: node for node in mesh("nodes", "--json").json}
    assert [nodes[name]["state"] for name in ("n1", "n2", "n3")] == ["suspected", "suspected", "active"]
    assert nodes["n1"]["problems"] == ["does not answer"]
    assert nodes["n3"]["problems"] == ["runs no agent; what it runs may serve"]
    for command in ("status", "nodes"):
        assert f"{FROZEN}; if they are gone for good: mesh confirm-loss" in mesh(command).err
    assert "node n1 does not answer" in mesh("status").err
    for arguments in (["web"], ["--json"]):
        assert FROZEN in mesh("status", *arguments).err


def test_a_loss_is_confirmed_for_the_node_s_last_report_and_keeps_its_other_settings(mesh: Mesh, kv: Kv) -> None:
    three_nodes(kv)
    kv.put(kv.keys.node_settings("n1"), {"availability": "pause", "labels": {"zone": "a"}})
    assert mesh("confirm-loss", "n1", "--json").json == [{"node": "n1", "result": "confirmed"}]
    written = kv.get(kv.keys.node_settings("n1"))
    assert written["lost"] > 0
    assert written["labels"] == {"zone": "a"}
    assert kv.get(kv.keys.node_settings("n2")) is None
    assert mesh("confirm-loss", "--yes").code == 0
    assert kv.get(kv.keys.node_settings("n2"))["lost"] > 0


def test_what_answers_cannot_be_confirmed_as_lost(mesh: Mesh, kv: Kv) -> None:
    assert mesh("confirm-loss").code == 1
    three_nodes(kv)
    assert "n3 is not suspected" in mesh("confirm-loss", "n3").err
    assert "there is no node 'n9'" in mesh("confirm-loss", "n9").err


def test_what_would_stop_most_of_all_needs_a_yes(mesh: Mesh, kv: Kv, surroundings: Path) -> None:
    three_nodes(kv)
    refused = mesh("scale", "web=0", "api=0")
    assert refused.code == 1
    assert refused.err == "error: this stops 6 of 6 running replicas (api, web); if that is meant, say --yes\n"
    assert kv.get(kv.keys.scale("web")) is None
    assert mesh("delete", "web", "api").code == 1
    specs = {"services": [{"name": name, "image": "x", "replicas": 0} for name in ("web", "api")]}
    (surroundings / "all.json").write_text(json.dumps(specs))
    assert "this stops 6 of 6 running replicas" in mesh("apply", "all.json").err
    assert kv.get(kv.keys.service("web"))["replicas"] == 3
    assert mesh("scale", "web=2", "api=2").code == 0
    assert mesh("scale", "web=0", "api=0", "--yes").code == 0
