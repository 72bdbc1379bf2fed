"""What operators do every day, as events that fail no request: each leaves the cluster as it found it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from tests.lab import parts
from tests.lab.host import Host
from tests.lab.operator import DEADLINE, SERVICE, Operator, eventually, one_per_slot

UPDATE = {"min_healthy": "200ms", "max_surge": 2}

_versions = count(1)


@dataclass(frozen=True)
class Event:
    """`moves`: it replaces or moves replicas; every other event leaves each container as it is."""

    name: str
    do: Callable[[Operator], None]
    moves: bool = True


def serve(operator: Operator) -> None:
    """The service that the load asks for."""
    operator.apply(replicas=operator.count, update=UPDATE)
    settled(operator, "one ready replica in each slot")


def settled(operator: Operator, what: str, replicas: int | None = None, *, within: float = DEADLINE) -> None:
    count = operator.count if replicas is None else replicas
    eventually(what, lambda: one_per_slot(operator.replicas(operator.names()), count)
               and operator.read("planned/services/web")["rollout"].get("state", "idle") == "idle", within)  # fmt: skip


def heard(operator: Operator) -> None:
    """A wish is written again, and the leader answers."""
    eventually("a wish is written", lambda: operator.write_again("desired/services/web"))
    index = operator.index("desired/services/web")
    eventually("a scheduler leads", lambda: operator.read("planned/services/web")["spec_index"] >= index)


def _release(operator: Operator, health: object = SERVICE["health"], **update: object) -> int:
    """A new release; its number."""
    version = f"v{next(_versions)}"
    spec = operator.apply(replicas=operator.count, health=health, update={**UPDATE, **update}, tags=[version])
    eventually("the scheduler has read it", lambda: _newest(operator)["spec"].get("tags") == spec["tags"])
    return int(_newest(operator)["number"])


def _newest(operator: Operator) -> Any:
    return operator.read("planned/services/web")["releases"][-1]


def _in_force(operator: Operator, release: int) -> None:
    """A release that takes another back keeps what runs of it: it is the same by its hash."""

    def all_run_it() -> bool:
        hashes = {one["number"]: one["hash"] for one in operator.read("planned/services/web")["releases"]}
        return all(hashes[one["release"]] == hashes[release] for one in operator.replicas(operator.names()))

    eventually(f"all run release {release}", all_run_it)
    settled(operator, "the rollout is over")


def roll_out(operator: Operator, health: object = SERVICE["health"]) -> None:
    _in_force(operator, _release(operator, health))


def promote_a_canary(operator: Operator) -> None:
    _promote(operator, canary=1)


def blue_green(operator: Operator) -> None:
    _promote(operator, canary="100%")


def _promote(operator: Operator, canary: object) -> None:
    release = _release(operator, canary=canary)
    canaries = 1 if canary == 1 else operator.count
    eventually("the canaries are ready", lambda: canaries == sum(
        one["release"] == release and one["state"] == "ready" for one in operator.replicas(operator.names())
    ))  # fmt: skip
    operator.mesh("h1", "rollout", "promote", "web")
    _in_force(operator, release)


def undo_a_release(operator: Operator) -> None:
    release = _release(operator, max_surge=1, min_healthy="2s")
    eventually("it has begun", lambda: any(one["release"] == release for one in operator.replicas(operator.names())))
    operator.mesh("h1", "rollout", "abort", "web")
    eventually("a release follows that takes it back", lambda: int(_newest(operator)["number"]) > release)
    _in_force(operator, int(_newest(operator)["number"]))


def scale_down_and_up(operator: Operator) -> None:
    operator.mesh("h1", "scale", "web=2")
    settled(operator, "two replicas are left", 2)
    operator.mesh("h1", "scale", f"web={operator.count}")
    settled(operator, "all replicas are there again")


def drain_a_node(operator: Operator) -> None:
    operator.put("desired/nodes/h2", {"availability": "drain"})
    eventually("nothing is left there", lambda: not operator.replicas(["h2"]))
    operator.put("desired/nodes/h2", {"availability": "active"})
    settled(operator, "the others run it all")


def restart_an_agent(operator: Operator) -> None:
    operator.lab.stop_agent("h2")
    operator.lab.start_agent("h2")


def kill_an_agent(operator: Operator) -> None:
    operator.lab.host("h2").stop("agent", signal.SIGKILL)
    operator.lab.start_agent("h2")


def upgrade_an_agent(operator: Operator) -> None:
    """With other settings its workers are replaced, as with another version."""
    host = operator.lab.host("h2")
    for options in (["--trust", "192.0.2.0/24"], []):
        host.stop("agent")
        parts.start_agent(host, *options)
        parts.until_up(host, "agent")


def replace_the_workers(operator: Operator) -> None:
    for host in operator.lab.hosts:
        _replace_the_workers(host)


def _replace_the_workers(host: Host) -> None:
    before = _workers(host)
    host.signal("agent", signal.SIGHUP)
    eventually("all are new", lambda: not before & (now := _workers(host)) and len(now) == len(before))


def _workers(host: Host) -> set[int]:
    return {int(file.read_text()) for file in (host.folder / "state").rglob("proxy-*.pid")}


def restart_the_scheduler(operator: Operator) -> None:
    leader = operator.leader()
    operator.lab.host(leader).stop("scheduler")
    eventually("another leads", lambda: operator.leader() != leader)
    parts.start_scheduler(operator.lab.host(leader))


EVENTS = (
    Event("a rollout", roll_out),
    Event("a canary, promoted", promote_a_canary),
    Event("blue/green", blue_green),
    Event("a rollout, aborted", undo_a_release),
    Event("a scale-down and a scale-up", scale_down_and_up),
    Event("a drain", drain_a_node),
    Event("an agent restarted", restart_an_agent, moves=False),
    Event("an agent killed and started", kill_an_agent, moves=False),
    Event("an agent upgraded", upgrade_an_agent, moves=False),
    Event("all proxy workers replaced", replace_the_workers, moves=False),
    Event("the leading scheduler restarted", restart_the_scheduler, moves=False),
)
