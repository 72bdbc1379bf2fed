"""The end state, sentence by sentence: each test is a small cluster as a file would describe it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.cli.cluster_file import cluster_of
from mesh.cli.forecasts import forecast_json, warnings
from mesh.scheduler.forecast.end_state import forecast

MI = 2**20


@dataclass
class Answer:
    """What `mesh simulate --json` says of a cluster."""

    json: dict[str, Any]

    @property
    def placed(self) -> set[tuple[str, object, str]]:
        return {(one["service"], one["slot"], one["node"]) for one in self.json["placements"]}

    @property
    def places(self) -> dict[object, str]:
        """The node of each new slot, for clusters with one service."""
        return {one["slot"]: one["node"] for one in self.json["placements"]}

    @property
    def stopped(self) -> set[tuple[str, object, str]]:
        return {(one["service"], one["slot"], one["node"]) for one in self.json["stops"]}

    @property
    def why(self) -> dict[tuple[str, object], str]:
        return {(one["service"], one["slot"]): one["why"] for one in self.json["stops"]}

    @property
    def pending(self) -> dict[str, list[object]]:
        slots: dict[str, list[object]] = {}
        for one in self.json["pending"]:
            slots.setdefault(one["service"], []).extend(one["slots"])
        return slots

    @property
    def reasons(self) -> dict[str, str]:
        return dict(self.json["pending"][0]["reasons"])


def ask(nodes: Any, services: Any, replicas: Any = (), lose: Any = (), **more: Any) -> Answer:
    cluster = cluster_of({"nodes": nodes, "services": services, "replicas": list(replicas), **more})
    cluster = cluster.without(lose)
    return Answer(forecast_json(cluster, forecast(cluster), warnings(cluster)))


def nodes(count: int, cpu: object = 4, **fields: Any) -> dict[str, Any]:
    return {f"n{number}": {"cpu": cpu, "memory": "8Gi", **fields} for number in range(1, count + 1)}


def web(replicas: int = 1, cpu: object = 1, **fields: Any) -> dict[str, Any]:
    return {"image": "web:1", "replicas": replicas, "resources": {"cpu": cpu}, **fields}


def on(node: str, slot: object = 1, service: str = "web", **fields: Any) -> dict[str, Any]:
    return {"service": service, "slot": slot, "node": node, "release": 1, "state": "ready", **fields}


NOTHING: tuple[set[Any], set[Any], dict[str, Any]] = (set(), set(), {})


def quiet(answer: Answer) -> bool:
    return (answer.placed, answer.stopped, answer.pending) == NOTHING


# ── what holds a slot, and what holds room ───────────────────────────────────────────────────


@pytest.mark.parametrize("state", ["assigned", "pulling", "starting", "running", "ready"])
def test_what_lives_holds_its_slot_and_its_room(state: str) -> None:
    answer = ask(nodes(1), {"web": web(1)}, [on("n1", state=state)])
    assert quiet(answer)
    assert answer.json["nodes"]["n1"]["cpu_free"] == 3000


@pytest.mark.parametrize("state", ["stopped", "failed", "lost"])
def test_what_has_ended_holds_nothing(state: str) -> None:
    answer = ask(nodes(1, cpu=1), {"web": web(1)}, [on("n1", state=state)])
    assert answer.placed == {("web", 1, "n1")}
    assert not answer.stopped


def test_what_drains_holds_its_room_but_not_its_slot() -> None:
    answer = ask(nodes(1, cpu=1), {"web": web(1)}, [on("n1", state="draining")])
    assert answer.pending == {"web": [1]}
    assert answer.reasons == {"n1": "needs 1 cpu, 0 free"}
    assert ask(nodes(2, cpu=1), {"web": web(1)}, [on("n1", state="draining")]).places == {1: "n2"}


def test_new_replicas_take_the_lowest_free_slots() -> None:
    assert set(ask(nodes(2), {"web": web(4)}, [on("n1", 1), on("n2", 3)]).places) == {2, 4}
    assert set(ask(nodes(2), {"web": web(3)}, [on("n1", 2), on("n2", 7)]).places) == {1}


@pytest.mark.parametrize(("replicas", "count"), [(0, 0), (1, 2), (3, 3), (9, 5)])
def test_a_service_that_scales_stays_within_its_bounds(replicas: int, count: int) -> None:
    scale = {"min": 2, "max": 5, "metrics": [{"in_flight": 20}]}
    assert len(ask(nodes(2), {"web": web(replicas, cpu="100m", scale=scale)}).placed) == count


def test_one_of_two_in_a_slot_stays() -> None:
    answer = ask(nodes(2), {"web": web(1)}, [on("n1", release=1), on("n2", release=2, state="starting")])
    assert (answer.placed, answer.stopped) == (set(), {("web", 1, "n1")})


# ── releases ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("release", "outdated"), [({"release": 2}, {2}), ({"release": 1}, {1}), ({}, {2}), ({"release": 3}, {1, 2})]
)
def test_the_current_release_is_the_one_given_or_else_the_highest_seen(
    release: dict[str, int], outdated: set[int]
) -> None:
    replicas = [on("n1", 1, release=2), on("n2", 2, release=1)]
    answer = ask(nodes(2), {"web": web(2, **release)}, replicas)
    assert set(answer.places) == outdated
    assert {slot for _, slot, _ in answer.stopped} == outdated


def test_an_ended_replica_tells_the_release_too() -> None:
    answer = ask(nodes(2), {"web": web(2)}, [on("n1", 1), on("n2", 2, release=2, state="failed")])
    assert answer.stopped == {("web", 1, "n1")}
    assert answer.why["web", 1] == "replaced by release 2"


def test_a_new_release_takes_the_room_of_the_old_one() -> None:
    replicas = [on("n1", 1), on("n2", 2)]
    answer = ask(nodes(2, cpu=1), {"web": web(2, release=2)}, replicas)
    assert answer.places.keys() == {1, 2}
    assert sorted(answer.places.values()) == ["n1", "n2"]
    assert not answer.pending


def test_a_replica_without_a_successor_is_not_stopped() -> None:
    replicas = [on("n1", 1), on("n2", 2), on("n2", 3)]
    services = {"web": web(3, release=2, placement={"constraints": ["name == n1"]})}
    answer = ask(nodes(2, cpu=2), services, replicas)
    assert answer.places == {1: "n1", 2: "n1"}
    assert answer.stopped == {("web", 1, "n1"), ("web", 2, "n2")}
    assert answer.pending == {"web": [3]}


def test_room_that_a_predecessor_keeps_is_not_given_away() -> None:
    services = {"web": web(1, release=2, placement={"constraints": ["name == nowhere"]}), "api": web(1)}
    answer = ask(nodes(1, cpu=1), services, [on("n1")])
    assert not answer.stopped
    assert answer.pending == {"web": [1], "api": [1]}


def test_a_successor_takes_its_predecessors_place_before_others_take_it_in_vain() -> None:
    some = nodes(2, cpu=1)
    some["n2"]["labels"] = {"disk": "ssd"}
    services = {"web": web(2, release=2, placement={"constraints": ["disk == ssd"]})}
    answer = ask(some, services, [on("n1", 1), on("n2", 2)])
    assert (answer.places, answer.stopped) == ({2: "n2"}, {("web", 2, "n2")})
    assert answer.pending == {"web": [1]}


def test_nor_do_more_important_ones_that_may_not_evict() -> None:
    services = {"web": web(1, release=2), "api": web(1, placement={"priority": 59})}
    answer = ask(nodes(1, cpu=1), services, [on("n1")])
    assert answer.placed == {("web", 1, "n1")}
    assert answer.pending == {"api": [1]}


# ── drains, losses, pauses ───────────────────────────────────────────────────────────────────


def drained(count: int, **fields: Any) -> dict[str, Any]:
    """Nodes, of which the first is being drained."""
    found = nodes(count, **fields)
    found["n1"]["availability"] = "drain"
    return found


def test_a_drained_node_is_emptied() -> None:
    answer = ask(drained(3), {"web": web(2)}, [on("n1", 1), on("n2", 2)])
    assert answer.places == {1: "n3"}
    assert answer.stopped == {("web", 1, "n1")}
    assert answer.why["web", 1] == "drain of n1"


def test_what_has_nowhere_to_go_stays_on_a_drained_node() -> None:
    answer = ask(drained(2, cpu=1), {"web": web(2)}, [on("n1", 1), on("n2", 2)])
    assert not answer.stopped
    assert answer.pending == {"web": [1]}
    assert answer.reasons == {"n1": "is draining", "n2": "needs 1 cpu, 0 free"}


def test_a_lost_node_is_emptied_without_stops() -> None:
    answer = ask(nodes(3), {"web": web(2)}, [on("n1", 1), on("n2", 2)], lose=["n1"])
    assert answer.places == {1: "n3"}
    assert not answer.stopped
    assert "n1" not in answer.json["nodes"]


def test_a_replica_on_a_node_that_is_not_there_is_lost() -> None:
    assert ask(nodes(1), {"web": web(1)}, [on("gone")]).places == {1: "n1"}


def test_losing_most_nodes_freezes_nothing() -> None:
    answer = ask(nodes(4), {"web": web(3)}, [on("n1", 1), on("n2", 2), on("n3", 3)], lose=["n1", "n2", "n3"])
    assert answer.places == {1: "n4", 2: "n4", 3: "n4"}


def test_a_paused_node_keeps_what_it_has_and_gets_nothing() -> None:
    paused = nodes(2)
    paused["n1"]["availability"] = "pause"
    answer = ask(paused, {"web": web(3)}, [on("n1", 1)])
    assert answer.places == {2: "n2", 3: "n2"}
    alone = ask({"n1": paused["n1"]}, {"web": web(2)}, [on("n1", 1)])
    assert alone.reasons == {"n1": "is paused"}


def test_a_node_that_failed_this_release_comes_last() -> None:
    failed = [on("n1", 1, state="failed")]
    assert ask(nodes(2), {"web": web(1)}, failed).places == {1: "n2"}
    assert ask(nodes(2), {"web": web(1, release=2)}, failed).places == {1: "n1"}
    assert ask(nodes(1), {"web": web(1)}, failed).places == {1: "n1"}


# ── volumes ──────────────────────────────────────────────────────────────────────────────────

VOLUME = {"volumes": {"data": {"path": "/data"}}}


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_a_volume_pins_a_slot_to_the_node_of_its_last_replica(state: str) -> None:
    answer = ask(nodes(3), {"web": web(2, **VOLUME)}, [on("n3", 2, state=state)])
    assert answer.places[2] == "n3"


def test_the_last_replica_of_a_slot_is_the_one_of_the_newest_release() -> None:
    replicas = [on("n1", 1, release=2, state="stopped"), on("n2", 1, release=1, state="stopped")]
    assert ask(nodes(2), {"web": web(1, **VOLUME)}, replicas).places == {1: "n1"}


def test_the_volume_of_a_lost_node_waits_for_it() -> None:
    answer = ask(nodes(2), {"web": web(1, **VOLUME)}, [on("n1")], lose=["n1"])
    assert answer.pending == {"web": [1]}
    assert "volume" in answer.reasons["n2"]
    assert answer.reasons["n2"] == "its volume is on n1, which is lost"


def test_a_volume_cannot_leave_a_drained_node() -> None:
    answer = ask(drained(2), {"web": web(1, **VOLUME)}, [on("n1")])
    assert not answer.stopped
    assert answer.reasons == {"n1": "is draining; its volume is here", "n2": "its volume is on n1"}


def test_a_new_release_of_a_volume_stays_where_it_is() -> None:
    answer = ask(nodes(3, cpu=1), {"web": web(1, release=2, **VOLUME)}, [on("n2")])
    assert answer.places == {1: "n2"}
    assert answer.stopped == {("web", 1, "n2")}


# ── spread ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("targets", "count", "expected"),
    [
        ({"a": "50%"}, 10, {"a": 5, "others": [1, 2, 2]}),
        ({"a": 60}, 10, {"a": 6, "others": [1, 1, 2]}),
        ({"a": "40%", "b": "20%"}, 5, {"a": 2, "b": 1, "others": [1, 1]}),
        ({"a": "100%"}, 4, {"a": 4, "others": [0, 0, 0]}),
    ],
)
def test_what_targets_name_gets_its_share_and_all_others_share_the_rest_evenly(
    targets: dict[str, Any], count: int, expected: dict[str, Any]
) -> None:
    placement = {"spread": [{"label": "zone", "targets": targets}]}
    answer = ask(zoned(*"abcd", "a"), {"web": web(count, cpu="100m", placement=placement)})
    zones = dict(zip(("n1", "n2", "n3", "n4", "n5"), (*"abcd", "a"), strict=True))
    found = Counter(zones[node] for node in answer.places.values())
    assert {name: found[name] for name in targets} == {name: expected[name] for name in targets}
    assert sorted(found[name] for name in "abcd" if name not in targets) == expected["others"]


# ── scaling down ─────────────────────────────────────────────────────────────────────────────


def zoned(*zones: str, **fields: Any) -> dict[str, Any]:
    return {f"n{number}": {"cpu": 8, "memory": "8Gi", "labels": {"zone": zone}, **fields}
            for number, zone in enumerate(zones, 1)}  # fmt: skip


@pytest.mark.parametrize(
    ("cluster", "replicas", "goes"),
    [
        (drained(3), [on("n1", 1), on("n2", 2, state="running"), on("n3", 3)], 1),
        (nodes(3), [on("n1", 1, state="starting"), on("n2", 2), on("n3", 3)], 1),
        (zoned("a", "b", "b"), [on("n1", 1, since=9), on("n2", 2, since=1), on("n3", 3, since=2)], 3),
        (nodes(2), [on("n1", 1, since=1), on("n1", 2, since=9), on("n2", 3, since=5)], 3),
        (nodes(3), [on("n1", 1, since=5), on("n2", 2, since=9), on("n3", 3, since=1)], 2),
        (nodes(3), [on("n1", 1), on("n2", 2), on("n3", 3)], 3),
    ],
    ids=["on draining nodes", "not ready", "not the last in a zone", "the emptiest node", "newest", "highest"],
)  # fmt: skip
def test_scaling_down_prefers(cluster: dict[str, Any], replicas: list[dict[str, Any]], goes: int) -> None:
    answer = ask(cluster, {"web": web(2)}, replicas)
    assert (answer.placed, {slot for _, slot, _ in answer.stopped}) == (set(), {goes})


def test_scaling_down_leaves_gaps_and_keeps_a_ready_one_in_each_zone() -> None:
    replicas = [on("n1", 1), on("n1", 2), on("n2", 3), on("n3", 4)]
    answer = ask(zoned("a", "b", "b"), {"web": web(2)}, replicas)
    left = {1, 2, 3, 4} - {slot for _, slot, _ in answer.stopped}
    assert len(left & {1, 2}) == len(left & {3, 4}) == 1


def test_scaling_to_nothing_and_taking_a_service_away() -> None:
    assert ask(nodes(1), {"web": web(0)}, [on("n1")]).stopped == {("web", 1, "n1")}
    gone = ask(nodes(1), {}, [on("n1")])
    assert gone.why == {("web", 1): "the service is gone"}


# ── global services ──────────────────────────────────────────────────────────────────────────

EVERYWHERE = {"agent": web(kind="global")}


def agent(node: str, **fields: Any) -> dict[str, Any]:
    return on(node, node, "agent", **fields)


def test_a_global_service_has_one_on_every_eligible_node() -> None:
    some = zoned("a", "b")
    services = {"agent": web(kind="global", placement={"constraints": ["zone == a"]})}
    assert ask(some, services).placed == {("agent", "n1", "n1")}
    assert ask(some, services, [agent("n1"), agent("n2")]).stopped == {("agent", "n2", "n2")}
    full = ask({**some, "n1": {"labels": {"zone": "a"}}}, services)
    assert full.pending == {"agent": ["n1"]}
    assert full.reasons == {"n1": "needs 1 cpu, 0 free"}


def test_a_drain_stops_globals_last() -> None:
    answer = ask(drained(2), {**EVERYWHERE, "web": web(1)}, [agent("n1"), agent("n2"), on("n1")])
    assert answer.stopped == {("agent", "n1", "n1"), ("web", 1, "n1")}
    assert answer.placed == {("web", 1, "n2")}
    stuck = ask(
        drained(2, cpu=2), {**EVERYWHERE, "web": web(2, cpu=1)}, [agent("n1"), agent("n2"), on("n1"), on("n2", 2)]
    )
    assert not stuck.stopped


def test_what_runs_of_a_cron_service_ends_by_itself_but_leaves_a_drained_node() -> None:
    services = {"tidy": web(kind="cron", release=2, schedule={"cron": "0 3 * * *"})}
    assert quiet(ask(nodes(2), services, [on("n1", 1, "tidy")]))
    assert quiet(ask(nodes(2), services))
    assert ask(drained(2), services, [on("n1", 1, "tidy")]).places == {1: "n2"}


def test_a_paused_node_keeps_its_global_replica_and_gets_none() -> None:
    paused = nodes(2)
    paused["n1"]["availability"] = paused["n2"]["availability"] = "pause"
    assert quiet(ask(paused, EVERYWHERE, [agent("n1")]))


# ── priorities ───────────────────────────────────────────────────────────────────────────────


def important(replicas: int = 1, cpu: object = 1, priority: int = 80) -> dict[str, Any]:
    return web(replicas, cpu, placement={"priority": priority})


def test_what_is_evicted_is_placed_again() -> None:
    services = {"db": important(cpu=2, priority=80), "web": web(1, cpu=1)}
    some = {"n1": {"cpu": 2, "labels": {"disk": "ssd"}}, "n2": {"cpu": 1}}
    services["db"]["placement"]["constraints"] = ["disk == ssd"]
    answer = ask(some, services, [on("n1")])
    assert answer.placed == {("db", 1, "n1"), ("web", 1, "n2")}
    assert answer.stopped == {("web", 1, "n1")}
    assert "db" in answer.why["web", 1]


def test_what_is_evicted_waits_where_there_is_no_room() -> None:
    answer = ask(nodes(1, cpu=1), {"db": important(), "web": web(1)}, [on("n1")])
    assert answer.placed == {("db", 1, "n1")}
    assert answer.pending == {"web": [1]}


def test_nobody_is_evicted_for_a_little_more_importance_or_where_it_does_not_help() -> None:
    assert not ask(nodes(1, cpu=1), {"db": important(priority=59), "web": web(1)}, [on("n1")]).stopped
    assert not ask(nodes(1, cpu=1), {"db": important(cpu=2), "web": web(1)}, [on("n1")]).stopped


def test_what_was_evicted_stays_where_another_eviction_made_enough_room() -> None:
    services = {"db": important(3, cpu=2), "web": web(1, cpu=6), "api": important(1, cpu=1, priority=40)}
    answer = ask(nodes(1, cpu=8), services, [on("n1"), on("n1", service="api")])
    assert answer.placed == {("db", slot, "n1") for slot in (1, 2, 3)}
    assert answer.stopped == {("web", 1, "n1")}
    assert answer.pending == {"web": [1]}


def test_what_could_not_come_back_is_not_evicted() -> None:
    answer = ask(nodes(1, cpu=1), {"db": important(), "web": web(1, unknown=1)}, [on("n1")])
    assert not answer.stopped
    assert answer.pending == {"web": [], "db": [1]}


# ── why something waits ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("node", "service", "word"),
    [
        ({"cpu": 1}, web(1, cpu=2), "cpu"),
        ({"cpu": 1, "memory": "1Gi"}, web(resources={"memory": "2Gi"}), "memory"),
        ({"cpu": 1, "resources": {"gpu": 1}}, web(resources={"gpu": 2}), "gpu"),
        ({"cpu": 4}, web(2, ports={"db": {"port": 5432, "host_port": 5432}}), "5432"),
        ({"cpu": 4, "labels": {"zone": "eu-1"}}, web(placement={"constraints": ["zone == eu-2"]}), "zone"),
        ({"cpu": 4}, web(2, placement={"max_per_node": 1}), "max_per_node"),
        ({"cpu": 4}, web(1, placement={"max_per": {"rack": 1}}), "rack"),
        ({"cpu": 4, "availability": "pause"}, web(), "paused"),
        ({"cpu": 4, "availability": "drain"}, web(), "draining"),
        ({"cpu": 4, "runtime": "process"}, web(), "command"),
    ],
)  # fmt: skip
def test_a_reason_names_its_dimension(node: dict[str, Any], service: dict[str, Any], word: str) -> None:
    assert word in ask({"n1": node}, {"web": service}).reasons["n1"]


def test_equal_reasons_are_folded() -> None:
    answer = ask(nodes(2, cpu=1), {"web": web(5), "api": web(1, cpu=9)})
    waiting = {one["service"]: one for one in answer.json["pending"]}
    assert len(answer.json["pending"]) == 2
    assert len(waiting["web"]["slots"]) == 3
    assert waiting["api"]["reasons"].keys() == {"n1", "n2"}


def test_without_nodes_nothing_is_at_fault_but_that() -> None:
    answer = ask({}, {"web": web(2)})
    assert answer.json["pending"] == [{"service": "web", "slots": [1, 2], "reasons": {}, "why": "there are no nodes"}]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (web(placement={"constraints": ["zone = eu"]}), "placement.constraints.0: 'zone = eu' is no constraint"),
        (web(replcias=2), "replcias: unknown field (did you mean 'replicas'?)"),
        (
            web(placement={"spread": [{"label": "z", "targets": {"a": "80%", "b": "30%"}}]}),
            "placement.spread.0.targets",
        ),
        (web(cpu=-1), "resources.cpu: must be CPU"),
        ("web:1", "a service spec must be an object"),
        (None, "a service spec must be an object"),
    ],
)
def test_a_bad_spec_parks_its_service_alone(spec: Any, sentence: str) -> None:
    answer = ask(nodes(1, cpu=2), {"bad": spec, "web": web(1)})
    assert answer.placed == {("web", 1, "n1")}
    assert len(answer.json["pending"]) == 1
    assert answer.json["pending"][0]["service"] == "bad"
    assert answer.json["pending"][0]["why"].startswith(sentence)


def test_what_runs_of_a_bad_spec_keeps_its_room() -> None:
    bad = web(2, cpu=1, unknown=1)
    answer = ask(nodes(1, cpu=2), {"bad": bad, "web": web(2)}, [on("n1", 1, "bad")])
    assert answer.pending == {"bad": [2], "web": [2]}
    assert not answer.stopped


def test_a_spread_label_that_no_node_has_is_a_warning() -> None:
    answer = ask(nodes(2), {"web": web(2, placement={"spread": [{"label": "zone"}]})})
    assert len(answer.placed) == 2
    assert "zone" in answer.json["warnings"][0]
    assert ask(nodes(2), {"web": web(2)}).json["warnings"] == []


# ── figures ──────────────────────────────────────────────────────────────────────────────────


def test_what_is_left_out_counts_as_nothing_and_plain_numbers_are_cores_and_bytes() -> None:
    some = {"n1": {"cpu": 1.5, "memory": 1000, "resources": {"gpu": 2}}, "n2": {}}
    services = {"web": web(1, resources={"gpu": 1}), "bare": {"image": "x"}, "big": web(1, cpu="250m", memory=1)}
    services["big"] = {"image": "x", "resources": {"cpu": 0.25, "memory": 300}}
    answer = ask(some, services)
    assert len(answer.placed) == 3
    assert answer.json["nodes"] == {
        "n1": {"cpu_free": 1250, "memory_free": 700, "resources_free": {"gpu": 1}},
        "n2": {"cpu_free": 0, "memory_free": 0, "resources_free": {}},
    }


def test_the_overhead_of_a_node_is_taken_off() -> None:
    some = {"n1": {"cpu": 2, "memory": "1Gi", "reserved": {"cpu": "500m", "memory": "24Mi"}}}
    answer = ask(some, {"web": web(2)})
    assert answer.pending == {"web": [2]}
    assert answer.json["nodes"]["n1"] == {"cpu_free": 500, "memory_free": 1000 * MI, "resources_free": {}}


# ── carried out and asked again ──────────────────────────────────────────────────────────────


@dataclass
class Made:
    """A random cluster, as a file."""

    nodes: dict[str, Any]
    services: dict[str, Any]
    replicas: list[dict[str, Any]] = field(default_factory=list)


LABELS = st.fixed_dictionaries(
    {},
    optional={
        "zone": st.sampled_from("abc"), "rack": st.sampled_from(["r1", "r2"]), "disk": st.sampled_from(["ssd", "hdd"])
    },
)  # fmt: skip
NODES = st.fixed_dictionaries(
    {"cpu": st.integers(1, 6), "memory": st.just("4Gi"), "labels": LABELS,
     "availability": st.sampled_from(["active"] * 6 + ["pause", "drain", "lost"])},
    optional={
        "resources": st.sampled_from([{"gpu": 2}, {"gpu": 1, "license": 1}]), "reserved": st.just({"cpu": "500m"})
    },
)  # fmt: skip
PLACEMENTS = st.fixed_dictionaries(
    {"priority": st.sampled_from([20, 50, 50, 59, 60, 80])},
    optional={
        "constraints": st.sampled_from([["disk == ssd"], ["zone != a"]]),
        "spread": st.sampled_from([
            [{"label": "zone"}], [{"label": "zone"}, {"label": "rack"}], [{"label": "zone", "targets": {"a": "50%"}}],
            [{"label": "zone", "targets": {"a": 70, "b": 30}}, {"label": "rack"}], [{"label": "nowhere"}],
        ]),
        "affinities": st.sampled_from([
            [{"match": "zone == a", "weight": 50}], [{"match": "disk == ssd", "weight": -100}],
            [{"service": "s0", "weight": 100}], [{"service": "s1", "weight": -100}, {"match": "rack == r1"}],
        ]),
        "max_per_node": st.integers(1, 2),
        "max_per": st.sampled_from([{"zone": 2}, {"zone": 2, "rack": 1}]),
        "strategy": st.sampled_from(["spread", "binpack"]),
    },
)  # fmt: skip
SERVICES = st.fixed_dictionaries(
    {"image": st.just("x"), "replicas": st.integers(0, 6), "placement": PLACEMENTS, "release": st.integers(1, 2),
     "resources": st.sampled_from(
         [{"cpu": 1}, {"cpu": 2}, {"cpu": "500m", "gpu": 1}, {"memory": "3Gi"}, {"license": 1}, {}]
     ),
     "kind": st.sampled_from(["service"] * 5 + ["global", "job", "cron"])},
    optional={
        "volumes": st.just(VOLUME["volumes"]),
        "ports": st.sampled_from(
            [{"p": {"port": 1, "host_port": 99, "protocol": protocol}} for protocol in ("tcp", "udp")]
        ),
        "unknown": st.sampled_from([None] * 9 + [1]),
    },
)  # fmt: skip
STATES = ["assigned", "starting", "running", "ready", "ready", "ready", "draining", "stopped", "failed", "lost"]


@st.composite
def clusters(draw: st.DrawFn) -> Made:
    made = Made(
        {f"n{number}": node for number, node in enumerate(draw(st.lists(NODES, max_size=6)))},
        {f"s{number}": body for number, body in enumerate(draw(st.lists(SERVICES, max_size=5)))},
    )
    for name, body in made.services.items():
        if not body.get("unknown"):  # else it is a faulty spec
            body.pop("unknown", None)
        if body["kind"] == "cron":
            body["schedule"] = {"cron": "0 3 * * *"}
        if body["kind"] != "service":
            del body["replicas"]
        for node in made.nodes:
            slots = {node} if body["kind"] == "global" else draw(st.sets(st.integers(1, 8), max_size=2))
            if "volumes" in body:  # two replicas with one volume would be a riddle: which is its last?
                slots -= {one["slot"] for one in made.replicas if one["service"] == name}
            made.replicas += [
                on(node, slot, name, release=draw(st.integers(1, 2)), state=draw(st.sampled_from(STATES)))
                for slot in slots
            ]
    return made


def carried_out(made: Made, answer: Answer) -> list[dict[str, Any]]:
    """The replicas once the answer has been carried out."""
    leaving = Counter((one["service"], one["slot"], one["node"]) for one in answer.json["stops"])
    stays: list[dict[str, Any]] = []
    ended: list[dict[str, Any]] = []
    for one in made.replicas:
        seat = one["service"], one["slot"], one["node"]
        if leaving[seat] and one["state"] in ("assigned", "starting", "running", "ready"):
            leaving[seat] -= 1
            ended.append({**one, "state": "stopped"})
        else:
            stays.append(one)
    new = [on(one["node"], one["slot"], one["service"], release=made.services[one["service"]]["release"])
           for one in answer.json["placements"]]  # fmt: skip
    return stays + ended + new


@settings(max_examples=300, deadline=None)
@given(clusters())
def test_carried_out_and_asked_again_nothing_changes(made: Made) -> None:
    answer = ask(made.nodes, made.services, made.replicas)
    again = ask(made.nodes, made.services, carried_out(made, answer))
    assert (again.json["placements"], again.json["stops"]) == ([], [])
    assert again.pending == answer.pending
    assert again.json["nodes"] == answer.json["nodes"]


@settings(max_examples=200, deadline=None)
@given(clusters())
def test_the_end_state_breaks_no_rule(made: Made) -> None:
    answer = ask(made.nodes, made.services, made.replicas)
    assert ask(made.nodes, made.services, made.replicas).json == answer.json, "the same question has the same answer"
    seats = Counter((one["service"], one["slot"]) for one in answer.json["placements"])
    assert max(seats.values(), default=1) == 1
    for one in answer.json["placements"]:
        assert made.nodes[one["node"]]["availability"] == "active"
        takes = made.services[one["service"]]["resources"].get("cpu", 0)
        assert not takes or answer.json["nodes"][one["node"]]["cpu_free"] >= 0, "nothing is placed beyond what is free"
    living = {name for name, node in made.nodes.items() if node["availability"] != "lost"}
    assert answer.json["nodes"].keys() == living
    assert all(one["node"] in living for one in answer.json["stops"])
