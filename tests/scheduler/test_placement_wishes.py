"""Wishes, one by one: spread, affinities, limits, what binpack spares, who is evicted, what is explained."""

import subprocess
import sys
from typing import Any

import pytest

from mesh.scheduler.blueprint import Demand
from mesh.scheduler.placement import Holding, Node, Placement, explain, place, warnings
from mesh.spec.errors import SpecError
from tests.scheduler.test_placement import ask, blueprint, node, reasons, where

GI = 2**30
SMALL = {"cpu": "10m", "memory": "1Mi"}


def web(**placement: Any) -> Any:
    return blueprint(placement=placement, resources=SMALL)


def zoned(*zones: str, **rest: Any) -> list[Node]:
    """n1, n2, … in these zones; an empty one is none."""
    return [node(f"n{number}", labels={"zone": zone} if zone else {}, **rest) for number, zone in enumerate(zones, 1)]


# ── spread ───────────────────────────────────────────────────────────────────────────────────────


def test_zones_are_filled_evenly_and_nodes_apart_inside_them() -> None:
    nodes = zoned("a", "a", "a", "b")
    assert where(place(ask(5, web(spread=[{"label": "zone"}])), nodes)) == ["n1", "n4", "n2", "n4", "n3"]


def test_nodes_without_the_label_come_after_all_others() -> None:
    full = zoned("", "a", cpu=25)
    assert where(place(ask(4, web(spread=[{"label": "zone"}])), full)) == ["n2", "n2", "n1", "n1"]


def test_replicas_that_stay_count_and_those_that_leave_do_not() -> None:
    nodes = [
        node("n1", labels={"zone": "a"}, holdings=[Holding("web", Demand())]),
        node("n2", labels={"zone": "b"}, holdings=[Holding("web", Demand(), stays=False)]),
    ]
    assert where(place(ask(2, web(spread=[{"label": "zone"}])), nodes)) == ["n2", "n1"]


def test_racks_inside_zones() -> None:
    nodes = [node(f"{zone}{rack}", labels={"zone": zone, "rack": rack}) for zone in "ab" for rack in "12"]
    chosen = where(place(ask(6, web(spread=[{"label": "zone"}, {"label": "rack"}])), nodes))
    assert chosen == ["a1", "b1", "a2", "b2", "a1", "b1"]


@pytest.mark.parametrize(
    ("targets", "counts"),
    [
        ({"a": "70%", "b": "30%"}, {"n1": 7, "n2": 3}),
        ({"a": "50%"}, {"n1": 5, "n2": 3, "n3": 2}),  # the rest evenly among b and c
        ({"a": "100%"}, {"n1": 10}),
        ({"a": 80, "b": 20}, {"n1": 8, "n2": 2}),
    ],
)
def test_targets_are_met(targets: dict[str, Any], counts: dict[str, int]) -> None:
    zones = zoned("a", "b", "c") if len(counts) != 2 else zoned("a", "b")
    chosen = where(place(ask(10, web(spread=[{"label": "zone", "targets": targets}])), zones))
    assert {name: chosen.count(name) for name in counts} == counts


# ── affinity ─────────────────────────────────────────────────────────────────────────────────────


def test_affinities_come_before_load_and_after_spread() -> None:
    nodes = zoned("a", "a", "b", "b")
    towards = {"match": "zone == b", "weight": 50}
    assert where(place(ask(2, web(affinities=[towards])), nodes)) == ["n3", "n4"]
    assert where(place(ask(2, web(affinities=[towards], spread=[{"label": "zone"}])), nodes)) == ["n3", "n1"]
    away = {"match": "zone == a", "weight": -1}
    assert where(place(ask(1, web(affinities=[away])), nodes)) == ["n3"]


def test_weights_add_up() -> None:
    nodes = [node("n1", labels={"disk": "ssd"}), node("n2", labels={"zone": "a"}), node("n3")]
    pulls = [
        {"match": "disk == ssd", "weight": 30},
        {"match": "zone == a", "weight": 50},
        {"match": "name == n1", "weight": 30},
    ]
    assert where(place(ask(3, web(affinities=pulls, max_per_node=1)), nodes)) == ["n1", "n2", "n3"]


