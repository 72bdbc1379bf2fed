"""A host's engine: runs instances that behave as their image's tag says, and goes wrong in an engine's ways.

`web:7-crash`: the seventh image of web, whose instances crash. What an agent asks for goes on when the agent is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from mesh.runtime import ExecResult, Facts, Instance, InstanceState, Launch, RuntimeFault, RuntimeUnavailable
from mesh.spec.service import ServiceSpec
from tests.fakes.runtime import FakeRuntime, Ground, Program
from tests.simulation.clock import Process, VirtualLoop
from tests.simulation.history import Ended, Fact, Started, ToldToStop

_T = TypeVar("_T")

PATIENCE = 10.0
"""Seconds that an agent waits for its engine."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How instances of an image behave; times in seconds."""

    starts_in: float = 0.1
    ready_after: float | None = 0.3
    ends_after: float | None = None
    exits: int = 1  # with this code
    refuses: bool = False  # cannot be started at all
    is_stubborn: bool = False  # does not heed SIGTERM

    @property
    def is_good(self) -> bool:
        return self.ready_after is not None and self.ends_after is None and not self.refuses

    @property
    def finishes(self) -> bool:
        """As a job's should."""
        return self.ends_after is not None and not self.exits


BEHAVIOURS = {
    "good": Behaviour(),
    "slow": Behaviour(starts_in=2.0, ready_after=4.0),
    "stubborn": Behaviour(is_stubborn=True),
    "crash": Behaviour(ends_after=0.4),
    "late": Behaviour(ends_after=6.0),
    "never": Behaviour(ready_after=None),
    "refused": Behaviour(refuses=True),
    "brief": Behaviour(ends_after=1.5, exits=0),
    "long": Behaviour(starts_in=1.0, ends_after=9.0, exits=0),
}
GOOD = [name for name, behaviour in BEHAVIOURS.items() if behaviour.is_good]
FINISHING = [name for name, behaviour in BEHAVIOURS.items() if behaviour.finishes]
BAD = [name for name in BEHAVIOURS if name not in (*GOOD, *FINISHING)]


def behaviour_of(spec: ServiceSpec) -> Behaviour:
    return BEHAVIOURS[(spec.image or "").rpartition("-")[2]]


class Engine(FakeRuntime):
    """`hung`: takes requests and answers none; `unready`: instances whose health check fails for now."""

    def __init__(self, loop: VirtualLoop, node: str, ground: Ground, record: Callable[[Fact], None]) -> None:
        super().__init__(ground)
        self.process = Process(f"{node} engine")
        self.unready: set[str] = set()
        self._loop = loop
        self._node = node
        self._record = record
        self._asked: set[str] = set()

    # ── what fate does ───────────────────────────────────────────────────────────────────────

    def running(self) -> list[str]:
        return sorted(id for id, one in self.ground.instances.items() if one.state is InstanceState.RUNNING)

    def end(self, id: str, code: int | None = 1, *, oom: bool = False) -> None:
        if id in self.ground.instances:  # else it vanished while somebody waited for its end
            super().end(id, code, oom=oom)

    def crash_all(self) -> None:
        for id in self.running():
            self.end(id, 137)

    def vanish(self, id: str) -> None:
        self._note_end(id, "vanished")
        super().vanish(id)

    # ── the runtime ──────────────────────────────────────────────────────────────────────────

    async def create(self, launch: Launch) -> Instance:
        """The first half of a start: what is there already stays as it is."""
        self._require_engine()
        assignment = launch.assignment
        if assignment.id not in self.ground.instances:
            self.ground.launches[assignment.id] = launch
            self.ground.outputs[assignment.id] = b""
            self._changed(Instance(assignment.id, assignment.service, assignment.slot, assignment.release,
                                   InstanceState.CREATED, handle=f"{next(self.ground.numbers)}",
                                   singleton=launch.spec.singleton))  # fmt: skip
        return self.ground.instances[assignment.id]

    async def start_created(self, made: Instance) -> Instance:
        """The second: of a container that is no more nothing is started, however late it is asked for."""
        self._require_engine()
        behaviour = behaviour_of(self.ground.launches[made.id].spec)
        await asyncio.sleep(behaviour.starts_in)
        now = self.ground.instances.get(made.id)
        if now is None or now.handle != made.handle:
            raise RuntimeFault(f"{made.id}: there is no such container")
        if now.state is not InstanceState.CREATED:
            return now
        if behaviour.refuses:
            await self.remove(made.id)
            raise RuntimeFault("exec format error")
        ports = {name: next(self.ground.numbers) for name in self.ground.launches[made.id].spec.ports}
        self._changed(replace(now, state=InstanceState.RUNNING, ports=ports))
        if behaviour.ends_after is not None:
            self._loop.call_later(behaviour.ends_after, self.end, made.id, behaviour.exits)
        return self.ground.instances[made.id]

    async def signal_and_wait(self, id: str, signal: str, grace: float) -> None:
        self._require_engine()
        self._record(ToldToStop(self._loop.time(), self._node, id, signal))
        self._asked.add(id)
        await super().signal_and_wait(id, signal, grace)

    async def remove(self, id: str) -> None:
        self._require_engine()
        self._asked.add(id)
        self._note_end(id, "removed")
        await super().remove(id)

    async def exec(self, id: str, command: Sequence[str], *, timeout: float | None = None) -> ExecResult:
        instance = self._require(id)
        if instance.state is not InstanceState.RUNNING:
            raise RuntimeFault(f"{id} does not run")
        ready_after = behaviour_of(self.ground.launches[id].spec).ready_after
        age = self._loop.time() - instance.started
        is_ready = ready_after is not None and age >= ready_after and id not in self.unready
        return ExecResult(0 if is_ready else 1, b"")

    # ── inside ───────────────────────────────────────────────────────────────────────────────

    def _program(self, launch: Launch) -> Program:
        return Program(ignores=frozenset(["SIGTERM"]) if behaviour_of(launch.spec).is_stubborn else frozenset())

    def _changed(self, instance: Instance) -> None:
        if instance.state is InstanceState.RUNNING:
            instance = replace(instance, started=self._loop.time(), address=self._node)
            spec = self.ground.launches[instance.id].spec
            ports = frozenset(port.host_port for port in spec.ports.values() if port.host_port)
            self._record(Started(self._loop.time(), self._node, instance.id, instance.service, instance.slot,
                                 ports, bool(spec.volumes)))  # fmt: skip
        else:
            self._note_end(instance.id, f"exit code {instance.exit_code}")
        super()._changed(instance)

    def _note_end(self, id: str, how: str) -> None:
        known = self.ground.instances.get(id)
        if known is not None and known.state is InstanceState.RUNNING:
            self._record(Ended(self._loop.time(), self._node, id, id in self._asked, how))


