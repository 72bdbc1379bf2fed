"""Whole clusters on a virtual clock: many services, and random trouble that must leave no trace.

`World.check` watches after every reconcile that no node is over capacity, no slot doubled beyond start-first and no
state goes back. Each seed replays exactly; a failure prints the story.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.model import Capacity, Want
from tests.scheduler.world import GI, Behaviour, World

LARGE = Capacity(cpu=400_000, memory=1000 * GI)


def test_500_services_reconcile_to_a_stable_state_and_then_nothing_changes() -> None:
    world = World(6)
    for node in world.nodes.values():
        node.capacity = LARGE
    for number in range(500):
        world.apply(f"s{number}", replicas=2, ports={"http": {"port": 80, "protocol": "http"}})
    world.settle()
    assert len({plan.vip for plan in world.plans.values()}) == 500
    for number in range(500):
        places = [world.node_of(report.id) for report in world.running(f"s{number}")]
        assert len(set(places)) == 2
    load = [len(plan.replicas) for plan in world.node_plans.values()]
    assert max(load) - min(load) <= 1
    for _ in range(3):
        assert world.reconcile().changes == 0


SERVICES = ("a", "b", "c", "d")
BEHAVIOURS = (
    Behaviour(),
    Behaviour(),
    Behaviour(ready_after=3.0),
    Behaviour(ready_after=None),
    Behaviour(crash_after=0.4),
    Behaviour(done_after=2.0),
)
EXTRAS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"ports": {"p": {"port": 80, "host_port": 8000}}},
    {"volumes": {"v": {"path": "/v"}}},
)


class Chaos:
    """Random things that operators and fate do."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.version = 0

    def step(self) -> None:
        actions: list[tuple[int, Callable[[], None]]] = [
            (4, self.edit),
            (3, self.crash),
            (2, self.scale),
            (1, self.delete),
            (2, self.lose),
            (3, self.bring_back),
            (1, self.drain),
            (1, self.flap),
            (1, self.world.change_leader),
            (2, self.command),
            (1, self.configure),
        ]
        self.random.choices([action for _, action in actions], [weight for weight, _ in actions])[0]()
        self.world.run(self.random.choice([0.0, 0.05, 0.3, 1.0, 3.0, 8.0, 40.0]))

    def edit(self) -> None:
        self.version += 1
        service = self.random.choice(SERVICES)
        image = f"{service}:{self.version}"
        self.world.behave[image] = self.random.choice(BEHAVIOURS)
        extra = self.random.choice(EXTRAS)
        kind = self.random.choice(["service", "service", "service", "service", "global", "job", "cron"])
        if kind in ("job", "cron"):
            extra = {**extra, "job": {"completions": 3, "parallelism": 2, "deadline": "60s"}}
        if kind == "cron":
            overlap = self.random.choice(["skip", "replace", "allow"])
            extra = {"schedule": {"cron": "* * * * *", "overlap": overlap}}
        self.world.apply(
            service,
            image=image,
            kind=kind,
            placement={"priority": self.random.choice([50, 50, 20, 80])},
            replicas=self.random.randint(0, 4),
            resources={"memory": self.random.choice(["64Mi", "700Mi"])},
            update={
                "min_healthy": "1s",
                "healthy_deadline": "20s",
                "progress_deadline": "40s",
                "max_surge": self.random.choice([1, 2, "50%"]),
                "max_unavailable": self.random.choice([0, 0, 1]),
                "on_failure": self.random.choice(["rollback", "rollback", "pause", "continue"]),
                "canary": self.random.choice([0, 0, 1, "50%", "100%"]),
                "auto_promote": self.random.random() < 0.5,
            },
            env=self.random.choice([{}, {}, {"MODE": {"config": "mode"}}]),
            **extra,
        )

    def command(self) -> None:
        action = self.random.choice(["pause", "resume", "promote", "abort", "undo"])
        self.world.command(action, name=self.random.choice(SERVICES))

    def configure(self) -> None:
        self.world.set_config("mode", self.random.choice(["slow", "fast"]))

    def crash(self) -> None:
        if alive := [report.id for service in SERVICES for report in self.world.running(service)]:
            self.world.crash(self.random.choice(alive))

    def flap(self) -> None:
        if ready := [id for service in SERVICES for id in self.world.ready(service)]:
            self.world.set_ready(self.random.choice(ready), False)

    def scale(self) -> None:
        self.world.rescale(self.random.choice(SERVICES), self.random.choice([None, 0, 1, 2, 5]))

    def delete(self) -> None:
        if self.world.wishes:
            self.world.delete(self.random.choice(sorted(self.world.wishes)))

    def lose(self) -> None:
        self.world.lose(self.random.choice(sorted(self.world.nodes)), kill=self.random.random() < 0.5)

    def bring_back(self) -> None:
        if away := [name for name, node in self.world.nodes.items() if not node.up]:
            self.world.bring_back(self.random.choice(away))

    def drain(self) -> None:
        self.world.set_node(
            self.random.choice(sorted(self.world.nodes)), self.random.choice(["active", "active", "drain", "pause"])
        )

    def heal(self) -> None:
        """An end to all trouble: nodes are back and active, and what is wished for can run."""
        for name, node in self.world.nodes.items():
            node.capacity = LARGE
            self.world.set_node(name)
            if not node.up:
                self.world.bring_back(name)
        for service in sorted(self.world.wishes):
            self.world.rescale(service, None)
            self.version += 1
            self.world.apply(service, image=f"{service}:{self.version}", replicas=self.random.randint(1, 3))


@pytest.mark.parametrize("seed", range(60))
def test_after_random_trouble_running_equals_desired_and_stays_so(seed: int) -> None:
    world = World(4, seed=seed)
    world.compared = seed % 4 == 0
    chaos = Chaos(world, seed)
    for _ in range(40):
        chaos.step()
    chaos.heal()
    world.settle()
    running = {service: world.ready(service) for service in world.wishes}
    world.run(1000)
    assert {service: world.ready(service) for service in world.wishes} == running, world.story()
    assert world.reconcile().changes == 0
    for plan in world.plans.values():
        assert not plan.pending
        assert len({report.slot for report in world.running(plan.service)}) == plan.desired


@settings(max_examples=60, deadline=None)
@given(
    replicas=st.integers(1, 6),
    surge=st.integers(0, 3),
    unavailable=st.integers(0, 3),
    pauses=st.lists(st.floats(0.1, 12.0), min_size=1, max_size=5),
    drained=st.sampled_from(["", "n1", "n2"]),
    new_leaders=st.booleans(),
)
def test_a_rollout_never_has_fewer_ready_or_more_wanted_than_allowed(
    replicas: int, surge: int, unavailable: int, pauses: list[float], drained: str, new_leaders: bool
) -> None:
    if not surge and not unavailable:
        return
    world = World(3)
    update = {"min_healthy": "1s", "max_surge": surge, "max_unavailable": unavailable}
    world.apply(replicas=replicas, update=update)
    world.settle()
    world.run(5)

    def look() -> None:
        wanted = [one for plan in world.node_plans.values() for one in plan.replicas if one.want is Want.RUN]
        assert len(wanted) <= replicas + surge, world.story()
        assert len(world.ready()) >= replicas - unavailable, world.story()

    world.watch = look
    for version, pause in enumerate(pauses, start=2):
        world.apply(image=f"web:{version}", replicas=replicas, update=update)
        if drained and version == 3:
            world.set_node(drained, "drain")
        world.run(pause)
        if new_leaders:
            world.change_leader()
    world.settle()
    assert {report.release for report in world.running()} == {len(pauses) + 1}
