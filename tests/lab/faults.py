"""What goes wrong with hosts, on them, and with the store, what is promised for each, and what came of it.

The suite checks each promise once, `make bench-lab` takes the times again and again: both by `suffer`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tests.lab import events, parts
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.operator import SERVICE, Operator, eventually
from tests.lab.traffic import Failure, Traffic
from tests.simulation.history import Trouble

Who = Callable[[Operator], Sequence[str]]


@contextmanager
def as_shipped(_: Operator) -> Iterator[None]:
    yield


@dataclass(frozen=True)
class Fault:
    """`strike` is done to each host that `whom` names. Its promises:

    `out`: others send nothing to what it runs any more; `moves`: others take its place, and once when it is back (else
    no container has changed after `lasts` seconds); `says`: in `mesh nodes` meanwhile; `within`: the host itself is
    well, and sends nothing there either; `alone`: who is on the host itself cannot be served; `confirmed`: replacement
    is frozen until an operator says that the hosts are lost.
    """

    name: str
    strike: Callable[[Lab, str], None]
    whom: Who
    out: bool = False
    moves: bool = False
    within: bool = False
    alone: bool = False
    confirmed: bool = False
    says: str = ""
    lasts: float = 0.0
    setting: Callable[[Operator], AbstractContextManager[None]] = as_shipped
    swarm: str = ""
    brief: float | None = 0.0
    """`lasts` in the suite; None: it takes too long for it."""


@dataclass(frozen=True)
class Outcome:
    """Seconds since the fault: until it was out of traffic on all other hosts, and until all ran again; `back`:
    from its end until all was well. Failures began so long after the fault."""

    out: float | None
    moved: float | None
    back: float
    requests: int
    failures: Sequence[Failure]

    @property
    def unserved(self) -> float:
        """Seconds until the last request began that failed."""
        return max((failure.began for failure in self.failures), default=0.0)


def suffer(operator: Operator, fault: Fault, lasts: float, meanwhile: Callable[[], None] = lambda: None) -> Outcome:
    """One fault under load, from its beginning until everything is well again. `meanwhile` is done before it ends.

    Raises:
        AssertionError: if what is promised for it does not come true.
    """
    with fault.setting(operator):
        events.settled(operator, "all is well before", within=120)
        victims = fault.whom(operator)
        others = operator.names() if fault.within else operator.names(*victims)
        while fault.out and not all(operator.ready([victim]) for victim in victims):
            events.roll_out(operator)  # what returned from an earlier fault has nothing
        before, struck = operator.running(operator.names()), operator.running(victims)
        out = moved = None
        with Traffic(operator.vip(), others if fault.alone else operator.names(), record=operator.record) as traffic:
            eventually("load", traffic.more(100))
            began = time.monotonic()
            troubled = [*victims, *["store"][: any(victim in operator.lab.servers for victim in victims)]]
            for who in troubled:
                operator.record(Trouble(time.time(), who, fault.name, begins=True))
            with ThreadPoolExecutor() as pool:  # a strike takes its time, and counts from its beginning
                strikes = [pool.submit(fault.strike, operator.lab, victim) for victim in victims]
                if fault.out:
                    eventually("out of traffic on all others", lambda: not any(
                        operator.sends_to(other, struck) for other in others
                    ), pause=0.02)  # fmt: skip
                    out = time.monotonic() - began
                for strike in strikes:
                    strike.result()
            if fault.confirmed:
                eventually("replacement is frozen", operator.frozen)
                operator.mesh(others[0], "confirm-loss", "--yes")
            if fault.moves:
                eventually("all runs again", lambda: len({*operator.ready(others)} - struck.keys()) == operator.count,
                           120, pause=0.02)  # fmt: skip
                moved = time.monotonic() - began
            if fault.says:
                eventually(
                    f"mesh nodes says {fault.says!r}", lambda: fault.says in operator.mesh(others[0], "nodes", "--json")
                )
            meanwhile()
            time.sleep(max(0.0, began + lasts - time.monotonic()))
            healed = time.monotonic()
            for victim in victims:
                operator.lab.heal(victim)
            events.heard(operator)
            eventually("no doubt is left", lambda: all(operator.doubt(name) == ("", "") for name in operator.names()))
            events.settled(operator, "all is well after", within=120)
            for who in troubled:
                operator.record(Trouble(time.time(), who, fault.name, begins=False))
            back = time.monotonic() - healed
            eventually("load after it", traffic.more(100))
        after = operator.running(operator.names())
        if not fault.moves:
            assert after == before, f"containers have changed: {before} became {after}"
        assert sorted(after) == operator.ready(operator.names())
        return Outcome(
            out, moved, back, traffic.total, [replace(one, began=one.began - began) for one in traffic.failures]
        )


# ── whom


def a_worker(operator: Operator) -> Sequence[str]:
    """A host without a Consul server, or a scheduler."""
    return [operator.lab.hosts[-1].name]


def most_hosts(operator: Operator) -> Sequence[str]:
    """Of five; two of three Consul servers are left."""
    return operator.names()[2:]


def consul_leader(operator: Operator) -> Sequence[str]:
    return [operator.consul_leader()]


def consul_follower(operator: Operator) -> Sequence[str]:
    leader = operator.consul_leader()
    return [next(name for name in operator.lab.servers if name != leader)]


def consul_quorum(operator: Operator) -> Sequence[str]:
    leader = operator.consul_leader()
    return [leader, next(name for name in operator.lab.servers if name != leader)]


def all_consul(operator: Operator) -> Sequence[str]:
    return operator.names()


def leading_scheduler(operator: Operator) -> Sequence[str]:
    return [operator.leader()]


# ── settings


@contextmanager
def fast(operator: Operator) -> Iterator[None]:
    operator.put("desired/config", {"failure_detection": "fast"})
    try:
        yield
    finally:
        operator.delete("desired/config")


@contextmanager
def both_leaders_on_one_host(operator: Operator) -> Iterator[None]:
    leader = operator.consul_leader()
    others = [operator.lab.host(name) for name in operator.lab.servers if name != leader]
    for host in others:
        host.stop("scheduler")
    eventually("it leads", lambda: operator.leader() == leader)
    for host in others:
        parts.start_scheduler(host)
    eventually("the standbys have heard of it", lambda: all(map(parts.scheduler_is_ready, others)))
    yield


@contextmanager
def no_failures_before(operator: Operator) -> Iterator[None]:
    """A slot waits longer after each failure; a new release forgets them."""
    events.roll_out(operator)
    yield


@contextmanager
def liveness_probe(operator: Operator) -> Iterator[None]:
    alive = {**SERVICE["health"]["ready"], "interval": "1s"}
    events.roll_out(operator, {**SERVICE["health"], "alive": alive})
    yield
    events.roll_out(operator)


# ── strikes


def each_container(do: Callable[[Host, Any, str], object]) -> Callable[[Lab, str], None]:
    """To every container of the service on a host, by the host's engine."""

    def strike(lab: Lab, name: str) -> None:
        host = lab.host(name)
        with closing(parts.client_of(host)) as engine:
            for one in engine.containers(filters={"label": "mesh.service=web"}):
                do(host, engine, one["Id"])

    return strike


