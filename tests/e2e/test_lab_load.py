"""200 requests a second through the proxies of four hosts while operators do what they do, and while things go wrong.

`make bench-lab` does all of `events.EVENTS` for 10,000 requests each, and suffers all of `faults.FAULTS`, several times
and as long as they are to last. Here each is shorter, the oracle watches, and one lab serves for all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import pytest

from tests.lab import events, parts
from tests.lab.events import EVENTS, Event
from tests.lab.faults import CABLE_CUT, FAULTS, Fault, Outcome, suffer
from tests.lab.lab import Lab, remove
from tests.lab.operator import Operator, eventually
from tests.lab.record import Recorder
from tests.lab.traffic import Failure, Traffic
from tests.simulation.history import Trouble

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.consul, pytest.mark.slow]

BRIEF = [fault for fault in FAULTS if fault.brief is not None and fault is not CABLE_CUT]


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


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_no_request_fails_during(operator: Operator, event: Event) -> None:
    before = operator.running(operator.names())
    with Traffic(operator.vip(), operator.names(), record=operator.record) as traffic:
        eventually("load", traffic.more(50))
        event.do(operator)
        eventually("load after it", traffic.more(50))
    assert traffic.failures == []
    if not event.moves:
        assert operator.running(operator.names()) == before


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


def test_what_a_cut_off_host_ran_runs_elsewhere_and_its_singleton_has_stopped_before(operator: Operator) -> None:
    [victim] = CABLE_CUT.whom(operator)
    others = operator.names(victim)
    there = {"affinities": [{"match": f"host == {victim}", "weight": 100}]}
    operator.apply(name="one", singleton=True, replicas=1, placement=there)
    eventually("it is ready", lambda: operator.ready([victim], "one"))
    [first] = operator.ready([victim], "one")

    def another_starts() -> None:
        eventually("another is ready", lambda: operator.ready(others, "one"))
        [second] = operator.ready(others, "one")
        assert ended(operator, victim, first) < started(operator, others, second)

    outcome = suffer(operator, CABLE_CUT, 0.0, another_starts)
    assert unserved(outcome) == []
    operator.delete("desired/services/one")
    eventually("it is gone", lambda: not operator.replicas(operator.names(), "one"))


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
    assert unserved(suffer(operator, fault, fault.brief or 0.0)) == []


def unserved(outcome: Outcome) -> Sequence[Failure]:
    """What failed and had not begun before the host was out of traffic."""
    return [failure for failure in outcome.failures if failure.began > (outcome.out or -math.inf)]
