"""Making room for what is more important; waiting for it, and being woken."""

from collections.abc import Collection
from typing import Any

from mesh.model import Capacity, ServicePlan, Want
from mesh.scheduler.placement import Node, Placement, Refusal, Request
from tests.scheduler.world import GI, World


def important(priority: int, **fields: Any) -> dict[str, Any]:
    return {"placement": {"priority": priority, **fields.pop("placement", {})}, **fields}


def full(nodes: int = 2, priority: int = 20, memory: str = "3Gi") -> World:
    """Each node has room for one replica, and one of `low`."""
    world = World(nodes)
    world.apply("low", replicas=nodes, resources={"memory": memory}, stop={"drain": "5s"}, **important(priority))
    world.settle()
    return world


def test_a_clearly_more_important_service_gets_its_room_when_it_is_really_free() -> None:
    world = full()
    world.apply("db", resources={"memory": "3Gi"}, **important(80))
    world.run(0.05)
    stopping = [one for plan in world.node_plans.values() for one in plan.replicas if one.want is Want.STOP]
    assert [(one.service, one.cause) for one in stopping] == [("low", "preempted by db (priority 80)")]
    assert world.plans["db"].pending[0].reasons == [
        f"waits for room on {world.node_of(stopping[0].id)}: {stopping[0].id} must stop first"
    ]
    assert not world.running("db")
    world.run_until(lambda: len(world.ready("db")) == 1)  # `check` has watched the capacity
    pending = world.plans["low"].pending
    assert [one.reasons[0] for one in pending] == ["preempted by db (priority 80)"]
    assert "memory" in pending[0].reasons[1]
    assert not world.plans["db"].claims


def test_who_was_evicted_goes_elsewhere_if_there_is_room_and_evicts_nobody_back() -> None:
    world = full(1)
    world.apply("db", resources={"memory": "3Gi"}, **important(80))
    world.run(60)
    assert (len(world.ready("db")), len(world.ready("low"))) == (1, 0)
    before = world.ready("db")
    world.run(2000)
    assert world.ready("db") == before
    world.nodes["n2"] = type(world.nodes["n1"])("n2")
    world.run(0.1)
    world.rescale("low", None)
    world.settle()
    assert world.spread("low") == {"n2": 1}
    assert any("placed low-1" in event.text and event.cause == "preempted by db (priority 80)"
               for event in world.plans["low"].events)  # fmt: skip


def test_less_than_10_apart_nobody_is_evicted() -> None:
    world = full(2, 50)
    world.apply("db", resources={"memory": "3Gi"}, **important(59))
    world.run(60)
    assert len(world.ready("low")) == 2
    assert "memory" in world.plans["db"].pending[0].reasons[0]


def test_evictions_go_down_in_one_look_and_settle() -> None:
    """`db` evicts `mid`, which fits only where `low` is, which then waits."""
    world = World(2)
    world.nodes["n1"].labels = {"disk": "ssd"}
    only = {"constraints": ["disk == ssd"]}
    world.apply("low", resources={"memory": "3Gi"}, **important(10, placement={"constraints": ["name == n2"]}))
    world.settle()
    world.apply("mid", resources={"memory": "3Gi"}, **important(50))
    world.settle()
    assert world.spread("mid") == {"n1": 1}
    world.apply("db", resources={"memory": "3Gi"}, **important(90, placement=only))
    world.run(0.0)
    assert world.reconcile().changes == 0, "asked again it changes nothing"
    world.run(30)
    assert (world.spread("db"), world.spread("mid")) == ({"n1": 1}, {"n2": 1})
    assert world.plans["low"].pending[0].cause == "preempted by mid (priority 50)"
    assert world.reconcile().changes == 0


def test_evictions_under_way_are_bounded() -> None:
    world = World(80)
    for node in world.nodes.values():
        node.capacity = Capacity(cpu=4000, memory=GI)
    world.apply("low", replicas=80, resources={"memory": "1Gi"}, **important(0))
    world.settle()
    world.apply("db", replicas=80, resources={"memory": "1Gi"}, **important(90))
    world.run(0.05)
    stopping = [one for plan in world.node_plans.values() for one in plan.replicas if one.want is Want.STOP]
    assert len(stopping) == 50
    world.run_until(lambda: len(world.ready("db")) == 80)