def eat_memory(host: Host, engine: Any, container: str) -> None:
    [network] = engine.inspect_container(container)["NetworkSettings"]["Networks"].values()
    host.run("curl", "--silent", "--max-time", "5", f"http://{network['IPAddress']}:8080/eat", check=False)


def stop_programs(host: Host, engine: Any, container: str) -> None:
    """SIGSTOP: they take connections and answer nothing."""
    host.run("kill", "-STOP", *(row[0] for row in engine.top(container, "-eo pid")["Processes"]))


def kill_workers(kind: str) -> Callable[[Lab, str], None]:
    def strike(lab: Lab, name: str) -> None:
        host = lab.host(name)
        host.run("kill", "-KILL", *(file.read_text() for file in (host.folder / "state").rglob(f"{kind}-*.pid")))

    return strike


def kill_consul(lab: Lab, host: str) -> None:
    lab.host(host).stop("consul", signal.SIGKILL)


def cut_from(kind: str = "") -> Callable[[Lab, str], None]:
    return lambda lab, host: lab.partition(host, kind)


def hang(part: str) -> Callable[[Lab, str], None]:
    return lambda lab, host: lab.hang(host, part)


DEAD = "does not answer"
SWARM_LOSS = "5–8 s in DNS; replicas 16–22 s as shipped, 3.2–3.7 s tuned"