def test_services_attract_and_repel_also_those_placed_just_before() -> None:
    cache = blueprint("cache", resources=SMALL, placement={"constraints": ["name == n2"]})
    near = blueprint("near", resources=SMALL, placement={"affinities": [{"service": "cache", "weight": 10}]})
    far = blueprint("far", resources=SMALL, placement={"affinities": [{"service": "cache", "weight": -10}]})
    nodes = [node("n1"), node("n2"), node("n3")]
    assert where(place([*ask(1, cache), *ask(2, near), *ask(2, far)], nodes)) == ["n2", "n2", "n2", "n1", "n3"]


def test_a_service_may_want_itself_together() -> None:
    together = web(affinities=[{"service": "web", "weight": 100}])
    assert where(place(ask(3, together), [node("n1"), node("n2")])) == ["n1"] * 3


# ── limits ───────────────────────────────────────────────────────────────────────────────────────


def test_max_per_label_counts_over_nodes_and_needs_the_label() -> None:
    nodes = zoned("a", "a", "b", "")
    answers = place(ask(4, web(max_per={"zone": 1})), nodes)
    assert where(answers) == ["n1", "n3", None, None]
    assert set(reasons(answers)) == {
        "2 nodes (n1, n2): zone a already has 1 of web (max_per zone)",
        "n3: zone b already has 1 of web (max_per zone)",
        "n4: has no zone, by which max_per counts",
    }


def test_volumes_name_the_node_that_has_them() -> None:
    db = blueprint("db", volumes={"data": {"path": "/data"}}, resources={"memory": "2Gi"})
    answers = place(ask(1, db, only="n2"), [node("n1", memory=4 * GI), node("n2")])
    assert reasons(answers) == ["n1: its volumes are on n2", "n2: needs 2Gi memory, 1Gi free"]
    gone = place(ask(1, db, only="n9"), [node("n1")])
    assert reasons(gone) == ["n1: its volumes are on n9, which is not there"]


# ── binpack ──────────────────────────────────────────────────────────────────────────────────────


def test_binpack_spares_resources_that_are_not_asked_for_while_they_are_free() -> None:
    packed = blueprint(resources={"cpu": "200m", "memory": "1Mi"}, placement={"strategy": "binpack"})
    busy = Holding("other", Demand(cpu=500))
    used = Holding("ml", Demand(resources={"gpu": 1}))
    gpu = node("a", resources={"gpu": 1}, holdings=[busy])
    assert where(place(ask(1, packed), [gpu, node("b")])) == ["b"]
    assert where(place(ask(1, packed), [node("a", resources={"gpu": 1}, holdings=[busy, used]), node("b")])) == ["a"]
    wants = blueprint(resources={"cpu": "200m", "gpu": 1}, placement={"strategy": "binpack"})
    assert where(place(ask(1, wants), [gpu, node("b")])) == ["a"]


def test_binpack_spares_labels_that_others_in_the_batch_need() -> None:
    packed = blueprint(resources={"cpu": "600m", "memory": "1Mi"})
    needs = blueprint("ssd", resources={"cpu": "600m", "memory": "1Mi"}, placement={"constraints": ["disk == ssd"]})
    nodes = [node("a", labels={"disk": "ssd"}), node("b"), node("c")]
    assert where(place([*ask(2, packed), *ask(1, needs)], nodes, "binpack")) == ["b", "c", "a"]


# ── preemption ───────────────────────────────────────────────────────────────────────────────────


def low(name: str, cpu: int, priority: int, *, evictable: bool = True) -> Holding:
    return Holding("low", Demand(cpu=cpu), True, name, 1, priority, evictable)


HIGH = blueprint("high", resources={"cpu": "500m", "memory": "1Mi"}, placement={"priority": 80})


@pytest.mark.parametrize(
    ("holdings", "evicts"),
    [
        ({"n1": [low("a", 1000, 70)], "n2": [low("b", 1000, 71)]}, ("a",)),  # 10 apart at least
        ({"n1": [low("a", 1000, 50)], "n2": [low("b", 500, 20), low("c", 500, 20)]}, ("b",)),  # the least important
        ({"n1": [low("a", 500, 20), low("b", 500, 20)], "n2": [low("c", 500, 20), low("d", 500, 30)]}, ("a",)),
        (
            {"n1": [low("a", 400, 20), low("b", 600, 20)], "n2": [low("c", 1000, 20)]},
            ("b",),
        ),  # the smallest that will do
        ({"n1": [low("a", 300, 0), low("b", 700, 90)], "n2": [low("c", 300, 10), low("d", 700, 20)]}, ("d",)),
        ({"n1": [low("a", 1000, 0, evictable=False)], "n2": [low("b", 1000, 60)]}, ("b",)),
    ],
)
def test_the_least_important_go_then_the_fewest_then_the_least(
    holdings: dict[str, list[Holding]], evicts: tuple[str, ...]
) -> None:
    (answer,) = place(ask(1, HIGH), [node(name, holdings=held) for name, held in holdings.items()])
    assert isinstance(answer, Placement)
    assert answer.evicts == evicts


