"""Hosts that die, blink or hang, and a store that is away, in the laboratory: what moves, what does not, who says so.

`make bench-lab` suffers all of `faults.FAULTS`, several times and as long as they are to last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import pytest

from tests.lab import events, parts
from tests.lab.faults import FAULTS, Fault, suffer
from tests.lab.lab import Lab, remove
from tests.lab.operator import Operator, eventually
from tests.lab.record import Recorder
from tests.simulation.history import Trouble

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.consul, pytest.mark.slow]

BRIEF = [fault for fault in FAULTS if fault.brief is not None]


@pytest.fixture(scope="module")
def operator() -> Iterator[Operator]:
    operator = Operator(Lab.up(hosts=4, servers=3))
    try:
        operator.load_image()
        events.serve(operator)
        with Recorder(operator):
            yield operator
    finally:
        remove()


def test_most_nodes_gone_freeze_replacement_until_they_return(operator: Operator) -> None:
    """Who is cut off from all but Consul: the way between them is the likelier culprit."""
    before = operator.running(operator.names())
    for name in operator.names("h1"):
        operator.lab.partition(name, "peers")
        operator.record(Trouble(time.time(), name, "cut off from its peers", begins=True))
    eventually("replacement is frozen", lambda: "replacement is frozen" in operator.frozen())
    assert operator.running(operator.names()) == before
    for name in operator.names("h1"):
        operator.lab.heal(name)
        operator.record(Trouble(time.time(), name, "cut off from its peers", begins=False))
    eventually("it has thawed", lambda: not operator.frozen())
    eventually("no doubt is left", lambda: all(operator.doubt(name) == ("", "") for name in operator.names()))
    assert operator.running(operator.names()) == before


def test_a_singleton_that_is_cut_off_has_stopped_before_another_starts(operator: Operator) -> None:
    operator.apply(name="one", singleton=True, replicas=1)
    eventually("it is ready", lambda: operator.ready(operator.names(), "one"))
    [first] = operator.replicas(operator.names(), "one")
    victim, others = str(first["node"]), operator.names(str(first["node"]))
    operator.record(Trouble(time.time(), "store", "a server is cut off", begins=True))
    operator.record(Trouble(time.time(), victim, "cable cut", begins=True))
    operator.lab.partition(victim)
    eventually("another is ready", lambda: operator.ready(others, "one"))
    [second] = operator.ready(others, "one")
    assert ended(operator, victim, str(first["id"])) < started(operator, others, second)
    operator.lab.heal(victim)
    operator.delete("desired/services/one")
    eventually("it is gone", lambda: not operator.replicas(operator.names(), "one"))
    operator.record(Trouble(time.time(), victim, "cable cut", begins=False))
    operator.record(Trouble(time.time(), "store", "a server is cut off", begins=False))


def ended(operator: Operator, node: str, id: str) -> float:
    """When its container did, by its engine: one clock for all hosts of a lab."""
    return moments(operator, node, id, "die")[-1]


def started(operator: Operator, nodes: Sequence[str], id: str) -> float:
    return next(found[0] for node in nodes if (found := moments(operator, node, id, "start")))


def moments(operator: Operator, node: str, id: str, event: str) -> list[float]:
    client = parts.client_of(operator.lab.host(node))
    wanted = {"type": "container", "event": event, "label": f"mesh.id={id}"}
    found = [one["timeNano"] for one in client.events(since=1, until=int(time.time()) + 1, filters=wanted, decode=True)]
    client.close()
    return found


@pytest.mark.parametrize("fault", BRIEF, ids=lambda fault: fault.name)
def test_what_is_promised_holds(operator: Operator, fault: Fault) -> None:
    outcome = suffer(operator, fault, fault.brief or 0.0)
    assert [failure for failure in outcome.failures if failure.began > (outcome.out or -math.inf)] == []
