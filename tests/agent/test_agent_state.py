"""The agent's heart, driven without a loop: events in, actions out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.agent.events import (
    Action,
    Event,
    Explain,
    Explained,
    Hindered,
    Isolated,
    Listed,
    Moment,
    Planned,
    Prepare,
    Prepared,
    Probe,
    Progress,
    Remembered,
    Remove,
    Removed,
    Signal,
    Signalled,
    Start,
    Started,
    Tick,
    Unprobe,
    Withdraw,
    Withdrawn,
)
from mesh.agent.state import AgentState
from mesh.model import Assignment, NodePlan, ReplicaReport, ReplicaState, Want, may_follow
from mesh.runtime import Instance, InstanceState
from mesh.runtime.health import Verdict

ID = "web-1-0a0a"
WEB: dict[str, Any] = {
    "name": "web", "image": "web:1", "ports": {"http": {"port": 80}}, "tags": ["v2"],
    "stop": {"drain": "5s", "signal": "SIGINT", "grace": "7s"},
}  # fmt: skip
PROBED = {**WEB, "health": {"ready": {"http": "/"}, "alive": {"tcp": "http"}}}


def assignment(id: str = ID, want: Want = Want.RUN) -> Assignment:
    return Assignment(id=id, service="web", slot=1, release=1, want=want)


def plan(*assignments: Assignment, spec: dict[str, Any] | None = None) -> Planned:
    return Planned(NodePlan(node="n1", replicas=list(assignments), specs={"web@1": spec or WEB}))


def instance(state: InstanceState = InstanceState.RUNNING, id: str = ID, **more: Any) -> Instance:
    return Instance(id, "web", 1, 1, state, "172.17.0.2", {"http": 80}, **more)


class Machine:
    """An `AgentState` with a hand-moved clock, and a script's view of it."""

    def __init__(self) -> None:
        self.state = AgentState()
        self.ticks = 100.0
        self.wall = 1_000_000.0

    def handle(self, event: Event) -> list[Action]:
        return self.state.handle(event, Moment(self.wall, self.ticks))

    def seen(self, *instances: Instance) -> list[Action]:
        return self.handle(Listed(instances, self.ticks))

    def wait(self, seconds: float) -> list[Action]:
        self.ticks += seconds
        self.wall += seconds
        return self.handle(Tick())

    def report(self, id: str = ID) -> ReplicaReport:
        return next(report for report in self.state.reports() if report.id == id)

    def running(self, spec: dict[str, Any] | None = None) -> list[Action]:
        """A replica brought up to `Started`."""
        self.seen()
        self.handle(plan(assignment(), spec=spec))
        self.handle(Prepared(ID))
        return self.handle(Started(ID, instance(started=5.0)))


@pytest.fixture
def machine() -> Machine:
    return Machine()


