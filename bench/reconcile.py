"""How long one look of the scheduler takes: from a picture of the store to the plans, without reading or writing.

    python -m bench.reconcile [--nodes 300] [--services 500] [--replicas 20] [--rounds 30]

The picture is made as a leader would have it: what did not change since the last look is the same object. CPU time of
one core; `p50` and `worst` of the rounds.
"""

from __future__ import annotations

import argparse
import itertools
import random
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import msgspec

from mesh.model import Assignment, Capacity, ClusterConfig, NodeReport, ReplicaReport, ReplicaState, Want
from mesh.scheduler.hosts import Memory
from mesh.scheduler.plan import Outcome
from mesh.scheduler.reconcile import reconcile
from mesh.spec.service import parse_spec
from mesh.view import NodeView, View, Wish

GI = 2**30

Document = TypeVar("Document", bound=msgspec.Struct)


class Cluster:
    """A whole cluster as documents; agents do at once what they are told."""

    def __init__(self, nodes: int, services: int, replicas: int) -> None:
        self.now = 1_000_000.0
        self.index = 1
        self.memory = Memory()
        self.view = View(config=ClusterConfig(), nodes={
            name: NodeView(self._report(name, zone), held=True, index=1)
            for name, zone in ((f"n{number:03}", f"z{number % 3}") for number in range(nodes))
        })  # fmt: skip
        self._ids = itertools.count()
        self.wishes = {f"s{number:03}": self._wish(f"s{number:03}", replicas, 1) for number in range(services)}
        self.replicas = replicas

    def _report(self, name: str, zone: str) -> NodeReport:
        capacity = Capacity(cpu=16_000, memory=64 * GI)
        return NodeReport(node=name, address="10.0.0.1", runtime="docker", labels={"zone": zone}, capacity=capacity)

    def _wish(self, name: str, replicas: int, version: int) -> Wish:
        self.index += 1
        number = int(name[1:])
        data = {
            "name": name, "image": f"{name}:{version}", "replicas": replicas,
            "resources": {"cpu": f"{100 + number % 7 * 50}m", "memory": f"{128 * (1 + number % 4)}Mi"},
            "ports": {"http": {"port": 80, "protocol": "http"}}, "update": {"min_healthy": "1s"},
            **({"placement": {"spread": [{"label": "zone"}]}} if number % 3 == 0 else {}),
        }  # fmt: skip
        return Wish(parse_spec(data, name), (), self.index)

    def apply(self, name: str, version: int, replicas: int | None = None) -> None:
        wish = self._wish(name, replicas or self.replicas, version)
        self.view = replace(self.view, wishes={**self.view.wishes, name: wish})

    def apply_all(self) -> None:
        self.view = replace(self.view, wishes=dict(self.wishes))

    def look(self) -> tuple[Outcome, float]:
        """One look, and the CPU seconds it took."""
        started = time.process_time()
        outcome = reconcile(self.view, self.now, self._new_id, self.memory)
        took = time.process_time() - started
        assert not outcome.faults, outcome.faults
        self.memory = outcome.memory
        return outcome, took

    def _new_id(self) -> str:
        return f"{next(self._ids) % 65536:04x}"

    def write(self, outcome: Outcome) -> None:
        """What was decided is in the store; only that is decoded anew."""
        plans = {**self.view.plans, **{name: _copy(plan) for name, plan in outcome.services.items()}}
        node_plans = {**self.view.node_plans, **{name: _copy(plan) for name, plan in outcome.nodes.items()}}
        self.view = replace(self.view, plans=plans, node_plans=node_plans)

    def obey(self, outcome: Outcome) -> None:
        """Agents run what they must and report it."""
        nodes = dict(self.view.nodes)
        for name in outcome.nodes:
            if name in nodes:
                known = {replica.id: replica for replica in nodes[name].report.replicas}
                plan = self.view.node_plans[name]
                self._say(nodes, name, [_reported(one, known.get(one.id), self.now) for one in plan.replicas])
        self.view = replace(self.view, nodes=nodes)

    def _say(self, nodes: dict[str, NodeView], name: str, replicas: list[ReplicaReport]) -> None:
        nodes[name] = NodeView(_copy(msgspec.structs.replace(nodes[name].report, replicas=replicas)), True, 1)

    def crash(self, name: str) -> None:
        """The first replica of a node fails."""
        nodes = dict(self.view.nodes)
        first, *others = nodes[name].report.replicas
        self._say(nodes, name, [msgspec.structs.replace(first, state=ReplicaState.FAILED), *others])
        self.view = replace(self.view, nodes=nodes)

    def lose(self, name: str) -> None:
        """A node's session ends; it is given up at the look after the next."""
        nodes = {**self.view.nodes, name: replace(self.view.nodes[name], held=False)}
        self.view = replace(self.view, nodes=nodes)

    def settle(self) -> None:
        for _ in range(500):
            outcome, _ = self.look()
            self.write(outcome)
            self.obey(outcome)
            if not outcome.changes and outcome.wake_at is None:
                return
            self.now = max(self.now + 1.0, outcome.wake_at or 0.0) if not outcome.changes else self.now + 1.0