def test_a_new_leader_keeps_the_promise() -> None:
    world = full(3)
    world.apply("db", resources={"memory": "3Gi"}, **important(80))
    world.run(0.05)
    world.change_leader()
    world.run_until(lambda: len(world.ready("db")) == 1)
    world.run(10)
    assert len(world.ready("low")) == 2


def test_a_promise_lapses_with_its_node() -> None:
    world = full(3)
    world.apply("db", resources={"memory": "3Gi"}, **important(80))
    world.run(0.05)
    world.lose(world.plans["db"].claims[0].node)
    world.run_until(lambda: len(world.ready("db")) == 1)


# ── parked ───────────────────────────────────────────────────────────────────────────────────


def test_what_found_no_place_is_asked_for_again_only_when_a_node_became_better(monkeypatch: Any) -> None:
    from mesh.scheduler import placement

    asked: list[str] = []

    def counted(requests: list[Request], nodes: list[Node], strategy: str) -> list[Placement | Refusal]:
        asked.extend(request.service for request in requests)
        return place(requests, nodes, strategy)

    place = placement.place
    monkeypatch.setattr(placement, "place", counted)
    world = full(2, 50)
    world.apply("wide", resources={"memory": "2Gi"})
    world.run(5)
    assert "memory" in world.plans["wide"].pending[0].reasons[0]
    asked.clear()
    world.apply("small")  # takes room: that helps nobody
    world.run(60)
    assert asked == ["small"]
    world.set_node("n1", "active", zone="a")
    world.run(1)
    assert asked == ["small", "wide"]
    world.rescale("low", 1)
    world.run_until(lambda: len(world.ready("wide")) == 1)
    asked.clear()
    world.run(60)
    assert asked == []


def test_one_poisonous_service_does_not_stop_the_others_from_being_placed(monkeypatch: Any) -> None:
    from mesh.scheduler import placement

    def poisoned(requests: list[Request], nodes: list[Node], strategy: str) -> list[Placement | Refusal]:
        if any(request.service == "poison" for request in requests):
            raise ZeroDivisionError("boom")
        return place(requests, nodes, strategy)

    place = placement.place
    monkeypatch.setattr(placement, "place", poisoned)
    world = World(2)
    world.faults_expected = True
    world.apply("poison")
    world.apply("web", replicas=2)
    world.apply("tight", replicas=2, resources={"memory": "3Gi"})
    world.run_until(lambda: len(world.ready("web")) == 2 and len(world.ready("tight")) == 2)
    assert world.plans["poison"].pending[0].reasons == ["this service could not be placed: ZeroDivisionError: boom"]


def test_a_fault_of_all_together_is_told_where_each_alone_is_placed(monkeypatch: Any) -> None:
    from mesh.scheduler import placement

    def together(requests: list[Request], nodes: list[Node], strategy: str) -> list[Placement | Refusal]:
        if len({request.service for request in requests}) > 1:
            raise ZeroDivisionError("boom")
        return place(requests, nodes, strategy)

    place = placement.place
    monkeypatch.setattr(placement, "place", together)
    world = World(2)
    world.faults_expected = True
    world.apply("web", replicas=2)
    world.apply("db")
    outcome = world.reconcile()
    assert outcome.faults == ("each service was placed alone, as all together could not be: ZeroDivisionError: boom",)
    world.settle()


def test_nor_one_whose_decision_cannot_be_finished(monkeypatch: Any) -> None:
    from mesh.scheduler import releases

    def poisoned(plan: ServicePlan, in_use: Collection[int]) -> ServicePlan:
        if plan.service == "poison":
            raise RecursionError("boom")
        return prune(plan, in_use)

    prune = releases.prune
    monkeypatch.setattr(releases, "prune", poisoned)
    world = World(2)
    world.faults_expected = True
    world.apply("poison")
    world.apply("web", replicas=2)
    world.run_until(lambda: len(world.ready("web")) == 2)
    assert not world.running("poison")
    assert "stays as it is: RecursionError: boom" in world.plans["poison"].errors[0]
    monkeypatch.undo()
    world.settle()
