"""What the scheduler makes of a wish: placing, replacing, scaling, deleting, and saying why not."""

from typing import Any

import msgspec
import pytest

from mesh.keys import Keys
from mesh.model import Capacity, ClusterConfig, ReplicaState, Want
from mesh.scheduler.reconcile import reconcile
from mesh.view import View
from tests.scheduler.world import GI, Behaviour, World

HTTP = {"http": {"port": 80, "protocol": "http"}}


def settled(world: World, **spec: Any) -> World:
    world.apply(**spec)
    world.settle()
    return world


# ── placing ──────────────────────────────────────────────────────────────────────────────────


def test_a_wish_becomes_replicas_spread_over_the_nodes() -> None:
    world = settled(World(3), replicas=6, ports=HTTP)
    plan = world.plans["web"]
    assert world.spread() == {"n1": 2, "n2": 2, "n3": 2}
    assert [report.slot for report in world.running()] == [1, 2, 3, 4, 5, 6]
    assert (plan.vip, plan.desired, plan.ports["http"].port) == ("10.96.0.1", 6, 80)
    assert plan.releases[0].good
    assert plan.spec_index == world.wishes["web"].index


def test_asked_again_it_changes_nothing() -> None:
    world = World(3)
    world.apply(replicas=5, ports=HTTP)
    world.apply("db", replicas=1, volumes={"data": {"path": "/data"}})
    world.apply("agent", kind="global")
    world.apply("huge", resources={"memory": "900Gi"})
    world.apply("broken", replicas="many")
    for _ in range(40):
        world.reconcile()
        assert world.reconcile().changes == 0, world.story()
        world.run(0.1)


def test_ids_are_labels_of_service_slot_and_hex() -> None:
    world = settled(World(1), replicas=2)
    assert world.ready() == ["web-1-0000", "web-2-0001"]


def test_every_service_has_a_virtual_ip_of_its_own_for_life() -> None:
    world = World(2)
    for name in ("a", "b", "c"):
        world.apply(name)
    world.settle()
    before = {name: plan.vip for name, plan in world.plans.items()}
    assert len(set(before.values())) == 3
    world.delete("a")
    world.settle()
    world.apply("d")
    world.settle()
    assert world.plans["d"].vip == before["a"]
    assert {name: world.plans[name].vip for name in "bc"} == {name: before[name] for name in "bc"}


def test_without_a_free_virtual_ip_a_new_service_waits_and_says_so() -> None:
    world = World(1)
    world.config = ClusterConfig(vip_range="10.96.0.0/30")
    for name in ("a", "b", "c"):
        world.apply(name)
    world.run(5)
    assert [plan.vip for plan in world.plans.values()] == ["10.96.0.1", "10.96.0.2", ""]
    assert "widen vip_range" in world.plans["c"].pending[0].reasons[0]
    assert not world.running("c")


def test_what_has_no_room_is_pending_with_a_reason_and_placed_when_there_is_room() -> None:
    world = World(2)
    world.apply(replicas=3, resources={"memory": "3Gi"})
    world.run(5)
    assert [pending.slot for pending in world.plans["web"].pending] == [3]
    assert world.plans["web"].pending[0].reasons == ["2 nodes (n1, n2): needs 3Gi memory, 1Gi free"]
    assert sum("pending: slot 3" in event for event in world.events()) == 1
    world.nodes["n2"].capacity = Capacity(cpu=4000, memory=8 * GI)
    world.run(0.1)
    world.settle()
    assert not world.plans["web"].pending


def test_a_replica_that_still_drains_keeps_its_room() -> None:
    world = World(1)
    world.apply("old", resources={"memory": "3Gi"}, stop={"drain": "5s"})
    world.settle()
    world.delete("old")
    world.apply("new", resources={"memory": "3Gi"})
    world.run_until(lambda: len(world.ready("new")) == 1)  # `check` has watched the capacity


def test_constraints_hold() -> None:
    world = World(3)
    world.nodes["n2"].labels = {"zone": "eu-1"}
    world.set_node("n3", zone="eu-1")
    settled(world, replicas=4, placement={"constraints": ["zone == eu-1"]})
    assert world.spread() == {"n2": 2, "n3": 2}