CABLE_CUT = Fault("cable cut", cut_from(), a_worker, out=True, moves=True, alone=True, says=DEAD, swarm=SWARM_LOSS)

FAULTS = (
    Fault("all containers of a host killed", each_container(lambda host, engine, id: engine.kill(id)), a_worker,
          out=True, moves=True, within=True, setting=no_failures_before, brief=None),
    Fault("all containers of a host out of memory", each_container(eat_memory), a_worker,
          out=True, moves=True, within=True, setting=no_failures_before, brief=None),
    Fault("all containers of a host removed (`docker rm -f`)",
          each_container(lambda host, engine, id: engine.remove_container(id, force=True)), a_worker,
          out=True, moves=True, within=True, setting=no_failures_before, brief=None),
    Fault("all containers of a host hang, `health.alive` each second", each_container(stop_programs), a_worker,
          out=True, moves=True, within=True, setting=liveness_probe, brief=None),
    Fault("DNS workers of a host killed", kill_workers("dns"), a_worker, brief=None),
    Fault("proxy workers of a host killed", kill_workers("proxy"), a_worker, brief=None),
    CABLE_CUT,
    Fault("power cut", Lab.kill, a_worker, out=True, moves=True, alone=True, says=DEAD, brief=None,
          swarm="5.9 s in DNS; replicas 15.9 s as shipped"),
    Fault("power cut, `failure_detection: fast`", Lab.kill, a_worker, out=True, moves=True, alone=True, says=DEAD,
          setting=fast, brief=None),
    Fault("power cut of the host of the leading scheduler and of Consul's leader", Lab.kill, consul_leader, out=True,
          moves=True, alone=True, says=DEAD, setting=both_leaders_on_one_host, swarm="46 s", brief=None),
    Fault("power cut of three hosts of five, and `mesh confirm-loss`", Lab.kill, most_hosts, out=True, moves=True,
          alone=True, confirmed=True, says=DEAD, brief=None),
    Fault("a host hears nothing (one-way)", cut_from("deaf"), a_worker, out=True, moves=True, alone=True,
          says="one-way fault", brief=None),
    Fault("nobody hears a host (one-way)", cut_from("mute"), a_worker, out=True, moves=True, alone=True, says=DEAD,
          brief=None),
    Fault("host frozen", Lab.freeze, a_worker, out=True, moves=True, alone=True, says="answers nothing", brief=None),
    Fault("cable out for 3 s", cut_from(), a_worker, out=True, alone=True, lasts=3.0, brief=3.0),
    Fault("way between two hosts cut", cut_from("h2"), a_worker, lasts=20.0, brief=3.0),
    Fault("20 % of packets lost each way", lambda lab, host: lab.loss(host, 0.2), a_worker, alone=True, lasts=20.0,
          says="many probes of it are lost", brief=None),
    Fault("cut off from Consul", cut_from("consul"), a_worker, lasts=40.0, says="cut off from the store", brief=None),
    Fault("engine hung, containers alive", hang("dockerd"), a_worker, lasts=30.0, says="the Docker engine at",
          brief=None),
    Fault("engine killed and started again", lambda lab, host: lab.host(host).stop("dockerd", signal.SIGKILL),
          a_worker, lasts=3.0, brief=1.0),
    Fault("agent killed for 10 s", lambda lab, host: lab.host(host).stop("agent", signal.SIGKILL), a_worker,
          says="runs no agent", lasts=10.0, brief=0.0),
    Fault("agent stopped (SIGSTOP) until its session is over", hang("agent"), a_worker, out=True, lasts=30.0,
          says="answers nothing", brief=None),
    Fault("leading scheduler stopped (SIGSTOP) until another leads", hang("scheduler"), leading_scheduler, lasts=30.0,
          brief=None),
    Fault("Consul's leader killed", kill_consul, consul_leader, lasts=10.0, brief=3.0),
    Fault("a Consul server lost", kill_consul, consul_follower, lasts=30.0, brief=None),
    Fault("a Consul follower cut off from the others", cut_from("consul"), consul_follower, lasts=30.0, brief=None),
    Fault("Consul's quorum lost", kill_consul, consul_quorum, lasts=60.0, brief=6.0),
    Fault("all of Consul restarted", kill_consul, all_consul, lasts=0.0, brief=0.0),
)  # fmt: skip
