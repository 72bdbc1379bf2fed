"""Nodes that fall silent: suspected, given up after a grace, brought back; and the brake."""

from typing import Any

from mesh.model import Want
from tests.scheduler.world import World


def running(nodes: int = 3, replicas: int = 3, **spec: Any) -> World:
    world = World(nodes)
    world.apply(replicas=replicas, **spec)
    world.settle()
    return world


def test_a_silent_node_is_given_up_after_the_grace_and_replaced() -> None:
    world = running()
    world.lose("n1")
    world.run(4.9)
    assert world.spread() == {"n1": 1, "n2": 1, "n3": 1}
    assert world.plans["web"].pending[0].reasons == ["n1 does not answer, is given up after 5s"]
    world.run(0.2)
    assert "n1" not in world.spread()
    assert world.node_plans["n1"].lost
    world.settle()
    assert "lost: web-1-0000 on n1" in world.events()
    assert any(event.cause == "n1 lost" and "placed" in event.text for event in world.plans["web"].events)


def test_a_blip_moves_nothing() -> None:
    world = running()
    before = world.ready()
    world.lose("n1", kill=False)
    world.run(3)
    world.bring_back("n1")
    world.run(30)
    assert world.ready() == before


def test_a_node_that_returns_stops_its_old_replicas_and_gets_work_again() -> None:
    world = running()
    old = next(id for id in world.ready() if world.node_of(id) == "n1")
    world.lose("n1", kill=False)
    world.run(20)
    world.bring_back("n1")
    world.settle()
    assert old not in [report.id for report in world.running()]
    assert not world.node_plans["n1"].lost
    world.run(1)
    world.rescale("web", 6)
    world.settle()
    assert world.spread()["n1"] >= 1


def test_room_that_an_old_replica_still_holds_is_not_given_away() -> None:
    world = running(2, 2, resources={"memory": "3Gi"})
    world.lose("n1", kill=False)
    world.run(20)
    assert world.plans["web"].pending[0].slot == 1
    world.bring_back("n1")
    world.run(0.05)
    assert "n1: still stops web-1-0000" in world.plans["web"].pending[0].reasons
    world.settle()  # `check` has watched the capacity


def test_a_new_leader_watches_for_the_whole_grace_itself() -> None:
    world = running()
    world.lose("n1")
    for _ in range(5):
        world.run(4)
        world.change_leader()
    assert world.spread()["n1"] == 1
    world.run(6)
    assert "n1" not in world.spread()


def test_a_node_that_was_given_up_stays_so_under_a_new_leader() -> None:
    world = running()
    world.lose("n1")
    world.run(6)
    world.change_leader()
    world.run(0.1)
    assert world.node_plans["n1"].lost
    assert "n1" not in world.spread()


def test_if_more_than_half_vanish_together_nothing_is_replaced_and_it_says_so() -> None:
    world = running(3, 6)
    world.lose("n1", kill=False)
    world.lose("n2", kill=False)
    world.run(600)
    assert world.spread() == {"n1": 2, "n2": 2, "n3": 2}
    assert world.last.frozen == "replacement is frozen: 2 of 3 nodes vanished together (n1, n2)"
    assert world.plans["web"].pending[0].reasons == [world.last.frozen]
    world.bring_back("n1")
    world.run(4)
    assert not world.last.frozen
    assert world.spread() == {"n1": 2, "n2": 2, "n3": 2}, "the others have the whole grace again"
    world.run(2)
    assert "n2" not in world.spread()
    world.bring_back("n2")
    world.settle()


def test_the_store_is_back_after_an_outage_and_nodes_return_one_by_one() -> None:
    """Every session is over, and so is the leader's."""
    nodes = ["n1", "n2", "n3", "n4", "n5"]
    world = running(len(nodes), 10)
    before = world.ready()
    for node in nodes:
        world.lose(node, kill=False)
    world.change_leader()
    world.run(60)
    assert world.last.frozen == "replacement is frozen: no node answers (n1, n2, n3, n4, n5)"
    for node in nodes:
        world.bring_back(node)
        world.run(2)
    assert not world.last.frozen
    world.settle()
    assert world.ready() == before


def test_nodes_may_be_lost_one_after_the_other_down_to_the_last() -> None:
    world = running(4, 4)
    for node in ("n1", "n2", "n3"):
        world.lose(node)
        world.run(10)
        world.settle()
    assert world.spread() == {"n4": 4}


def test_one_of_two_nodes_may_be_lost() -> None:
    world = running(2, 2)
    world.lose("n2")
    world.run(10)
    world.settle()
    assert world.spread() == {"n1": 2}


def test_the_only_node_is_waited_for_and_keeps_what_it_runs() -> None:
    world = running(1, 2)
    before = world.ready()
    world.lose("n1", kill=False)
    world.run(600)
    assert world.plans["web"].pending[0].reasons == ["replacement is frozen: no node answers (n1)"]
    world.bring_back("n1")
    world.settle()
    assert world.ready() == before


def test_a_node_whose_document_was_removed_is_given_up_and_forgotten() -> None:
    world = running(3)
    world.lose("n1")
    world.nodes["n1"].forgotten = True
    world.run(10)
    world.settle()
    assert "n1" not in world.node_plans


def test_drained_nodes_that_leave_do_not_pull_the_brake() -> None:
    world = running(3, 3)
    for node in ("n1", "n2"):
        world.set_node(node, "drain")
    world.settle()
    world.run_until(lambda: world.spread() == {"n3": 3})
    world.lose("n1")
    world.lose("n2")
    world.run(10)
    assert not world.last.frozen


def test_a_replica_on_a_silent_node_can_still_be_told_to_stop() -> None:
    world = running(3, 3)
    world.lose("n3", kill=False)
    world.run(1)
    world.rescale("web", 2)
    world.run(1)
    assert all(one.want is Want.STOP for one in world.node_plans["n3"].replicas)
    world.bring_back("n3")
    world.settle()