def test_nobody_goes_where_there_is_room_or_it_would_not_help() -> None:
    (answer,) = place(ask(1, HIGH), [node("n1", holdings=[low("a", 1000, 0)]), node("n2")])
    assert isinstance(answer, Placement)
    assert (answer.node, answer.evicts) == ("n2", ())
    answers = place(ask(1, HIGH), [node("n1", cpu=400, holdings=[low("a", 400, 0)])])
    assert reasons(answers) == ["n1: needs 500m cpu, 0 free"]


def test_a_host_port_is_taken_from_the_less_important() -> None:
    port = {"db": {"port": 5432, "host_port": 5432}}
    holder = Holding("low", Demand(ports=frozenset([(5432, "tcp")])), True, "low-1-abcd", 1, 20, True)
    high = blueprint("high", ports=port, placement={"priority": 80})
    (answer,) = place(ask(1, high), [node("n1", holdings=[low("other", 100, 0), holder])])
    assert isinstance(answer, Placement)
    assert answer.evicts == ("low-1-abcd",)


# ── what is told ─────────────────────────────────────────────────────────────────────────────────


def test_a_score_is_told_by_its_parts_best_first() -> None:
    nodes = [*zoned("a", "b"), node("n3", barred="is paused")]
    request = ask(1, web(spread=[{"label": "zone"}], affinities=[{"match": "zone == b", "weight": 40}]))[0]
    best, second, paused = explain(request, nodes)
    assert (best.node, second.node) == ("n2", "n1")
    assert dict(best.score) == {"failed before": 0, "spread zone": 0, "affinity": 40, "own replicas": 0, "load": 0.01}
    assert (paused.node, paused.why_not, paused.score) == ("n3", "is paused", ())


def test_wishes_that_come_to_nothing_are_told() -> None:
    plan = web(
        constraints=["disk == ssd"],  # a rule: what waits for it says so
        affinities=[{"match": "tier exists", "weight": 1}, {"service": "cache", "weight": 1}],
        spread=[{"label": "rack"}, {"label": "zone", "targets": {"a": 50, "x": 50}}],
    )
    assert warnings(plan, zoned("a", "b")) == [
        "placement.affinities.0: no node has the label 'tier'",
        "placement.spread.0: no node has the label 'rack'",
        "placement.spread.1.targets.x: no node has zone 'x'",
    ]
    assert warnings(web(), zoned("a")) == []
    assert warnings(plan, []) == []


@pytest.mark.parametrize(
    ("placement", "error"),
    [
        ({"affinities": [{"match": "zone ==", "weight": 1}]}, "placement.affinities.0.match: 'zone ==': needs a value"),
        ({"constraints": ["zone == a", "zone == b"]}, "placement.constraints.0: 'zone == a' contradicts 'zone == b'"),
        (
            {"constraints": ["zone in a, b", "zone not in [a, b]"]},
            "placement.constraints.0: 'zone in a, b' contradicts",
        ),
        ({"constraints": ["zone"]}, "placement.constraints.0: 'zone' is no constraint"),
        ({"max_per": {"zone": 0}}, "placement.max_per.zone: must be 1.."),
        ({"max_per_node": 0}, "placement.max_per_node: must be 1.."),
        ({"spread": [{"label": "z", "targets": {"a": 60, "b": 50}}]}, "placement.spread.0.targets: must not add up"),
        ({"affinities": [{"match": "a exists", "weight": 101}]}, "placement.affinities.0.weight: must be -100..100"),
    ],
)
def test_rules_that_make_no_sense_are_refused_with_their_path(placement: dict[str, Any], error: str) -> None:
    with pytest.raises(SpecError) as caught:
        blueprint(placement=placement)
    assert any(sentence.startswith(error) for sentence in caught.value.errors), caught.value.errors


@pytest.mark.parametrize("module", ["mesh.leader", "mesh.dev", "mesh.agent.agent", "mesh.cli.specs"])
def test_numpy_waits_until_something_is_placed(module: str) -> None:
    code = f"import sys, {module}; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
