"""Each rule of the oracle, shown a history that breaks it, and one that does not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mesh.model import Assignment, Capacity, NodePlan, NodeReport, ReplicaReport, ReplicaState, Run, ServicePlan
from mesh.view import encode_document
from tests.simulation.history import Ended, Failed, Offered, Said, Started, ToldToStop, Trouble, Written
from tests.simulation.oracle import CUT_OFF, Oracle

SPEC: dict[str, Any] = {"name": "web", "image": "web", "resources": {"memory": "1Gi"}}


class History:
    """Facts at the oracle, one per second."""

    def __init__(self) -> None:
        self.oracle = Oracle()
        self.session: str | None = "s"
        self.now = 0.0
        self.index = 0

    def write(self, key: str, document: msgspec.Struct | None, *, as_leader: bool | None = None) -> None:
        self.now += 1
        self.index += 1
        value = encode_document(document) if document else None
        self.oracle.observe(Written(self.now, f"mesh/{key}", value, self.index, self.session, "s1", as_leader))

    def report(self, **states: str) -> None:
        replicas = [
            ReplicaReport(id=id, service="web", slot=number, release=1, state=ReplicaState(state))
            for number, (id, state) in enumerate(states.items(), 1)
        ]
        capacity = Capacity(cpu=1000, memory=2 * 2**30)
        self.write("observed/nodes/n1", NodeReport(node="n1", address="n1", capacity=capacity, replicas=replicas))

    def plan(self, *ids: str, spec: dict[str, Any] = SPEC, as_leader: bool = True) -> None:
        replicas = [Assignment(id=id, service="web", slot=number, release=1) for number, id in enumerate(ids, 1)]
        document = NodePlan(node="n1", replicas=replicas, specs={"web@1": spec})
        self.write("planned/nodes/n1", document, as_leader=as_leader)
        self.oracle.observe(Said(self.now, "", "the transaction is over"))

    @property
    def rules(self) -> list[str]:
        return [violation.rule for violation in self.oracle.violations]


def test_a_state_that_goes_back() -> None:
    history = History()
    history.report(a="starting")
    history.report(a="ready")
    history.report(a="running")  # its health check failed
    assert history.rules == []
    history.report(a="starting")
    assert history.rules == ["c"]


def test_a_node_over_its_capacity() -> None:
    history = History()
    history.report()
    history.plan("a", "b")
    assert history.rules == []
    history.plan("a", "b", "c")
    assert history.rules == ["b"]


def test_a_host_port_that_is_used_twice() -> None:
    history = History()
    ports = frozenset([80])
    history.oracle.observe(Started(1.0, "n1", "a", "web", 1, ports))
    history.oracle.observe(Started(2.0, "n2", "b", "web", 2, ports))
    history.oracle.observe(Ended(3.0, "n1", "a", asked=True))
    history.oracle.observe(Started(4.0, "n1", "c", "web", 1, ports))
    assert history.rules == []
    history.oracle.observe(Started(5.0, "n1", "d", "web", 1, ports))
    assert history.rules == ["b"]


def test_a_plan_by_somebody_who_does_not_lead() -> None:
    history = History()
    history.plan("a")
    assert history.rules == []
    history.plan("b", as_leader=False)
    assert history.rules == ["e"]


def test_an_endpoint_that_is_long_gone() -> None:
    history = History()
    oracle = history.oracle
    oracle.observe(Started(0.5, "n1", "a", "web", 1))
    history.report(a="ready")
    oracle.observe(Offered(2.0, "n2", {"a": "ready"}))
    oracle.look(100.0)
    oracle.observe(Ended(100.0, "n1", "a", asked=False))
    oracle.look(102.0)
    assert history.rules == []
    oracle.look(104.0)
    assert history.rules == ["d"]


def test_an_endpoint_of_a_node_in_trouble_may_stay_a_while() -> None:
    history = History()
    oracle = history.oracle
    oracle.observe(Started(0.5, "n1", "a", "web", 1))
    history.report(a="ready")
    oracle.observe(Offered(2.0, "n2", {"a": "ready"}))
    oracle.observe(Trouble(100.0, "n1", "power cut", begins=True))
    oracle.observe(Ended(100.0, "n1", "a", asked=False))
    oracle.look(120.0)
    assert history.rules == []
    oracle.look(140.0)
    assert history.rules == ["d"]


def test_a_signal_to_what_is_still_offered() -> None:
    history = History()
    history.oracle.observe(Offered(1.0, "n1", {"a": "ready"}))
    history.oracle.observe(ToldToStop(2.0, "n1", "a", "SIGTERM"))
    assert history.rules == ["d"]


def two_are_promised() -> History:
    history = History()
    oracle = history.oracle
    for id, slot in (("a", 1), ("b", 2)):
        oracle.observe(Started(0.5, "n1", id, "web", slot))
    wish = ServicePlan(service="web", desired=2)
    history.plan("a", "b")
    history.write("desired/services/web", wish)
    plan = {"number": 1, "hash": "h", "spec": SPEC}
    history.write(
        "planned/services/web", msgspec.convert({"service": "web", "desired": 2, "releases": [plan]}, ServicePlan)
    )
    history.report(a="ready", b="ready")
    return history


def test_fewer_available_than_promised() -> None:
    history = two_are_promised()
    history.report(a="draining", b="ready")
    assert history.rules == ["f"]


def test_fewer_available_on_a_node_whose_agent_is_on_its_way_back() -> None:
    history = two_are_promised()
    for begins in (True, False):
        history.oracle.observe(Trouble(history.now, "n1", "cut off from the store", begins))
    history.report(a="ready", b="ready")
    history.session = None
    history.report(a="ready")
    assert history.rules == []
    history.now += 20.0
    history.report(a="ready", b="ready")
    history.report(b="ready")
    assert history.rules == ["f"], "that is long over: its key should be held"


JOB: dict[str, Any] = {"name": "web", "image": "web", "kind": "job", "job": {"completions": 2}}


def plan_work(history: History, id: str, slot: int) -> None:
    replicas = [Assignment(id=id, service="web", slot=slot, release=1, run=1)]
    history.write("planned/nodes/n1", NodePlan(node="n1", replicas=replicas, specs={"web@1": JOB}), as_leader=True)


def count(history: History, completed: str) -> None:
    runs = [Run(number=1, release=1, completions=2, completed=completed)]
    history.write("planned/services/web", ServicePlan(service="web", kind="job", runs=runs), as_leader=True)


def test_work_that_counts_and_was_never_done() -> None:
    history = History()
    plan_work(history, "a", 1)
    history.oracle.observe(Started(2.0, "n1", "a", "web", 1))
    history.oracle.observe(Ended(3.0, "n1", "a", asked=False, how="exit code 0"))
    count(history, "1")
    assert history.rules == []
    count(history, "1-2")
    assert history.rules == ["j"]


def test_work_that_is_done_again() -> None:
    history = History()
    plan_work(history, "a", 1)
    history.oracle.observe(Started(2.0, "n1", "a", "web", 1))
    history.oracle.observe(Ended(3.0, "n1", "a", asked=False, how="exit code 0"))
    count(history, "1")
    plan_work(history, "b", 2)
    assert history.rules == []
    plan_work(history, "c", 1)
    assert history.rules == ["j"]


@pytest.mark.parametrize(("what", "rules"), [("cable cut", ["k"]), ("agent killed", [])])
def test_a_singleton_beside_itself(what: str, rules: list[str]) -> None:
    history = History()
    history.report()
    history.plan("a", "b", spec={"name": "web", "image": "web", "singleton": True})
    history.oracle.observe(Trouble(5.0, "n2", what, begins=True))
    history.oracle.observe(Started(6.0, "n2", "a", "web", 1))
    history.oracle.observe(Started(7.0, "n1", "b", "web", 1))
    assert history.rules == rules


def test_a_singleton_on_a_node_whose_session_somebody_ends_while_it_cannot_know() -> None:
    history = History()
    history.report()
    history.plan("a", "b", "c", spec={"name": "web", "image": "web", "singleton": True})
    for what in (CUT_OFF, "session n2-0001 ends"):
        history.oracle.observe(Trouble(5.0, "n2", what, begins=True))
    history.oracle.observe(Started(6.0, "n2", "a", "web", 1))
    history.oracle.observe(Started(7.0, "n1", "b", "web", 1))
    assert history.rules == []
    history.oracle.observe(Trouble(8.0, "n2", CUT_OFF, begins=False))
    history.oracle.observe(Started(60.0, "n1", "c", "web", 1))
    assert history.rules[0] == "k", "by then its agent has stopped it"


def test_an_error_that_was_logged() -> None:
    history = History()
    history.oracle.observe(Said(1.0, "n1", "task failed", is_error=True))
    assert history.rules == ["log"]


def test_a_request_that_fails_while_nobody_is_in_trouble() -> None:
    history = History()
    oracle = history.oracle
    oracle.observe(Trouble(10.0, "n1", "power cut", begins=True))
    oracle.observe(Failed(11.0, "n2", 10.5, "during it"))
    oracle.observe(Trouble(20.0, "n1", "power cut", begins=False))
    oracle.observe(Failed(21.0, "n2", 19.5, "begun during it"))
    assert history.rules == []
    oracle.observe(Failed(22.0, "n2", 21.0, "after it"))
    assert history.rules == ["h"]