def test_no_nodes_is_a_reason_too() -> None:
    world = World(0)
    world.apply()
    world.run(1)
    assert world.plans["web"].pending[0].reasons == ["there are no nodes"]


def test_a_node_that_cannot_run_it_says_so() -> None:
    world = World(1)
    world.nodes["n1"].runtime = "process"
    world.apply()
    world.run(1)
    assert world.plans["web"].pending[0].reasons == ["n1: runs processes, which need a command"]


def test_a_process_joins_no_network() -> None:
    world = World(1)
    world.nodes["n1"].runtime = "process"
    world.apply(command=["web"], network="shop")
    world.run(1)
    assert world.plans["web"].pending[0].reasons == ["n1: runs processes, which join no network such as shop"]


def test_a_plan_that_would_outgrow_one_value_of_the_store_is_not_made() -> None:
    world = World(1)
    world.nodes["n1"].capacity = Capacity(cpu=10**9, memory=10**15)
    for number in range(12):
        world.apply(f"big{number}", env={"TEXT": "x" * 50_000})
    world.run(5)
    waiting = [plan for plan in world.plans.values() if plan.pending]
    assert len(waiting) == 6
    assert all("would exceed 340 KiB" in plan.pending[0].reasons[0] for plan in waiting)


# ── what operators get wrong ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"replicas": -1}, "replicas"),
        ({"replicaz": 1}, "unknown field"),
        ({"placement": {"constraints": ["zone ~ eu"]}}, "placement.constraints.0"),
        ({"kind": "cron", "schedule": {"cron": "0 0 31 2 *"}}, "February has no day 31"),
        ({"env": {"TEXT": "x" * 70_000}}, "use files"),
    ],
)
def test_a_broken_spec_changes_nothing_that_runs(spec: dict[str, Any], error: str) -> None:
    world = settled(World(2), replicas=2)
    before = world.ready()
    world.apply(image="web:2", **spec)
    world.run(30)
    plan = world.plans["web"]
    assert error in plan.errors[0]
    assert world.ready() == before
    assert (plan.desired, len(plan.releases)) == (2, 1)
    assert any("refused the spec" in event for event in world.events())
    world.apply(image="web:2", replicas=2)
    world.settle()
    assert not world.plans["web"].errors
    assert {report.release for report in world.running()} == {2}


def test_a_spec_that_was_never_good_says_what_is_wrong() -> None:
    world = World(1)
    world.apply(replicas=-1)
    world.run(1)
    assert world.plans["web"].errors
    assert (world.plans["web"].vip, world.plans["web"].releases) == ("", [])


def test_while_the_spec_is_broken_replicas_are_still_replaced_and_scaled() -> None:
    world = settled(World(2), replicas=2)
    world.apply(image=7)
    world.run(1)
    world.crash(world.ready()[0])
    world.rescale("web", 3)
    world.run_until(lambda: len(world.ready()) == 3)


def test_one_poisonous_service_does_not_stop_the_others() -> None:
    """A release in the store that this version cannot read, as a newer one might have written it."""
    world = settled(World(2), name="poison", replicas=1)
    plan = world.plans["poison"]
    release = msgspec.structs.replace(plan.releases[0], hash="unseen", spec={"resources": {"cpu": "nonsense"}})
    world.plans["poison"] = msgspec.structs.replace(plan, releases=[release])
    world.apply("web", replicas=2)
    outcome = reconcile(world.view(), world.now, world.new_id, world.memory)
    assert len(outcome.faults) == 1
    assert "stays as it is" in outcome.services["poison"].errors[0]
    assert not outcome.removed_services
    replicas = [one for plan in outcome.nodes.values() for one in plan.replicas]
    assert sorted(one.service for one in replicas) == ["poison", "web", "web"]
    assert all(one.want is Want.RUN for one in replicas)


def test_a_plan_of_a_newer_version_is_left_alone() -> None:
    world = settled(World(2), replicas=2)
    view = world.view()
    keys = Keys()
    plans = {name: plan for name, plan in view.plans.items() if name != "web"}
    newer = View(
        index=view.index, wishes=view.wishes, plans=plans, node_plans=view.node_plans, nodes=view.nodes,
        unreadable=frozenset({keys.service_plan("web")}),
    )  # fmt: skip
    assert reconcile(newer, world.now, lambda: "beef", world.memory).changes == 0


