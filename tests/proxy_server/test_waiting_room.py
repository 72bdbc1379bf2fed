"""The waiting room without a socket: whatever comes in whichever order, all are counted, bounded and served at last."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mesh.proxy.backend import Backend
from mesh.proxy.limit import Gate
from mesh.proxy.opening import FIRST, Opening
from mesh.proxy.waiting import Hold, WaitingRoom
from mesh.table import Endpoint, TablePort, TableService

IN_FLIGHT, QUEUE, HELD = 3, 2, 6
MOST_BYTES = 40


def service(*states: str, desired: int = 1, asleep: bool = False) -> TableService:
    return TableService(
        desired=desired, asleep=asleep, ports={"http": TablePort(port=80, protocol="http")},
        traffic={"limits": {"in_flight": IN_FLIGHT, "queue": QUEUE, "held": HELD}},
        endpoints=[
            Endpoint(id=f"web-{slot}", slot=slot, node="n1", address="127.0.0.1", state=state, ports={"http": 1})
            for slot, state in enumerate(states, 1)
        ],
    )  # fmt: skip


class Request:
    """Behaves as an exchange does: `where` is held, queued, inside, or what came of it."""

    def __init__(self, backend: Backend, room: WaitingRoom, size: int) -> None:
        self.backend = backend
        self.room = room
        self.size = size
        self.where = ""
        self._hold: Hold | None = None

    def start(self) -> None:
        if self.backend.gate.free > 0:
            self.backend.gate.free -= 1
            self._enter()
        elif self.backend.asleep:
            self._wait_for_start()
        else:
            self.where = "queued" if self.backend.gate.wait(self) else "overflow"

    def admit(self) -> None:
        self._end_hold()
        self._enter()

    def _enter(self) -> None:
        self.where = "inside"
        if self.backend.pick((), time.monotonic()) is None:
            self.backend.gate.leave()
            self.where = "no-endpoint"
            if self.backend.asleep:
                self._wait_for_start()

    def _wait_for_start(self) -> None:
        self._hold = self.room.enter(self, self.backend, self.size, 0.0)
        self.where = "held" if self._hold else "overflow"

    def _end_hold(self) -> None:
        if self._hold is not None:
            self._hold.end(1.0)
            self._hold = None

    def leave(self) -> None:
        self.backend.gate.give_up(self)
        self._end_hold()
        self.where = "left"

    def done(self) -> None:
        self.where = "served"
        self.backend.gate.leave()


class WaitingMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.room = WaitingRoom(most=5, most_bytes=MOST_BYTES)
        self.backend = Backend("web", "http")
        self.requests: list[Request] = []
        self.table(service(desired=0, asleep=True))

    def table(self, changed: TableService | None) -> None:
        self.backend.update(changed)
        self.backend.settle()

    def at(self, *where: str) -> list[Request]:
        return [each for each in self.requests if each.where in where]

    @rule(size=st.integers(0, 20), count=st.integers(1, 4))
    def come(self, size: int, count: int) -> None:
        for _ in range(count):
            request = Request(self.backend, self.room, size)
            self.requests.append(request)
            request.start()

    @precondition(lambda self: self.at("held", "queued"))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.at("held", "queued"))).leave()

    @precondition(lambda self: self.at("inside"))
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.at("inside"))).done()

    @rule(states=st.lists(st.sampled_from(["ready", "running", "suspect"]), max_size=2), asleep=st.booleans())
    def changes(self, states: list[str], asleep: bool) -> None:
        """It sleeps, with its last endpoints or without; or it is wanted, with some endpoints or none."""
        self.table(service(*states, desired=int(not asleep), asleep=asleep))

    @rule(gone=st.booleans())
    def nobody_wants_it(self, gone: bool) -> None:
        self.table(None if gone else service(desired=0))
        assert not self.at("held", "queued"), "an operator's zero keeps nobody waiting"

    @rule()
    def step(self) -> None:
        self.backend.open_further()

    @invariant()
    def all_are_counted(self) -> None:
        held, queued = self.at("held"), self.at("queued")
        stats = self.backend.stats
        assert self.room.count == len(held) == stats.queued
        assert self.room.bytes == sum(each.size for each in held)
        assert (stats.held.in_flight if stats.held else 0) == len(held)
        assert self.backend.gate.waiting == len(held) + len(queued)
        assert self.room.services() == ({"web": len(held)} if held and self.backend.asleep else {})

    @invariant()
    def bounds_hold(self) -> None:
        assert self.room.count <= 5
        assert self.room.bytes <= MOST_BYTES
        assert len(self.at("inside")) <= IN_FLIGHT

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        gate = self.backend.gate
        assert gate.free <= 0 or not gate.waiting, "a place is free"
        if self.backend.asleep:
            assert not self.at("queued"), "all are told of"
        if self.backend.opening is None and not self.backend.asleep:
            assert gate.free == IN_FLIGHT - len(self.at("inside"))

    def teardown(self) -> None:
        """The service starts, and whoever still waits is served."""
        waiting = self.at("held", "queued", "inside")
        self.table(service("ready"))
        while busy := self.at("inside"):
            busy[0].done()
            self.backend.open_further()
        assert {each.where for each in waiting} <= {"served"}
        assert (self.room.count, self.room.bytes, self.backend.gate.waiting) == (0, 0, 0)
        assert self.backend.opening is None


TestWaiting = WaitingMachine.TestCase


# ── how far the gate opens


class Guest:
    def __init__(self, inside: list[Guest]) -> None:
        self.inside = inside

    def admit(self) -> None:
        self.inside.append(self)


def drained(line: int, done_per_step: int) -> list[int]:
    """How many are inside at each step until all of a line have been served."""
    gate, inside, widths = Gate(0, line), list[Guest](), list[int]()
    for _ in range(line):
        assert gate.wait(Guest(inside))
    opening = Opening(gate, 1)
    gate.resize(opening.width, line)
    while inside:
        widths.append(len(inside))
        for _ in range(min(done_per_step, 10 * len(inside))):  # a server that takes a tenth of a step for one
            if inside:
                inside.pop()
                gate.leave()
        opening.step()
        gate.resize(opening.width, line)
        assert len(widths) < 1000
    return widths


def test_a_server_that_answers_one_after_another_is_not_overrun() -> None:
    assert max(drained(200, 20)) <= 4 * FIRST


def test_one_whose_answers_are_slow_gets_all_within_a_few_steps() -> None:
    gate, inside = Gate(0, 200), list[Guest]()
    for _ in range(200):
        gate.wait(Guest(inside))
    opening = Opening(gate, 1)
    widths = []
    for _ in range(8):
        gate.resize(opening.width, 200)
        widths.append(len(inside))
        opening.step()
    assert widths == [2, 4, 8, 16, 32, 64, 128, 200]


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_line_always_comes_to_its_end(line: int, done: int) -> None:
    assert drained(line, done)[0] == min(line, FIRST)
