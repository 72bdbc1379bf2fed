"""Nodes as direct probes show them, beside what their sessions say."""

from typing import Any

import msgspec
import pytest

from mesh.hearing import PACES, Sight, Sign
from mesh.model import NodeSettings
from mesh.scheduler.hosts import UP_GRACE, Hearing
from tests.scheduler.world import World


def running(nodes: int = 3, replicas: int = 3, **spec: Any) -> World:
    world = World(nodes)
    world.apply(replicas=replicas, **spec)
    hear(world)
    world.settle()
    return world


def hear(world: World, pace: str = "normal", **signs: Sign) -> None:
    """From now on every node gives its sign; it answers where none is given."""
    sights = {name: Sight(signs.get(name, Sign.ANSWERS), world.now if name in signs else 0.0) for name in world.nodes}
    world.hearing = Hearing(sights, PACES[pace])
    world._dirty = True


def state(world: World, node: str) -> str:
    doubt = world.cluster.nodes.get(node)
    return doubt.state if doubt else ""


@pytest.mark.parametrize(("pace", "gives_up"), [("normal", 3.6), ("fast", 1.6)])
@pytest.mark.parametrize("sign", [Sign.SILENT, Sign.DEAF])
def test_silence_counts_though_the_session_lives(sign: Sign, pace: str, gives_up: float) -> None:
    world = running()
    hear(world, pace, n1=sign)
    world.run(gives_up - 0.1)
    assert world.spread()["n1"] == 1
    assert state(world, "n1") == "suspected"
    world.run(0.2)
    assert "n1" not in world.spread()
    assert world.node_plans["n1"].lost
    assert world.cluster.has_lost("n1")


def test_a_silence_that_ends_in_time_moves_nothing() -> None:
    world = running()
    before = world.ready()
    hear(world, n1=Sign.SILENT)
    world.run(3.5)
    hear(world)
    world.run(30)
    assert world.ready() == before
    assert not world.cluster.nodes


def test_the_end_of_a_session_says_nothing_of_a_node_that_answers() -> None:
    world = running()
    before = world.ready()
    world.nodes["n1"].held = False
    world._dirty = True
    world.run(300)
    assert world.ready() == before
    assert "is cut off from the store" in world.cluster.nodes["n1"].why
    world.rescale("web", 9)
    world.run(5)
    assert world.spread()["n1"] == 1, "it gets nothing new"


@pytest.mark.parametrize("sign", [Sign.REFUSES, Sign.ACCEPTS])
def test_a_host_whose_kernel_answers_is_waited_for(sign: Sign) -> None:
    world = running()
    hear(world, n1=sign)
    world.run(200)
    assert world.spread()["n1"] == 1, "its session lives"
    hear(world, n1=sign)
    world.nodes["n1"].held = False
    world.run(UP_GRACE - 1)
    assert world.spread()["n1"] == 1
    world.run(2)
    assert "n1" not in world.spread()


def test_an_agent_that_restarts_is_no_reason_to_suspect_its_node() -> None:
    world = running()
    hear(world, n1=Sign.REFUSES)
    world.run(5)
    assert state(world, "n1") == "degraded"
    assert not world.plans["web"].pending


def test_a_lost_node_stays_out_of_tables_until_it_has_stopped_what_was_replaced() -> None:
    world = running()
    hear(world, n1=Sign.SILENT)
    world.nodes["n1"].up = False  # it hears of nothing
    world.run(10)
    world.nodes["n1"].up = True
    hear(world)
    world.run(0.005)
    assert world.cluster.has_lost("n1")
    assert "is back" in world.cluster.nodes["n1"].why
    world._act(world.nodes["n1"])
    world.settle()
    world.run(1)
    assert not world.cluster.nodes
    assert len(world.running()) == 3
    assert world.cluster.returned == {"n1": world._seen["n1"].index}, "older reports of it count for nothing"
    hear(world, n1=Sign.SILENT)
    world.run(10)
    assert not world.cluster.returned


def test_a_brake_is_said_and_let_go_by_a_confirmed_loss() -> None:
    world = running(3, 6)
    hear(world, n1=Sign.SILENT, n2=Sign.SILENT)
    world.run(60)
    assert world.spread() == {"n1": 2, "n2": 2, "n3": 2}
    assert world.cluster.frozen == "replacement is frozen: 2 of 3 nodes vanished together (n1, n2)"
    world.settings["n1"] = NodeSettings(lost=world.index)
    world._dirty = True
    world.run(0.1)
    assert "n1" not in world.spread()
    assert not world.cluster.frozen, "one of two is left"
    world.run(10)
    assert world.spread() == {"n3": 6}


def test_a_confirmed_loss_means_one_life_of_the_node() -> None:
    world = running()
    world.settings["n1"] = NodeSettings(lost=world.index - 1)
    hear(world, n1=Sign.SILENT)
    world.run(3)
    assert world.spread()["n1"] == 1


def test_a_singleton_is_not_begun_elsewhere_before_its_node_s_session_is_over() -> None:
    world = running(replicas=1, singleton=True)
    (home,) = world.spread()
    hear(world, **{home: Sign.SILENT})
    world.run(19)
    assert world.spread() == {home: 1}
    world.nodes[home].held = False
    world._dirty = True
    world.run(4)
    assert world.spread() == {home: 1}
    world.run(2)
    assert home not in world.spread()


@pytest.mark.parametrize("sign", [Sign.REFUSES, Sign.ACCEPTS])
def test_a_singleton_that_nobody_would_stop_is_not_begun_elsewhere_before_its_loss_is_confirmed(sign: Sign) -> None:
    world = running(replicas=1, singleton=True)
    (home,) = world.spread()
    hear(world, **{home: sign})
    world.nodes[home].held = False
    world.run(UP_GRACE + 300)
    assert world.spread() == {home: 1}
    assert world.cluster.nodes[home].why.endswith(f"if it is gone: mesh confirm-loss {home}")
    world.settings[home] = NodeSettings(lost=world._seen[home].index)
    world._dirty = True
    world.run(2)
    assert home not in world.spread()


def test_lost_packets_are_shown_and_move_nothing() -> None:
    world = running()
    before = world.ready()
    hear(world)
    world.hearing = Hearing({**world.hearing.sights, "n1": Sight(Sign.ANSWERS, lossy=True)})
    world.run(60)
    assert world.ready() == before
    assert "drops packets" in world.cluster.nodes["n1"].why
    assert msgspec.json.encode(world.cluster)