def test_an_unreadable_node_plan_stops_all_decisions() -> None:
    world = settled(World(2), replicas=2)
    view = world.view()
    plans = {name: plan for name, plan in view.node_plans.items() if name != "n1"}
    blind = View(
        index=view.index, wishes=view.wishes, plans=view.plans, node_plans=plans, nodes=view.nodes,
        unreadable=frozenset({Keys().node_plan("n1")}),
    )  # fmt: skip
    outcome = reconcile(blind, world.now, lambda: "beef", world.memory)
    assert outcome.changes == 0
    assert "n1" in outcome.frozen


def test_a_node_whose_report_cannot_be_read_is_not_given_up() -> None:
    world = settled(World(2), replicas=2)
    view = world.view()
    nodes = {name: node for name, node in view.nodes.items() if name != "n1"}
    newer = View(
        index=view.index, wishes=view.wishes, plans=view.plans, node_plans=view.node_plans, nodes=nodes,
        unreadable=frozenset({Keys().node_report("n1")}),
    )  # fmt: skip
    memory = world.memory
    for later in range(0, 100, 5):
        outcome = reconcile(newer, world.now + later, lambda: "beef", memory)
        memory = outcome.memory
        assert not outcome.nodes


# ── replacing ────────────────────────────────────────────────────────────────────────────────


def test_a_killed_replica_is_replaced_at_once_in_its_slot_on_another_node() -> None:
    world = settled(World(2), replicas=2)
    world.run(30)
    victim = world.ready()[0]
    node = world.node_of(victim)
    world.crash(victim, oom=True)
    assert world.run_until(lambda: len(world.ready()) == 2) < 1
    assert [report.slot for report in world.running()] == [1, 2]
    assert world.node_of(world.ready()[0]) != node
    assert any("failed: web-1-0000 on n1 (out of memory: exit 137)" in event for event in world.events())
    assert world.plans["web"].events[-1].cause == "web-1-0000 failed"
    assert (world.plans["web"].slots["1"].node, world.plans["web"].slots["1"].why) == ("n1", "out of memory: exit 137")


def test_a_crash_loop_backs_off() -> None:
    world = World(1)
    world.behave["web:1"] = Behaviour(ready_after=None, crash_after=0.2)
    world.apply()
    world.run(300)
    state = world.plans["web"].slots["1"]
    assert 8 <= state.failures <= 11
    world.run_until(lambda: bool(world.plans["web"].pending))
    [waits] = world.plans["web"].pending
    assert "times, last on n1 (exit 137)" in waits.reasons[0]
    world.behave["web:1"] = Behaviour()
    world.settle()
    world.run(700)
    assert not world.plans["web"].slots


def test_a_replica_that_is_not_ready_is_not_replaced() -> None:
    world = settled(World(1), replicas=1)
    id = world.ready()[0]
    world.set_ready(id, False)
    world.run(600)
    assert [report.id for report in world.running()] == [id]


# ── scaling and deleting ─────────────────────────────────────────────────────────────────────


def test_scaling_makes_no_release() -> None:
    world = settled(World(3), replicas=5)
    kept = world.ready()
    world.apply(replicas=2)
    world.settle()
    assert set(world.ready()) < set(kept)
    assert len(world.plans["web"].releases) == 1
    assert "scaled from 5 to 2" in world.events()


def test_new_replicas_take_the_lowest_free_slots() -> None:
    world = settled(World(1), replicas=4)
    for id in world.ready()[1:3]:
        world.set_ready(id, False)
    world.run(1)
    world.rescale("web", 2)
    world.settle()
    assert [report.slot for report in world.running()] == [1, 4]
    assert world.plans["web"].seats == "1,4"
    world.crash(world.ready()[1])
    world.settle()
    assert [report.slot for report in world.running()] == [1, 4], "a slot stays with its service"
    world.rescale("web", 3)
    world.settle()
    assert [report.slot for report in world.running()] == [1, 2, 4]
    world.rescale("web", 5)
    world.settle()
    assert [report.slot for report in world.running()] == [1, 2, 3, 4, 5]
    assert world.plans["web"].seats == ""


