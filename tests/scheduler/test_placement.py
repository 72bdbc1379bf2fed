"""The placement engine's seat: hard rules, wishes, reasons."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.model import Capacity
from mesh.scheduler.blueprint import Blueprint, draw
from mesh.scheduler.placement import Holding, Node, Placement, Refusal, Request, place
from mesh.spec.service import parse_spec

MI = 2**20


def blueprint(name: str = "web", **fields: Any) -> Blueprint:
    spec = parse_spec({"name": name, "image": "x", **fields}, name)
    return draw(spec, spec.canonical())


def node(name: str, cpu: int = 1000, memory: int = 1024 * MI, **rest: Any) -> Node:
    capacity = Capacity(cpu=cpu, memory=memory, resources=rest.pop("resources", {}))
    return Node(name, capacity, {"name": name, "runtime": "docker", **rest.pop("labels", {})}, **rest)


def ask(count: int, plan: Blueprint, **rest: Any) -> list[Request]:
    return [Request(plan.spec.name, slot, plan, **rest) for slot in range(1, count + 1)]


def where(answers: list[Placement | Refusal]) -> list[str | None]:
    return [answer.node if isinstance(answer, Placement) else None for answer in answers]


def reasons(answers: list[Placement | Refusal]) -> list[str]:
    return [reason for answer in answers if isinstance(answer, Refusal) for reason in answer.sentences()]


def test_replicas_of_a_service_go_apart() -> None:
    assert where(place(ask(3, blueprint()), [node("n1"), node("n2"), node("n3")])) == ["n1", "n2", "n3"]


def test_among_equals_the_less_loaded_node_wins() -> None:
    other = Holding("db", blueprint("db", resources={"cpu": "500m"}).demand)
    assert where(place(ask(1, blueprint()), [node("n1", holdings=[other]), node("n2")])) == ["n2"]


def test_binpack_fills_one_node_first() -> None:
    packed = blueprint(placement={"strategy": "binpack"}, resources={"cpu": "250m", "memory": "1Mi"})
    assert where(place(ask(5, packed), [node("n1"), node("n2")])) == ["n1", "n1", "n1", "n1", "n2"]


def test_the_clusters_strategy_counts_where_the_service_has_none() -> None:
    small = blueprint(resources={"cpu": "250m", "memory": "1Mi"})
    assert where(place(ask(2, small), [node("n1"), node("n2")], "binpack")) == ["n1", "n1"]


def test_the_node_that_failed_the_slot_comes_last_but_is_taken_if_it_is_the_only_one() -> None:
    assert where(place(ask(1, blueprint(), avoid=frozenset(["n1"])), [node("n1"), node("n2", cpu=200)])) == ["n2"]
    assert where(place(ask(1, blueprint(), avoid=frozenset(["n1"])), [node("n1")])) == ["n1"]


def test_a_request_for_one_node_goes_there_or_nowhere() -> None:
    assert where(place(ask(1, blueprint(), only="n2"), [node("n1"), node("n2")])) == ["n2"]
    answers = place(ask(1, blueprint(), only="n2"), [node("n1"), node("n2", barred="is paused")])
    assert reasons(answers) == ["n2: is paused"]
    assert reasons(place(ask(1, blueprint(), only="n9"), [node("n1")])) == ["there is no node n9"]


def test_higher_priority_chooses_first() -> None:
    low = blueprint("low", resources={"cpu": 1}, placement={"priority": 10})
    high = blueprint("high", resources={"cpu": 1}, placement={"priority": 90})
    answers = place([*ask(1, low), *ask(1, high)], [node("n1")])
    assert where(answers) == [None, "n1"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"resources": {"cpu": 2}}, "n1: needs 2 cpu, 900m free"),
        ({"resources": {"memory": "2Gi"}}, "n1: needs 2Gi memory, 960Mi free"),
        ({"resources": {"gpu": 2}}, "n1: needs 2 gpu, 1 free"),
        ({"resources": {"license": 1}}, "n1: needs 1 license, 0 free"),
        ({"ports": {"db": {"port": 5432, "host_port": 5432}}}, "n1: host port 5432/tcp is taken by db"),
        ({"placement": {"constraints": ["zone == eu-1"]}}, "n1: has no zone, wants zone == eu-1"),
        ({"image": None, "command": ["x"]}, "n1: runs docker, which needs an image"),
    ],
)
def test_each_dimension_has_its_sentence(spec: dict[str, Any], reason: str) -> None:
    db = blueprint("db", ports={"db": {"port": 5432, "host_port": 5432}})
    taken = node("n1", resources={"gpu": 1}, holdings=[Holding("db", db.demand)])
    assert reasons(place(ask(1, blueprint(**spec)), [taken])) == [reason]


def test_tcp_and_udp_of_one_host_port_are_two_dimensions() -> None:
    udp = blueprint("dns", ports={"dns": {"port": 53, "protocol": "udp", "host_port": 53}})
    tcp = blueprint("web", ports={"dns": {"port": 53, "protocol": "tcp", "host_port": 53}})
    assert where(place([*ask(1, udp), *ask(2, tcp)], [node("n1")])) == ["n1", "n1", None]


def test_max_per_node_counts_what_stays() -> None:
    limited = blueprint(placement={"max_per_node": 1})
    leaving = node("n1", holdings=[Holding("web", limited.demand, stays=False)])
    staying = node("n2", holdings=[Holding("web", limited.demand)])
    assert where(place(ask(2, limited), [leaving, staying])) == ["n1", None]
    assert reasons(place(ask(2, limited), [leaving, staying])) == [
        "2 nodes (n1, n2): already has 1 of web (max_per_node)"
    ]


def test_reasons_are_grouped_and_bounded() -> None:
    nodes = [node(f"n{number}", cpu=10) for number in range(8)]
    assert reasons(place(ask(1, blueprint()), nodes)) == ["8 nodes (n0, n1, n2 and 5 more): needs 100m cpu, 10m free"]
    nodes = [node(f"n{number}", cpu=number) for number in range(60)]
    assert len(reasons(place(ask(1, blueprint()), nodes))) == 11


def test_without_nodes_it_says_so() -> None:
    assert reasons(place(ask(1, blueprint()), [])) == ["there are no nodes"]


NODES = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 512), st.integers(0, 3), st.sampled_from(["", "is paused"])),
    max_size=5,
)
SERVICES = st.lists(
    st.tuples(
        st.integers(1, 6),  # replicas
        st.integers(0, 900),  # cpu
        st.integers(0, 300),  # memory, Mi
        st.integers(0, 2),  # gpus
        st.one_of(st.none(), st.integers(1, 2)),  # max_per_node
        st.sampled_from([None, 80, 81]),  # host port
        st.sampled_from(["spread", "binpack"]),
        st.integers(0, 100),  # priority
    ),
    max_size=4,
)


@given(NODES, SERVICES)
def test_nothing_is_ever_over_capacity_and_the_answer_is_stable(
    shapes: list[tuple[int, int, int, str]], services: list[Any]
) -> None:
    nodes = [
        node(f"n{at}", cpu, memory * MI, resources={"gpu": gpus}, barred=barred)
        for at, (cpu, memory, gpus, barred) in enumerate(shapes)
    ]
    requests: list[Request] = []
    for at, (count, cpu, memory, gpus, most, port, strategy, priority) in enumerate(services):
        ports = {"p": {"port": 1, "host_port": port}} if port else {}
        plan = blueprint(
            f"s{at}",
            resources={"cpu": f"{cpu}m", "memory": f"{memory}Mi", "gpu": gpus},
            ports=ports,
            placement={"strategy": strategy, "priority": priority, **({"max_per_node": most} if most else {})},
        )
        requests += ask(count, plan)
    answers = place(requests, nodes)
    assert answers == place(requests, nodes)
    assert [answer.request for answer in answers] == requests
    for one in nodes:
        placed = [answer.request for answer in answers if isinstance(answer, Placement) and answer.node == one.name]
        assert not (placed and one.barred)
        demands = [request.blueprint.demand for request in placed]
        assert sum(demand.cpu for demand in demands) <= one.capacity.cpu
        assert sum(demand.memory for demand in demands) <= one.capacity.memory
        assert sum(demand.resources.get("gpu", 0) for demand in demands) <= one.capacity.resources["gpu"]
        taken = [port for demand in demands for port in demand.ports]
        assert len(taken) == len(set(taken))
        for request in placed:
            most = request.blueprint.spec.placement.max_per_node
            assert most is None or sum(1 for other in placed if other.service == request.service) <= most
    assert all(answer.sentences() for answer in answers if isinstance(answer, Refusal))