class EngineLink:
    """An agent's connection to its engine: `mesh.runtime.Runtime`."""

    def __init__(self, loop: VirtualLoop, engine: Engine) -> None:
        self._loop = loop
        self._engine = engine

    async def _ask(self, work: Coroutine[Any, Any, _T], patience: float = PATIENCE) -> _T:
        answer: asyncio.Future[_T] = self._loop.create_future()

        def deliver(task: asyncio.Task[_T]) -> None:
            error = None if task.cancelled() else task.exception()
            if task.cancelled() or answer.done():
                return
            if error:
                answer.set_exception(error)
            else:
                answer.set_result(task.result())

        def give_up() -> None:
            if not answer.done():
                answer.set_exception(RuntimeUnavailable(f"the engine did not answer within {patience:g} s"))

        self._loop.spawn(self._engine.process, work, "engine").add_done_callback(deliver)
        timer = self._loop.later(patience, give_up)
        try:
            return await answer
        finally:
            timer.cancel()

    async def facts(self) -> Facts:
        return await self._ask(self._engine.facts())

    async def instances(self) -> list[Instance]:
        return await self._ask(self._engine.instances())

    async def prepare(self, spec: ServiceSpec, progress: Callable[[str], None]) -> None:
        await self._ask(self._engine.prepare(spec, progress))

    async def start(self, launch: Launch) -> Instance:
        made = await self._ask(self._engine.create(launch))
        return await self._ask(self._engine.start_created(made))

    async def signal_and_wait(self, id: str, signal: str, grace: float) -> None:
        await self._ask(self._engine.signal_and_wait(id, signal, grace), PATIENCE + grace)

    async def remove(self, id: str) -> None:
        await self._ask(self._engine.remove(id))

    async def events(self) -> AsyncGenerator[str, None]:
        async with contextlib.aclosing(self._engine.events()) as events:
            async for id in events:
                yield id

    async def logs(self, id: str, *, follow: bool = False, tail: int | None = None) -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(self._engine.logs(id, follow=follow, tail=tail)) as lines:
            async for line in lines:
                yield line

    async def exec(self, id: str, command: Sequence[str], *, timeout: float | None = None) -> ExecResult:
        return await self._ask(self._engine.exec(id, command, timeout=timeout))

    async def close(self) -> None:
        """Nothing to close."""