def test_those_on_drained_nodes_go_first_then_those_that_are_not_ready() -> None:
    world = settled(World(3), replicas=3)
    unready = world.ready()[0]
    world.set_ready(unready, False)
    world.run(1)
    world.rescale("web", 2)
    world.settle()
    assert unready not in world.ready()
    first, second = world.ready()
    world.set_node(world.node_of(second), "drain")
    world.rescale("web", 1)
    world.settle()
    assert world.ready() == [first]


def test_the_last_ready_one_in_a_zone_stays_and_the_emptiest_node_is_left() -> None:
    world = World(4)
    for number, zone in enumerate(("a", "a", "a", "b"), start=1):
        world.nodes[f"n{number}"].labels = {"zone": zone}
    settled(world, replicas=4)
    world.apply("other", replicas=1, resources={"cpu": 1}, placement={"constraints": ["name == n1"]})
    world.apply("more", replicas=1, resources={"cpu": 1}, placement={"constraints": ["name == n3"]})
    world.settle()
    world.rescale("web", 3)
    world.settle()
    assert world.spread() == {"n1": 1, "n3": 1, "n4": 1}
    world.rescale("web", 2)
    world.settle()
    assert "n4" in world.spread()


def test_scaling_down_keeps_a_surplus_replica_until_those_that_remain_are_ready() -> None:
    world = settled(World(2), replicas=2)
    first, second = world.ready()
    world.set_ready(first, False)
    world.set_node(world.node_of(second), "pause")
    world.run(1)
    world.set_node(world.node_of(second), "drain")
    world.rescale("web", 1)
    world.run(5)
    assert [report.id for report in world.running()] == [first, second]
    world.set_ready(first, True)
    world.run(5)
    assert world.ready() == [first]


def test_the_scale_key_wins_over_the_spec() -> None:
    world = settled(World(2), replicas=1)
    world.rescale("web", 4)
    world.run_until(lambda: len(world.ready()) == 4)
    assert {event.cause for event in world.plans["web"].events if "web-4" in event.text} == {"scale=4"}
    world.apply(replicas=2)
    world.run(5)
    assert len(world.ready()) == 4
    world.rescale("web", None)
    world.settle()
    assert len(world.ready()) == 2
    world.rescale("web", 0)
    world.settle()
    assert world.running() == []


def test_a_deleted_service_is_stopped_and_then_forgotten() -> None:
    world = settled(World(2), replicas=3)
    world.delete("web")
    world.run(0.05)
    assert world.plans["web"].deleted
    world.run_until(lambda: not world.plans)
    assert not world.running()
    assert all(not plan.replicas for plan in world.node_plans.values())


def test_a_service_that_comes_back_while_it_is_deleted_lives_on() -> None:
    world = settled(World(2), replicas=2)
    wish = world.wishes["web"]
    world.delete("web")
    world.run(0.05)
    world.wishes["web"] = wish
    world.run(0.05)
    world.settle()
    assert len(world.ready()) == 2
    assert not world.plans["web"].deleted


def test_events_are_bounded() -> None:
    world = settled(World(2), replicas=1)
    for count in range(120):
        world.rescale("web", 1 + count % 2)
        world.run(1)
    assert len(world.plans["web"].events) == 50


# ── kinds, ports, volumes ────────────────────────────────────────────────────────────────────


def test_a_global_service_has_one_replica_on_every_eligible_node() -> None:
    world = World(3)
    world.nodes["n3"].labels = {"role": "edge"}
    settled(world, kind="global", placement={"constraints": ["role != edge"]})
    assert [report.slot for report in world.running()] == ["n1", "n2"]
    world.nodes["n4"] = type(world.nodes["n1"])("n4")
    world.run(0.1)
    world.rescale("web", None)
    world.settle()
    assert world.spread() == {"n1": 1, "n2": 1, "n4": 1}
    world.set_node("n1", "drain")
    world.settle()
    assert world.spread() == {"n2": 1, "n4": 1}


