"""What placement never does, whatever it is given."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.model import Capacity
from mesh.scheduler.blueprint import Demand
from mesh.scheduler.filters import Constraint
from mesh.scheduler.placement import Holding, Node, Placement, Refusal, explain, place
from tests.scheduler.greedy import fit_labels
from tests.scheduler.test_placement import MI, ask, blueprint, node, reasons, where
from tests.scheduler.test_placement_greedy import Chance

SEEDS = st.integers(0, 2**32)


class Scene(Chance):
    """A random cluster, some of whose replicas may be evicted, and what is asked of it."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        names = [f"s{number}" for number in range(self.random.randint(1, 4))]
        self.services = [self.service(name, names) for name in names]
        self.there = [self.inhabited(one) for one in self.nodes(self.random.randint(0, 8), self.services)]
        self.asked = self.requests(self.services, self.there)
        self.answers = place(self.asked, self.there, "spread")

    def inhabited(self, one: Node) -> Node:
        """With a few small replicas more, of low priority, as long as there is room."""
        holdings = list(one.holdings)
        for number in range(self.random.choice([0, 0, 2, 4])):
            cpu, memory = self.random.choice([50, 100, 400]), self.random.choice([0, 16, 64]) * MI
            ports = frozenset([(80, "tcp")]) if self.maybe(0.1) else frozenset[tuple[int, str]]()
            demand = Demand(cpu, memory, {"gpu": 1} if self.maybe(0.1) else {}, ports)
            priority = self.random.choice([0, 10, 30, 45])
            new = Holding(f"low{number}", demand, True, f"low{number}-{one.name}", 1, priority, self.maybe(0.8))
            if fits(one, [*holdings, new]):
                holdings.append(new)
        return replace(one, holdings=holdings)

    @property
    def placed(self) -> list[Placement]:
        return [answer for answer in self.answers if isinstance(answer, Placement)]

    def remaining(self, one: Node) -> list[Holding]:
        gone = {id for answer in self.placed for id in answer.evicts}
        return [holding for holding in one.holdings if not holding.id or holding.id not in gone]

    def after(self, one: Node) -> Node:
        """The node with what has been placed on it, and without what was evicted."""
        new = [Holding(answer.request.service, answer.request.blueprint.demand)
               for answer in self.placed if answer.node == one.name]  # fmt: skip
        return replace(one, holdings=[*self.remaining(one), *new])


def fits(one: Node, holdings: list[Holding]) -> bool:
    used: Counter[str] = Counter()
    ports: Counter[tuple[int, str]] = Counter()
    for holding in holdings:
        used.update({"cpu": holding.demand.cpu, "memory": holding.demand.memory, **holding.demand.resources})
        ports.update(holding.demand.ports)
    has = {"cpu": one.capacity.cpu, "memory": one.capacity.memory, **one.capacity.resources}
    return all(amount <= has.get(what, 0) for what, amount in used.items()) and all(n < 2 for n in ports.values())


@given(SEEDS)
@settings(max_examples=300, deadline=None)
def test_hard_rules_hold(seed: int) -> None:
    scene = Scene(seed)
    by_name = {one.name: one for one in scene.there}
    for one in scene.there:
        after = scene.after(one)
        assert fits(one, list(after.holdings)) or not fits(one, list(one.holdings)), "over capacity, or a port twice"
    for answer in scene.placed:
        request, one = answer.request, by_name[answer.node]
        assert fit_labels(request, [one])
        assert request.only in (None, one.name)
    for plan in scene.services:
        new = {answer.node for answer in scene.placed if answer.request.service == plan.spec.name}
        own = {one.name: sum(1 for held in scene.after(one).holdings if held.stays and held.service == plan.spec.name)
               for one in scene.there}  # fmt: skip
        most = plan.spec.placement.max_per_node
        assert most is None or all(own[name] <= most for name in new)
        for label, limit in plan.spec.placement.max_per.items():
            groups = {by_name[name].attributes[label] for name in new}
            for group in groups:
                assert sum(own[one.name] for one in scene.there if one.attributes.get(label) == group) <= limit


@given(SEEDS)
@settings(max_examples=300, deadline=None)
def test_nothing_is_evicted_needlessly(seed: int) -> None:
    """Step by step, in the order in which the requests choose: without any one of its victims there is no room."""
    scene = Scene(seed)
    nodes = {one.name: one for one in scene.there}
    for answer in sorted(scene.placed, key=lambda one: -one.request.blueprint.spec.placement.priority):
        request, one = answer.request, nodes[answer.node]
        new = Holding(request.service, request.blueprint.demand)
        victims = [holding for holding in one.holdings if holding.id in answer.evicts]
        assert len(victims) == len(answer.evicts)
        rest = [holding for holding in one.holdings if holding not in victims]
        for victim in victims:
            assert victim.evictable
            assert victim.priority <= request.blueprint.spec.placement.priority - 10
            assert not fits(one, [*rest, new, victim]), f"{victim.id} need not have gone"
        nodes[answer.node] = replace(one, holdings=[*rest, new])


