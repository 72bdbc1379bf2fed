"""What becomes of a cluster, drawn from a seed: first only operators act, then fate too, then all heals."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

from tests.simulation.cluster import Cluster, Host, SchedulerSeat
from tests.simulation.operators import Action, Operators
from tests.simulation.oracle import CUT_OFF, LOSSY

PAUSES = (0.0, 0.02, 0.3, 1.0, 3.0, 8.0, 20.0)
DURATIONS = (0.1, 1.0, 4.0, 12.0, 35.0)
SLEEPS = (4.0, 25.0, 35.0, 45.0)
"""Of a scheduler: rather longer than its session lives."""
ISOLATIONS = (35.0, 60.0)
STEPS = 400
"""The most steps of a process before an ambush strikes it: all of an agent's start, and some more."""


class Chaos:
    """Operators and fate. Every fault ends by itself after a while, or at the latest in `heal`."""

    def __init__(self, cluster: Cluster, seed: int, extras: frozenset[str]) -> None:
        self._cluster = cluster
        self._random = random.Random(f"chaos {seed}")
        self._extras = extras
        self.operators = Operators(cluster, self._random, extras)
        self._cures: dict[tuple[str, str], Callable[[], None]] = {}

    async def run(self, calm_steps: int, steps: int) -> None:
        self.operators.begin()
        await asyncio.sleep(30.0)
        for _ in range(calm_steps):
            self._draw(self.operators.actions)()
            await asyncio.sleep(self._random.choice(PAUSES))
        for _ in range(steps):
            self._draw([*self.operators.actions, *self._faults])()
            await asyncio.sleep(self._random.choice(PAUSES))

    def heal(self) -> None:
        """An end to all trouble: what is broken is mended, and what is wished for can run."""
        for key in list(self._cures):
            self._cure(key)
        self.operators.heal()

    def _draw(self, actions: list[Action]) -> Callable[[], None]:
        return self._random.choices([action for _, action in actions], [weight for weight, _ in actions])[0]

    @property
    def _faults(self) -> list[Action]:
        return [
            (3, self._power_cut),
            (3, self._kill_agent),
            (4, self._ambush_agent),
            (2, self._restart_agent),
            (2, self._freeze),
            (2, self._stop_signal),
            (5, self._break_link),
            (3, self._break_cable),
            (2, self._hang_engine),
            (2, self._engine_away),
            (2, self._restart_engine),
            (3, self._crash),
            (2, self._vanish),
            (2, self._flap),
            (2, self._kill_scheduler),
            (2, self._ambush_scheduler),
            (3, self._pause_scheduler),
            (3, self._break_scheduler_link),
            (2, self._store_down),
            (2, self._end_session),
            *([(6, self._isolate_singleton)] if "singletons" in self._extras else []),
        ]

    def _fault(
        self,
        who: str,
        what: str,
        begin: Callable[[], None],
        end: Callable[[], None],
        durations: Sequence[float] = DURATIONS,
    ) -> None:
        """A fault that lasts a while; the same one twice at once is one."""
        if (who, what) in self._cures:
            return
        self._cluster.trouble(who, what, True)
        begin()
        self._cures[who, what] = end
        self._cluster.loop.later(self._random.choice(durations), self._cure, (who, what))

    def _cure(self, key: tuple[str, str]) -> None:
        if end := self._cures.pop(key, None):
            end()
            self._cluster.trouble(*key, False)

    def _host(self) -> Host:
        return self._random.choice(list(self._cluster.hosts.values()))

    def _scheduler(self) -> SchedulerSeat:
        """Rather the one that leads."""
        seats = list(self._cluster.schedulers.values())
        leading = [seat for seat in seats if self._cluster.middle.leads(seat.name)]
        return self._random.choice(leading if leading and self._random.random() < 0.7 else seats)

    def _power_cut(self) -> None:
        host = self._host()
        seat = self._cluster.schedulers.get(f"s{host.name[1:]}")  # it runs on the same machine

        def begin() -> None:
            host.power_off()
            if seat:
                seat.kill()

        def end() -> None:
            host.power_on()
            if seat:
                seat.start()

        self._fault(host.name, "power cut", begin, end)

    def _kill_agent(self) -> None:
        host = self._host()
        self._fault(host.name, "agent killed", host.kill_agent, host.start_agent)

    def _restart_agent(self) -> None:
        host = self._host()
        self._fault(host.name, "agent stopped", host.stop_agent, host.start_agent)

    def _ambush_agent(self) -> None:
        """It is restarted, and killed after so many steps: at any await of its start, or a little later."""
        host, steps = self._host(), self._random.randint(1, STEPS)

        def begin() -> None:
            host.kill_agent()
            host.start_agent()
            if host.process is not None:
                host.process.ambush = (steps, host.kill_agent)

        self._fault(host.name, f"agent killed at step {steps}", begin, lambda: _restarted(host))

    def _freeze(self) -> None:
        host = self._host()
        engine, agent = host.engine.process, host.process

        def begin() -> None:
            engine.paused = True
            if agent:
                agent.paused = True

        def end() -> None:
            for process in filter(None, (engine, agent)):
                self._cluster.loop.resume(process)

        self._fault(host.name, "frozen", begin, end)

    def _stop_signal(self) -> None:
        host = self._host()
        if process := host.process:
            self._fault(host.name, "agent paused", lambda: setattr(process, "paused", True),
                        lambda: self._cluster.loop.resume(process))  # fmt: skip

    def _break_link(self) -> None:
        host = self._host()
        what, change = self._link_fault()
        self._fault(host.name, what, lambda: vars(host.link).update(change), host.link.heal)

    def _break_cable(self) -> None:
        """To everybody: the store and the peers."""
        candidates: list[Host | SchedulerSeat] = [self._host(), self._host(), self._scheduler()]
        one = self._random.choice(candidates)
        faults: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
            "cable cut": ({"deaf": True, "mute": True}, {"cut": True}),
            "deaf": ({"deaf": True}, {"cut": True}),
            "mute": ({"mute": True}, {"cut": True}),
            "cut off from its peers": ({"deaf": True, "mute": True}, {}),
            "loses 20 % of its packets": ({"loss": 0.2}, {"delay": 0.1}),
        }
        what, (cable, link) = self._random.choice(list(faults.items()))

        def begin() -> None:
            vars(one.cable).update(cable)
            vars(one.link).update(link)

        def end() -> None:
            one.cable.heal()
            one.link.heal()

        self._fault(one.name, what, begin, end)

    def _isolate_singleton(self) -> None:
        """For longer than its node's session lives, so that it is replaced."""
        for host in self._cluster.hosts.values():
            if any(id.startswith("sole-") for id in host.engine.running()):
                self._fault(host.name, CUT_OFF, lambda link=host.link: setattr(link, "cut", True),  # type: ignore[misc]
                            host.link.heal, ISOLATIONS)  # fmt: skip
                return

    def _break_scheduler_link(self) -> None:
        seat = self._scheduler()
        what, change = self._link_fault()
        self._fault(seat.name, what, lambda: vars(seat.link).update(change), seat.link.heal)

    def _link_fault(self) -> tuple[str, dict[str, Any]]:
        faults: dict[str, dict[str, Any]] = {
            CUT_OFF: {"cut": True},
            LOSSY: {"loss": 0.3},
            "is slow": {"delay": self._random.choice([0.2, 1.0])},
            "sees the store late": {"lag": 4.0},
            "sends twice": {"repeat": 0.4},
        }
        return self._random.choice(list(faults.items()))

    def _hang_engine(self) -> None:
        host = self._host()
        engine = host.engine.process
        self._fault(host.name, "engine hangs", lambda: setattr(engine, "paused", True),
                    lambda: self._cluster.loop.resume(engine))  # fmt: skip

    def _engine_away(self) -> None:
        host = self._host()
        engine = host.engine
        self._fault(host.name, "engine away", lambda: setattr(engine, "available", False),
                    lambda: setattr(engine, "available", True))  # fmt: skip

    def _restart_engine(self) -> None:
        """Without live-restore: what ran is killed."""
        host = self._host()
        engine = host.engine

        def begin() -> None:
            engine.available = False
            engine.crash_all()

        self._fault(host.name, "engine restarts", begin, lambda: setattr(engine, "available", True))

    def _instance(self) -> tuple[Host, str] | None:
        found = [(host, id) for host in self._cluster.hosts.values() if host.is_on for id in host.engine.running()]
        return self._random.choice(found) if found else None

    def _crash(self) -> None:
        if found := self._instance():
            host, id = found
            self._fault(host.name, f"{id} crashes", lambda: host.engine.end(id, 1), lambda: None)

    def _vanish(self) -> None:
        if found := self._instance():
            host, id = found
            self._fault(host.name, f"{id} is removed by somebody", lambda: host.engine.vanish(id), lambda: None)

    def _flap(self) -> None:
        if found := self._instance():
            host, id = found
            unready = host.engine.unready
            self._fault(host.name, f"{id} is unready", lambda: unready.add(id), lambda: unready.discard(id))

    def _kill_scheduler(self) -> None:
        seat = self._scheduler()
        self._fault(seat.name, "killed", seat.kill, seat.start)

    def _ambush_scheduler(self) -> None:
        seat, steps = self._scheduler(), self._random.randint(1, STEPS)

        def begin() -> None:
            if seat.process:
                seat.process.ambush = (seat.process.steps + steps, seat.kill)

        self._fault(seat.name, f"killed after {steps} steps", begin, lambda: _restarted(seat))

    def _pause_scheduler(self) -> None:
        """It wakes up and still believes that it leads."""
        seat = self._scheduler()
        if process := seat.process:
            self._fault(seat.name, "paused", lambda: setattr(process, "paused", True),
                        lambda: self._cluster.loop.resume(process), SLEEPS)  # fmt: skip

    def _store_down(self) -> None:
        middle = self._cluster.middle
        self._fault("store", "no quorum", lambda: middle.set_down(True), lambda: middle.set_down(False))

    def _end_session(self) -> None:
        middle = self._cluster.middle
        if middle.sessions:
            session = self._random.choice(sorted(middle.sessions))
            who = middle.owners[session]
            self._fault(who, f"session {session} ends", lambda: middle.end_session(session), lambda: None)


def _restarted(one: Host | SchedulerSeat) -> None:
    """Runs, if its ambush has killed it; else is spared."""
    if one.process is not None:
        one.process.ambush = None
    if isinstance(one, Host):
        one.start_agent()
    else:
        one.start()