def test_a_paused_node_keeps_its_global_replica_and_gets_none() -> None:
    world = settled(World(2), kind="global")
    world.set_node("n1", "pause")
    world.set_node("n2", "pause")
    world.apply("other", kind="global")
    world.run(5)
    assert world.spread() == {"n1": 1, "n2": 1}
    assert world.spread("other") == {}


def test_a_static_port_is_stopped_before_its_successor_starts() -> None:
    world = settled(World(1), ports={"db": {"port": 5432, "host_port": 5432}})
    world.apply(image="web:2", ports={"db": {"port": 5432, "host_port": 5432}})
    world.settle()  # `check` has watched the port
    assert [report.release for report in world.running()] == [2]


def test_a_volume_pins_its_slot_to_its_node() -> None:
    world = settled(World(3), replicas=2, volumes={"data": {"path": "/data"}})
    homes = {report.slot: world.node_of(report.id) for report in world.running()}
    world.crash(world.ready()[0])
    world.run(30)
    world.apply(image="web:2", replicas=2, volumes={"data": {"path": "/data"}})
    world.settle()
    assert {report.slot: world.node_of(report.id) for report in world.running()} == homes
    world.lose(homes[1])
    world.run(60)
    assert f"{homes[1]}: does not answer" in world.plans["web"].pending[0].reasons
    world.bring_back(homes[1])
    world.settle()
    assert {report.slot: world.node_of(report.id) for report in world.running()} == homes


# ── data plane ───────────────────────────────────────────────────────────────────────────────


def test_during_a_rollout_the_ports_of_both_releases_are_published() -> None:
    world = settled(World(2), replicas=2, ports={"http": {"port": 80}, "old": {"port": 90}})
    world.apply(image="web:2", replicas=2, ports={"http": {"port": 81}, "new": {"port": 91}}, ttl="9s")
    world.run(0.5)
    plan = world.plans["web"]
    assert {name: port.port for name, port in plan.ports.items()} == {"http": 80, "old": 90, "new": 91}
    assert plan.ttl == 5
    world.settle()
    plan = world.plans["web"]
    assert {name: port.port for name, port in plan.ports.items()} == {"http": 81, "new": 91}
    assert plan.ttl == 9


def test_states_that_an_agent_reports_are_never_more_than_the_plan_asked() -> None:
    world = settled(World(2), replicas=2)
    planned = {one.id for plan in world.node_plans.values() for one in plan.replicas}
    alive = {report.id for report in world.running() if report.state is ReplicaState.READY}
    assert alive == planned


# ── what nodes get wrong ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("capacity", "sentence"),
    [
        (Capacity(cpu=-100, memory=GI), "n1: reports what cannot be: cpu -100"),
        (Capacity(cpu=10**15, memory=-1), "n1: reports what cannot be: cpu 1000000000000000, memory -1"),
        (Capacity(cpu=1000, memory=GI, resources={"gpu": -2}), "n1: reports what cannot be: gpu -2"),
        (Capacity(), "n1: needs 100m cpu, 0 free"),
    ],
)
def test_a_node_that_reports_nonsense_gets_nothing_and_stops_nobody(capacity: Capacity, sentence: str) -> None:
    world = World(2)
    world.nodes["n1"].capacity = capacity
    world.apply("web", replicas=2)
    world.apply("here", placement={"constraints": ["name == n1"]})
    world.run(5)
    assert world.spread("web") == {"n2": 2}
    assert sentence in world.plans["here"].pending[0].reasons


def test_what_a_node_keeps_for_itself_is_not_given_away() -> None:
    world = World(1)
    world.nodes["n1"].reserved = Capacity(cpu=1000, memory=GI)
    world.apply(resources={"cpu": "3500m"})
    world.run(1)
    assert world.plans["web"].pending[0].reasons == ["n1: needs 3500m cpu, 3 free"]


def test_ten_thousand_replicas_for_one_node_fill_it_and_say_what_waits() -> None:
    world = World(1)
    world.nodes["n1"].capacity = Capacity(cpu=4000, memory=400 * GI)
    world.apply(replicas=10_000)
    world.settled = lambda: len(world.ready()) == 40  # type: ignore[method-assign]
    world.settle()
    plan = world.plans["web"]
    assert len(plan.pending) == 50
    assert plan.pending[0].reasons == ["n1: needs 100m cpu, 0 free"]