def kinds(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def test_a_replica_lives_its_whole_life(machine: Machine) -> None:
    assert machine.seen() == []
    assert kinds(machine.handle(plan(assignment()))) == ["Prepare"]
    assert machine.report().state == "assigned"
    assert machine.handle(Progress(ID, "2 of 5 layers")) == []
    assert (machine.report().state, machine.report().message) == ("pulling", "2 of 5 layers")
    assert kinds(machine.handle(Prepared(ID))) == ["Start"]
    assert machine.report().state == "starting"
    assert machine.handle(Started(ID, instance(started=5.0))) == []
    report = machine.report()
    assert (report.state, report.address, report.ports, report.tags) == ("ready", "172.17.0.2", {"http": 80}, ["v2"])
    assert (report.since, report.started) == (machine.wall, 5.0)

    assert machine.handle(plan(assignment(want=Want.STOP))) == [Withdraw(ID)]
    assert machine.report().state == "draining"
    assert machine.handle(Withdrawn(ID)) == []
    assert machine.state.wake() == machine.ticks + 5
    assert machine.wait(4.9) == []
    assert machine.wait(0.2) == [Signal(ID, "SIGINT", 7.0)]
    assert machine.handle(Signalled(ID)) == [Remove(ID)]
    assert machine.handle(Removed(ID)) == []
    assert machine.report().state == "stopped"
    assert machine.handle(plan()) == []
    assert machine.state.reports() == []


def test_who_drains_goes_on_to_its_end_though_it_is_wanted_again(machine: Machine) -> None:
    """States go forward: only a successor can take its place."""
    machine.running()
    machine.handle(plan(assignment(want=Want.STOP)))
    assert machine.handle(plan(assignment())) == []
    assert machine.handle(Withdrawn(ID)) == []
    assert machine.wait(5.1) == [Signal(ID, "SIGINT", 7.0)]
    machine.handle(Signalled(ID))
    assert machine.report().state.ended


def test_nothing_begins_before_the_first_listing(machine: Machine) -> None:
    assert machine.handle(plan(assignment())) == []
    assert kinds(machine.seen()) == ["Prepare"]


def test_a_ready_probe_decides_about_traffic(machine: Machine) -> None:
    assert kinds(machine.running(PROBED)) == ["Probe"]
    assert machine.report().state == "running"
    machine.handle(Verdict(ID, ready=True, alive=True))
    assert machine.report().state == "ready"
    machine.handle(Verdict(ID, ready=False, alive=True, message="503 Service Unavailable"))
    assert (machine.report().state, machine.report().message) == ("running", "not ready: 503 Service Unavailable")


def test_a_failed_alive_probe_withdraws_stops_without_drain_and_fails(machine: Machine) -> None:
    machine.running(PROBED)
    machine.handle(Verdict(ID, ready=True))
    assert machine.handle(Verdict(ID, alive=False, message="timed out")) == [Unprobe(ID), Withdraw(ID)]
    assert machine.handle(Withdrawn(ID)) == [Signal(ID, "SIGINT", 7.0)]
    assert machine.handle(Signalled(ID)) == []
    assert (machine.report().state, machine.report().message) == ("failed", "alive probe failed: timed out")
    assert machine.handle(plan()) == [Remove(ID)]
    machine.handle(Removed(ID))
    assert machine.state.reports() == []


@pytest.mark.parametrize(
    ("ended", "message"),
    [
        ({"exit_code": 3}, "exited with code 3: last words"),
        ({"exit_code": 137, "oom": True}, "killed: out of memory (limits.memory): last words"),
        ({"exit_code": 137}, "exited with code 137 (killed by signal 9: out of memory, or by somebody): last words"),
        ({"exit_code": 143}, "exited with code 143 (killed by signal 15): last words"),
    ],
)
def test_a_death_is_failed_and_says_how(machine: Machine, ended: dict[str, Any], message: str) -> None:
    machine.running()
    assert machine.seen(instance(InstanceState.EXITED, **ended)) == [Explain(ID)]
    assert machine.state.explaining
    assert machine.report().state == "failed"
    assert machine.handle(Explained(ID, "last words")) == []
    report = machine.report()
    assert report.message == message
    assert report.exit is not None
    assert report.exit.code == ended["exit_code"]
    assert machine.wait(1000) == [], "a failed replica is never started again"
    assert machine.handle(plan()) == [Remove(ID)]


def test_an_instance_that_somebody_removed_has_vanished(machine: Machine) -> None:
    machine.running()
    assert machine.seen() == []
    assert machine.report().state == "failed"
    assert machine.report().message.startswith("vanished")


def test_a_listing_that_began_before_the_start_says_nothing(machine: Machine) -> None:
    asked = machine.ticks - 1
    machine.running()
    assert machine.handle(Listed((), asked)) == []
    assert machine.report().state == "ready"


def test_a_listing_that_began_before_the_removal_brings_nothing_back(machine: Machine) -> None:
    machine.running()
    machine.handle(plan())
    machine.handle(Withdrawn(ID))
    machine.wait(5)
    machine.handle(Signalled(ID))
    machine.ticks += 1
    machine.handle(Removed(ID))
    stale = Listed((instance(InstanceState.EXITED, exit_code=143),), machine.ticks - 1)
    assert machine.handle(stale) == []
    assert machine.state.reports() == []


def test_a_finished_job_is_stopped_with_its_code(machine: Machine) -> None:
    machine.running({"name": "web", "image": "x", "kind": "job"})
    assert machine.seen(instance(InstanceState.EXITED, exit_code=0)) == []
    assert (machine.report().state, machine.report().message) == ("stopped", "completed")
    assert machine.handle(plan(assignment(want=Want.KEEP))) == [], "its output is of use"
    assert machine.handle(plan()) == [Remove(ID)]


def test_what_has_ended_is_never_started_where_it_is_only_kept(machine: Machine) -> None:
    machine.seen()
    assert machine.handle(plan(assignment(want=Want.KEEP))) == []
    assert machine.report().state == "stopped"


def test_a_start_that_fails_fails_the_replica_and_leftovers_are_removed(machine: Machine) -> None:
    machine.seen()
    machine.handle(plan(assignment()))
    machine.handle(Prepared(ID))
    assert machine.handle(Hindered(ID, "port 80 is taken")) == []
    assert (machine.report().state, machine.report().message) == ("failed", "port 80 is taken")
    assert machine.handle(plan()) == [Remove(ID)]


def test_an_absent_engine_delays_a_start_with_growing_waits(machine: Machine) -> None:
    machine.seen()
    machine.handle(plan(assignment()))
    waits = []
    for _ in range(8):
        assert machine.handle(Hindered(ID, "docker engine does not answer", retry=True)) == []
        wake = machine.state.wake()
        assert wake is not None
        waits.append(wake - machine.ticks)
        assert kinds(machine.wait(waits[-1])) == ["Prepare"]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert machine.report().state == "assigned"


def unanswered(machine: Machine) -> None:
    """A replica whose start got no answer."""
    machine.seen()
    machine.handle(plan(assignment()))
    machine.handle(Prepared(ID))
    machine.ticks += 10
    assert machine.handle(Hindered(ID, "the engine did not answer", retry=True)) == []


def test_a_start_without_an_answer_is_asked_again_only_when_the_engine_has_listed_its_instances(
    machine: Machine,
) -> None:
    unanswered(machine)
    assert machine.wait(100) == []
    assert machine.state.wake() is None
    assert kinds(machine.seen()) == ["Start"]


def test_a_late_start_is_adopted(machine: Machine) -> None:
    unanswered(machine)
    machine.ticks += 1
    assert machine.seen(instance()) == []
    assert machine.report().state == "ready"
    assert machine.handle(plan(assignment(want=Want.STOP))) == [Withdraw(ID)]


@pytest.mark.parametrize("restarted", [False, True])
def test_what_a_late_start_may_still_run_is_removed_before_its_replica_is_told_to_be_stopped(
    machine: Machine, restarted: bool
) -> None:
    unanswered(machine)
    if restarted:
        told = tuple(machine.state.reports())
        machine.state = AgentState()
        machine.handle(Remembered(told))
    assert machine.handle(plan(assignment(want=Want.STOP))) == []
    machine.ticks += 1
    assert machine.seen(instance(InstanceState.CREATED)) == [Remove(ID)]
    assert machine.report().state == "starting"
    assert machine.handle(Removed(ID)) == []
    assert machine.report().state == "stopped"


def test_a_stop_that_fails_is_tried_again(machine: Machine) -> None:
    machine.running()
    machine.handle(plan())
    machine.handle(Withdrawn(ID))
    machine.wait(5)
    assert machine.handle(Hindered(ID, "cannot stop")) == []
    assert kinds(machine.wait(0.5)) == ["Signal"]


def test_a_replica_dropped_before_it_ran_ends_without_a_signal(machine: Machine) -> None:
    machine.seen()
    machine.handle(plan(assignment()))
    assert machine.handle(plan()) == []
    assert machine.handle(Prepared(ID)) == [Remove(ID)]
    machine.handle(Removed(ID))
    assert machine.state.reports() == []


def test_a_replica_dropped_while_it_starts_is_withdrawn_once_it_runs(machine: Machine) -> None:
    machine.seen()
    machine.handle(plan(assignment()))
    machine.handle(Prepared(ID))
    assert machine.handle(plan()) == []
    assert machine.handle(Started(ID, instance())) == [Withdraw(ID)]


def test_dying_while_draining_is_stopping(machine: Machine) -> None:
    machine.running()
    machine.handle(plan(assignment(want=Want.STOP)))
    machine.handle(Withdrawn(ID))
    assert machine.seen(instance(InstanceState.EXITED, exit_code=0)) == [Remove(ID)]
    assert machine.report().state == "stopped"


class TestAdoption:
    def test_what_runs_and_is_planned_goes_on_as_it_was(self, machine: Machine) -> None:
        machine.running(PROBED)
        machine.handle(Verdict(ID, ready=True))
        told = machine.report()
        again = Machine()
        again.handle(Remembered((told,)))
        again.handle(plan(assignment(), spec=PROBED))
        (probe,) = again.seen(instance(started=5.0))
        assert isinstance(probe, Probe)
        assert probe.ready, "in traffic until a probe says otherwise"
        assert again.report() == told

    def test_what_ended_meanwhile_is_failed(self, machine: Machine) -> None:
        machine.running()
        again = Machine()
        again.handle(Remembered((machine.report(),)))
        again.handle(plan(assignment()))
        assert again.seen(instance(InstanceState.EXITED, exit_code=1)) == [Explain(ID)]
        assert again.report().state == "failed"

    def test_what_vanished_meanwhile_is_failed(self, machine: Machine) -> None:
        machine.running()
        again = Machine()
        again.handle(Remembered((machine.report(),)))
        again.handle(plan(assignment()))
        assert again.seen() == []
        assert again.report().message.startswith("vanished")

    def test_what_failed_before_is_not_started_again(self, machine: Machine) -> None:
        machine.running()
        machine.seen()
        again = Machine()
        again.handle(Remembered((machine.report(),)))
        again.handle(plan(assignment()))
        assert again.seen() == []
        assert again.report().state == "failed"

    def test_without_a_plan_everything_is_kept(self, machine: Machine) -> None:
        assert machine.seen(instance()) == []
        assert machine.report().state == "running"
        assert machine.handle(plan(assignment())) == []
        assert machine.report().state == "ready"

    def test_what_no_plan_knows_is_stopped(self, machine: Machine) -> None:
        machine.handle(plan())
        assert machine.seen(instance()) == [Withdraw(ID)]

    def test_remains_that_no_plan_knows_are_removed(self, machine: Machine) -> None:
        machine.handle(plan())
        assert kinds(machine.seen(instance(InstanceState.EXITED, exit_code=1))) == ["Explain"]
        assert machine.handle(Explained(ID, "")) == [Remove(ID)]
        machine.handle(Removed(ID))
        assert machine.state.reports() == []

    def test_an_unfinished_start_is_begun_again(self, machine: Machine) -> None:
        machine.seen()
        machine.handle(plan(assignment()))
        machine.handle(Prepared(ID))
        again = Machine()
        again.handle(Remembered((machine.report(),)))
        again.handle(plan(assignment()))
        assert kinds(again.seen(instance(InstanceState.CREATED))) == ["Prepare"]
        assert kinds(again.handle(Prepared(ID))) == ["Start"]


def test_a_wall_clock_that_jumps_moves_no_deadline(machine: Machine) -> None:
    machine.running()
    machine.handle(plan())
    machine.handle(Withdrawn(ID))
    machine.wall += 86_400
    assert machine.handle(Tick()) == []
    machine.wall -= 10 * 86_400
    assert machine.wait(4.9) == []
    assert kinds(machine.wait(0.2)) == ["Signal"]


def test_a_spec_this_version_cannot_read_fails_only_what_has_not_begun(machine: Machine) -> None:
    machine.running()
    machine.handle(plan(assignment(), assignment("web-2-0b0b"), spec={"name": "web", "image": 7}))
    assert machine.report().state == "ready"


def test_a_missing_spec_is_told(machine: Machine) -> None:
    machine.seen()
    machine.handle(Planned(NodePlan(node="n1", replicas=[assignment()])))
    assert (machine.report().state, machine.report().message) == ("failed", "the node's plan has no spec web@1")


def test_a_singleton_of_an_isolated_node_ends_without_drain_and_fast(machine: Machine) -> None:
    machine.running({**WEB, "singleton": True})
    assert kinds(machine.handle(Isolated())) == ["Withdraw"]
    (end,) = machine.handle(Withdrawn(ID))
    assert isinstance(end, Signal)
    assert end.grace == 2.0
    machine.handle(Signalled(ID))
    assert machine.report().state == "failed"
    assert "cut off from the store" in machine.report().message


def test_anything_else_runs_on_while_its_node_is_isolated(machine: Machine) -> None:
    machine.running()
    assert machine.handle(Isolated()) == []
    assert machine.report().state == "ready"


def test_an_unknown_replica_is_no_error(machine: Machine) -> None:
    assert machine.handle(Removed("gone-1-ffff")) == []


# ── what can never happen ────────────────────────────────────────────────────────────────────

IDS = ["web-1-aaaa", "web-2-bbbb", "web-3-cccc"]


class Life(RuleBasedStateMachine):
    """Any interleaving of plans, listings, verdicts, restarts and action results, against a small model world."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine()
        self.world: dict[str, Instance] = {}  # what the runtime has
        self.planned: dict[str, Want] = {}
        self.spent: set[str] = set()  # ids once planned and dropped: the scheduler never reuses them
        self.open: list[Action] = []  # orders that have not ended yet
        self.states: dict[str, ReplicaState] = {}
        self.acknowledged: set[str] = set()
        self.started: set[str] = set()

    def feed(self, event: Event) -> None:
        for action in self.machine.handle(event):
            if isinstance(action, (Probe, Unprobe)):
                continue
            assert action.id not in {order.id for order in self.open}, "one action at a time for each replica"
            if isinstance(action, Signal) and action.signal != "SIGKILL":
                assert action.id in self.acknowledged, "withdrawn before it is signalled"
            if isinstance(action, Start):
                assert action.id not in self.started, "never started into a second life"
            self.open.append(action)
        self.follow()

    def follow(self) -> None:
        for report in self.machine.state.reports():
            old = self.states.get(report.id, ReplicaState.ASSIGNED)
            assert may_follow(old, report.state), f"{report.id}: {old} -> {report.state}"
            self.states[report.id] = report.state

    def plan(self) -> Planned:
        return plan(*(assignment(id, want) for id, want in self.planned.items()), spec=PROBED)

    @rule(id=st.sampled_from(IDS), want=st.sampled_from([Want.RUN, Want.STOP, None]))
    def replan(self, id: str, want: Want | None) -> None:
        if want is None:
            if self.planned.pop(id, None):
                self.spent.add(id)
        elif id not in self.spent and self.planned.get(id) is not Want.STOP:
            self.planned[id] = want
        self.feed(self.plan())

    @rule()
    def list_all(self) -> None:
        self.feed(Listed(tuple(self.world.values()), self.machine.ticks))

    @rule(seconds=st.floats(0.1, 60))
    def time_passes(self, seconds: float) -> None:
        self.machine.ticks += seconds
        self.feed(Tick())

    @rule(id=st.sampled_from(IDS), ready=st.sampled_from([True, False, None]), alive=st.sampled_from([True, False]))
    def verdict(self, id: str, ready: bool | None, alive: bool) -> None:
        self.feed(Verdict(id, ready, alive, "because"))

    @rule(id=st.sampled_from(IDS), code=st.sampled_from([0, 1, 137]))
    def dies(self, id: str, code: int) -> None:
        if id in self.world:
            self.world[id] = dataclasses.replace(self.world[id], state=InstanceState.EXITED, exit_code=code)

    @rule(id=st.sampled_from(IDS))
    def is_taken_away(self, id: str) -> None:
        self.world.pop(id, None)

    @rule(id=st.sampled_from(IDS))
    def a_late_start_is_carried_out(self, id: str) -> None:
        if id in self.world and self.world[id].state is InstanceState.CREATED:
            assert self.states[id] is ReplicaState.STARTING, "nothing runs of what is told to have ended"
            self.world[id] = instance(id=id)

    @rule(which=st.integers(0, 5), outcome=st.sampled_from(["done", "done", "done", "away", "fault"]))
    def an_action_ends(self, which: int, outcome: str) -> None:
        if not self.open:
            return
        action = self.open.pop(which % len(self.open))
        if outcome == "away" and isinstance(action, Start):
            self.world.setdefault(action.id, instance(InstanceState.CREATED, action.id))
        if outcome != "done" and not isinstance(action, (Withdraw, Explain)):
            self.feed(Hindered(action.id, "no", retry=outcome == "away"))
            return
        match action:
            case Prepare(id):
                self.feed(Prepared(id))
            case Start(id):
                self.started.add(id)
                if id not in self.world or self.world[id].state is InstanceState.CREATED:
                    self.world[id] = instance(id=id)
                self.feed(Started(id, self.world[id]))
            case Withdraw(id):
                self.acknowledged.add(id)
                self.feed(Withdrawn(id))
            case Signal(id):
                if id in self.world:
                    self.world[id] = dataclasses.replace(self.world[id], state=InstanceState.EXITED, exit_code=0)
                self.feed(Signalled(id))
            case Explain(id):
                self.feed(Explained(id, "words"))
            case Remove(id):
                self.world.pop(id, None)
                self.feed(Removed(id))

    @rule()
    def the_agent_restarts(self) -> None:
        told = tuple(self.machine.state.reports())
        ticks = self.machine.ticks
        self.machine, self.open = Machine(), []
        self.machine.ticks = ticks
        self.feed(Remembered(told))
        self.feed(self.plan())

    @invariant()
    def nothing_is_forgotten_while_it_runs(self) -> None:
        for id in self.planned:
            if self.machine.state._seen:
                assert id in self.machine.state.replicas

    def teardown(self) -> None:
        """With the faults over, running equals planned, and the machine comes to rest."""
        for _ in range(60):
            self.list_all()
            while self.open:
                self.an_action_ends(0, "done")
            self.time_passes(60)
        assert not self.open
        running = {id for id, found in self.world.items() if found.state is InstanceState.RUNNING}
        wanted = {id for id, want in self.planned.items() if want is Want.RUN}
        alive = {report.id for report in self.machine.state.reports() if report.state.alive}
        assert running == alive
        assert running <= wanted
        assert {report.id for report in self.machine.state.reports()} == self.planned.keys()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