@given(SEEDS)
@settings(max_examples=200, deadline=None)
def test_asked_again_nothing_more_is_placed_and_every_node_has_its_reason(seed: int) -> None:
    scene = Scene(seed)
    refused = [answer for answer in scene.answers if isinstance(answer, Refusal)]
    after = [scene.after(one) for one in scene.there]
    again = place([answer.request for answer in refused], after, "spread")
    assert where(again) == [None] * len(refused)
    for answer in refused:
        assert answer.why or answer.reasons
        assert all(answer.sentences())
        if not answer.why and answer.request.only is None:
            assert answer.reasons.keys() == {one.name for one in scene.there}
            assert not any("when it was asked" in reason for reason in answer.reasons.values())


@given(SEEDS)
@settings(max_examples=200, deadline=None)
def test_what_is_explained_is_what_is_done(seed: int) -> None:
    """The best verdict is the node that is chosen; if there is none, every verdict says why not."""
    scene = Scene(seed)
    for request in {id(one.blueprint): one for one in scene.asked}.values():
        verdicts = explain(request, scene.there)
        assert {verdict.node for verdict in verdicts} == {one.name for one in scene.there}
        (answer,) = place([request], scene.there)
        if isinstance(answer, Placement) and not answer.evicts:
            assert (verdicts[0].node, verdicts[0].why_not) == (answer.node, "")
            assert verdicts[0].score
        else:
            assert all(verdict.why_not for verdict in verdicts)


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.integers(1, 40),
    st.sampled_from(["spread", "binpack"]),
    st.booleans(),
)
def test_spread_is_even_to_one_where_there_is_room(zones: list[int], count: int, strategy: str, racks: bool) -> None:
    nodes = [
        node(
            f"n{zone}-{number}", cpu=100_000, memory=100_000 * MI, labels={"zone": f"z{zone}", "rack": f"r{number % 2}"}
        )
        for zone, size in enumerate(zones)
        for number in range(size)
    ]
    labels = [{"label": "zone"}, *([{"label": "rack"}] if racks else [])]
    plan = blueprint(placement={"spread": labels, "strategy": strategy})
    chosen = where(place(ask(count, plan), nodes))
    by_name = {one.name: one for one in nodes}
    zone_counts = Counter(by_name[str(name)].attributes["zone"] for name in chosen)
    assert max(zone_counts.values()) - min(zone_counts[f"z{zone}"] for zone in range(len(zones))) <= 1
    for zone, size in enumerate(zones):
        rack_counts = Counter(by_name[str(name)].attributes["rack"] for name in chosen
                              if by_name[str(name)].attributes["zone"] == f"z{zone}")  # fmt: skip
        if racks and size > 1:
            assert abs(rack_counts["r0"] - rack_counts["r1"]) <= 1


# ── preemption: the lowest priority, then the fewest, then the least ─────────────────────────────


@given(SEEDS)
@settings(max_examples=300, deadline=None)
def test_the_least_is_evicted(seed: int) -> None:
    """Beside all sets of victims on all nodes."""
    chance = Chance(seed)
    nodes = []
    for number in range(chance.random.randint(1, 3)):
        lows = [
            Holding("low", demand, True, f"low-{number}-{slot}", slot, priority, chance.maybe(0.9))
            for slot in range(chance.random.randint(0, 5))
            for priority in [chance.random.choice([0, 10, 20, 45])]
            for demand in [Demand(chance.random.choice([100, 200, 300, 500]), chance.random.choice([1, 2, 4]) * MI)]
        ]  # fmt: skip
        used = sum(one.demand.cpu for one in lows), sum(one.demand.memory for one in lows)
        nodes.append(node(f"n{number}", used[0] + chance.random.choice([0, 50, 150]), used[1] + MI, holdings=lows))
    wanted = blueprint("high", resources={"cpu": chance.random.choice(["200m", "400m", "700m"]), "memory": "3Mi"})
    (answer,) = place(ask(1, wanted), nodes)
    if isinstance(answer, Placement) and not answer.evicts:
        return
    ways = []
    for one in nodes:
        may = [held for held in one.holdings if held.evictable and held.priority <= 40]
        for victims in itertools.chain.from_iterable(itertools.combinations(may, size) for size in range(1, 6)):
            rest = [held for held in one.holdings if held not in victims]
            if fits(one, [*rest, Holding("high", wanted.demand)]):
                size = sum(
                    held.demand.cpu / one.capacity.cpu + held.demand.memory / one.capacity.memory for held in victims
                )
                ways.append((max(held.priority for held in victims), len(victims), round(size, 9)))
    if not ways:
        assert isinstance(answer, Refusal)
        return
    assert isinstance(answer, Placement)
    (home,) = (one for one in nodes if one.name == answer.node)
    gone = [held for held in home.holdings if held.id in answer.evicts]
    size = sum(held.demand.cpu / home.capacity.cpu + held.demand.memory / home.capacity.memory for held in gone)
    assert (max(held.priority for held in gone), len(gone), round(size, 9)) == min(ways)