def _copy(document: Document) -> Document:
    return msgspec.json.decode(msgspec.json.encode(document), type=type(document))


def _reported(one: Assignment, known: ReplicaReport | None, now: float) -> ReplicaReport:
    """What an agent says of a replica that does at once what it must."""
    state = ReplicaState.READY if one.want is Want.RUN else ReplicaState.STOPPED
    if known is not None and known.state in (state, ReplicaState.FAILED):
        return known
    return ReplicaReport(id=one.id, service=one.service, slot=one.slot, release=one.release, state=state, since=now,
                         address="10.0.0.1", ports={"http": 31000})  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=300)
    parser.add_argument("--services", type=int, default=500)
    parser.add_argument("--replicas", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    Cluster(3, 3, 2).settle()  # numpy and pydantic warm up
    cluster = Cluster(given.nodes, given.services, given.replicas)
    cluster.apply_all()
    outcome, took = cluster.look()
    placed = sum(len(plan.replicas) for plan in outcome.nodes.values())
    print(f"{given.nodes} nodes, {given.services} services, {placed} replicas; CPU time of one look, in ms")
    print(f"{'everything from nothing':40}{took * 1000:9.2f}")
    cluster.write(outcome)
    cluster.obey(outcome)
    cluster.settle()
    chance = random.Random(1)
    names = [f"s{number:03}" for number in range(given.services)]
    nodes = sorted(cluster.view.nodes)
    versions = itertools.count(2)

    def measure(what: str, change: Callable[[], None], looks: int = 1) -> None:
        times: list[float] = []
        for _ in range(given.rounds):
            change()
            for _ in range(looks):
                outcome, took = cluster.look()
                times.append(took * 1000)
                cluster.now += 6.0 if looks > 1 else 0.0
            cluster.write(outcome)
            cluster.obey(outcome)
            cluster.settle()
        print(f"{what:40}{statistics.median(times):9.2f} p50{max(times):9.2f} worst")

    measure("nothing has changed", lambda: None)
    measure("one service has a new image", lambda: cluster.apply(chance.choice(names), next(versions)))
    name = names[0]
    counts = itertools.cycle([given.replicas + 10, given.replicas])
    measure("one service is scaled by 10", lambda: cluster.apply(name, 1, next(counts)))
    measure("one replica has failed", lambda: cluster.crash(chance.choice(nodes)))
    measure("a node is lost (two looks)", lambda: cluster.lose(nodes.pop()), looks=2)

    def change_leader() -> None:
        cluster.memory = Memory()

    measure("a new leader looks", change_leader)
    print(f"{'resident memory of this process, MB':40}{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:9.0f}")


if __name__ == "__main__":
    main()
