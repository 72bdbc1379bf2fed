"""From planned and observed to the Table."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.endpoints import TableBuilder, build_table
from mesh.model import (
    Assignment,
    ClusterPlan,
    NodeDoubt,
    NodePlan,
    NodeReport,
    PublishedPort,
    ReplicaReport,
    ReplicaState,
    ServicePlan,
)
from mesh.table import ProxyProtocol, TablePort
from mesh.view import NodeView, View


def replica(state: ReplicaState = ReplicaState.READY, id: str = "web-1-aaaa", slot: int = 1) -> ReplicaReport:
    return ReplicaReport(
        id=id, service="web", slot=slot, release=1, state=state, address="10.0.0.9", ports={"http": 8080}, tags=["v2"]
    )


def view(*replicas: ReplicaReport, held: bool = True, planned: bool = True) -> View:
    plan = NodePlan(node="n1", replicas=[Assignment(id=r.id, service="web", slot=r.slot, release=1) for r in replicas])
    return View(
        index=3,
        plans={"web": ServicePlan(service="web", vip="10.96.0.1", desired=1, ports={"http": PublishedPort(port=80)})},
        nodes={"n1": NodeView(NodeReport(node="n1", address="10.0.0.1", replicas=list(replicas)), held, 1)},
        node_plans={"n1": plan} if planned else {},
    )


def test_what_a_port_tells_of_addresses_reaches_the_proxy() -> None:
    port = PublishedPort(port=5432, protocol="tcp", proxy_protocol={"accept": True, "send": "v2"})
    plans = {"db": ServicePlan(service="db", ports={"db": port, "other": PublishedPort(port=1)})}
    assert build_table(replace(view(), plans=plans)).services["db"].ports == {
        "db": TablePort(port=5432, proxy_protocol=ProxyProtocol(accept=True, send="v2")),
        "other": TablePort(port=1),
    }


def test_the_slots_of_a_service_that_has_shrunk_are_told() -> None:
    plans = {"web": ServicePlan(service="web", desired=4, seats="1-3,5"), "db": ServicePlan(service="db", desired=2)}
    services = build_table(replace(view(), plans=plans)).services
    assert [services[name].seats for name in ("web", "db")] == [[(1, 3), (5, 5)], []]


def test_a_ready_replica_is_an_endpoint() -> None:
    web = build_table(view(replica())).services["web"]
    assert (web.vip, web.ports["http"].port) == ("10.96.0.1", 80)
    [endpoint] = web.endpoints
    assert (endpoint.id, endpoint.state, endpoint.address, endpoint.ports) == (
        "web-1-aaaa", "ready", "10.0.0.9", {"http": 8080},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("state", "shown"),
    [(state, {"ready": ["ready"], "running": ["running"]}.get(state, [])) for state in ReplicaState],
)
def test_only_living_replicas_that_are_not_withdrawn_are_endpoints(state: ReplicaState, shown: list[str]) -> None:
    assert [e.state for e in build_table(view(replica(state))).services["web"].endpoints] == shown


def test_a_node_without_its_session_is_suspect() -> None:
    assert [e.state for e in build_table(view(replica(), held=False)).services["web"].endpoints] == ["suspect"]


def test_nobody_is_sent_to_a_lost_node_nor_where_an_old_report_says_after_its_return() -> None:
    """The return may be heard of before the report that it goes by: in the old one lives what died with the host."""
    build, known = TableBuilder(), view(replica())
    lost = ClusterPlan(nodes={"n1": NodeDoubt(state="lost", why="gone")})
    returned = ClusterPlan(returned={"n1": 2})
    for cluster in (lost, returned):
        assert build(replace(known, cluster=cluster)).services["web"].endpoints == []
    news = {"n1": replace(known.nodes["n1"], index=2)}
    assert len(build(replace(known, cluster=returned, nodes=news)).services["web"].endpoints) == 1


def test_a_replica_that_the_plan_has_given_up_is_no_endpoint() -> None:
    before = view(replica())
    after = View(plans=before.plans, nodes=before.nodes, node_plans={"n1": NodePlan(node="n1")})
    assert build_table(after).services["web"].endpoints == []


def test_without_a_plan_document_what_runs_is_kept() -> None:
    assert len(build_table(view(replica(), planned=False)).services["web"].endpoints) == 1


def test_slots_come_in_order() -> None:
    many = [replica(id=f"web-{slot}-aaaa", slot=slot) for slot in (10, 2, 1)]
    assert [e.slot for e in build_table(view(*many)).services["web"].endpoints] == [1, 2, 10]


def test_a_deleted_service_leaves_the_zone() -> None:
    gone = View(plans={"web": ServicePlan(service="web", deleted=True)})
    assert build_table(gone).services == {}


def test_what_did_not_change_is_the_same_object() -> None:
    build = TableBuilder()
    before = view(replica())
    shop = ServicePlan(service="shop", vip="10.96.0.2")
    first = build(before)
    second = build(replace(before, plans={**before.plans, "shop": shop}))
    assert second.services["web"] is first.services["web"]
    changed = view(replica(ReplicaState.RUNNING))
    third = build(replace(changed, plans={**before.plans, "shop": shop}))
    assert [e.state for e in third.services["web"].endpoints] == ["running"]
    assert third.services["shop"] is second.services["shop"]


def test_an_order_that_does_not_depend_on_who_came_first() -> None:
    both = {node: NodeView(NodeReport(node=node, address=node, replicas=[replica()]), True, 1) for node in ("n1", "n2")}
    build = TableBuilder()
    build(View(plans=view().plans, nodes={"n2": both["n2"]}))
    assert [one.node for one in build(View(plans=view().plans, nodes=both)).services["web"].endpoints] == ["n1", "n2"]


@given(st.lists(st.tuples(st.sampled_from(["n1", "n2"]), st.lists(st.tuples(
    st.sampled_from(["web", "shop"]), st.integers(1, 3), st.sampled_from(list(ReplicaState))), max_size=3),
    st.booleans(), st.booleans()), max_size=8))  # fmt: skip
def test_a_row_of_tables_equals_each_built_alone(
    changes: list[tuple[str, list[tuple[str, int, ReplicaState]], bool, bool]],
) -> None:
    build = TableBuilder()
    plans = {name: ServicePlan(service=name, vip=vip) for name, vip in (("web", "10.96.0.1"), ("shop", "10.96.0.2"))}
    nodes: dict[str, NodeView] = {}
    for node, replicas, held, gone in changes:
        reports = [
            ReplicaReport(id=f"{service}-{slot}", service=service, slot=slot, release=1, state=state, address=node)
            for service, slot, state in replicas
        ]
        nodes = {**nodes, node: NodeView(NodeReport(node=node, address=node, replicas=reports), held, 1)}
        if gone:
            nodes = {other: seen for other, seen in nodes.items() if other != node}
        picture = View(plans=plans, nodes=nodes)
        assert build(picture) == build_table(picture)