# ── nonsense and poison ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("amount", [-5, math.nan, math.inf, -math.inf, 10**30, "many", None, True])
def test_a_node_that_reports_nonsense_harms_nobody(amount: object) -> None:
    odd = Node("a", Capacity(cpu=cast(int, amount), memory=cast(int, amount), resources={"gpu": cast(int, amount)}),
               {"name": "a", "runtime": "docker"})  # fmt: skip
    answers = place(ask(2, blueprint(resources={"cpu": 1, "memory": "1Mi", "gpu": 1})), [odd, node("n1")])
    assert len(answers) == 2
    assert where(place(ask(1, blueprint()), [odd, node("n1")]))[0] in ("a", "n1")
    assert all(isinstance(verdict.why_not, str) for verdict in explain(ask(1, blueprint())[0], [odd]))


def test_one_poisonous_request_does_not_stop_the_others() -> None:
    def explode(found: str | None) -> bool:
        raise RuntimeError("boom")

    plain = blueprint()
    mad = replace(blueprint("mad"), constraints=(Constraint("zone == x", "zone", explode),))
    hungry = replace(blueprint("hungry"), demand=Demand(cpu=cast(int, math.nan)))
    owing = replace(blueprint("owing"), demand=Demand(cpu=-100))
    requests = [*ask(1, mad), *ask(1, plain), *ask(2, hungry), *ask(1, owing), *ask(1, plain)]
    answers = place(requests, [node("n1"), node("n2")])
    assert where(answers) == [None, "n1", None, None, None, "n2"]
    assert [answer.why for answer in answers if isinstance(answer, Refusal)] == [
        "it cannot be placed: RuntimeError: boom",
        "it cannot be placed: needs nan cpu, which is no amount",
        "it cannot be placed: needs nan cpu, which is no amount",
        "it cannot be placed: needs -100 cpu, which is no amount",
    ]


def test_ten_thousand_replicas_on_one_node() -> None:
    small = blueprint(resources={"cpu": "1m", "memory": "1Ki"})
    answers = place(ask(10_000, small), [node("n1", cpu=9_000, memory=2**40), node("n2", barred="is paused")])
    assert Counter(where(answers)) == {"n1": 9_000, None: 1_000}
    assert set(reasons(answers)) == {"n1: needs 1m cpu, 0 free", "n2: is paused"}


def test_hard_cases_end() -> None:
    """Many small victims in many dimensions, limits that bind everywhere, and requests that take turns."""
    lows = [
        Holding(
            "low",
            Demand(10 + number % 7, (1 + number % 5) * MI, {"gpu": number % 3}),
            True,
            f"low-{number}",
            number,
            0,
            True,
        )
        for number in range(300)
    ]
    used = sum(one.demand.cpu for one in lows), sum(one.demand.memory for one in lows)
    full = [node(f"n{number}", *used, resources={"gpu": 300}, holdings=lows) for number in range(5)]
    high = blueprint("high", resources={"cpu": "1500m", "memory": "400Mi", "gpu": 120})
    answers = place(ask(3, high), full)
    assert all(isinstance(answer, Placement) and answer.evicts for answer in answers)
    rules: dict[str, Any] = {
        "max_per": {"zone": 3, "rack": 2},
        "max_per_node": 1,
        "spread": [{"label": "zone"}, {"label": "rack"}],
        "affinities": [
            {"service": "web", "weight": -100},
            *({"match": f"zone == z{n % 9}", "weight": n} for n in range(60)),
        ],
    }
    ring = [node(f"n{n}", labels={"zone": f"z{n % 7}", "rack": f"r{n % 11}"}) for n in range(100)]
    turns = [request for pair in zip(ask(50, blueprint(placement=rules)), ask(50, blueprint("b", resources={"gpu": 9})),
                                     strict=True) for request in pair]  # fmt: skip
    assert len([one for one in where(place(turns, ring)) if one]) == 21
