"""A runtime in memory: instances without processes, faults at will. It passes the contract of the real ones."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mesh.aio import Pending
from mesh.model import Capacity
from mesh.runtime import (
    ExecResult,
    Facts,
    ImageMissing,
    Instance,
    InstanceState,
    Launch,
    RuntimeFault,
    RuntimeUnavailable,
)
from mesh.spec.service import ServiceSpec

NUMBERS = {number.name: number.value for number in signal.Signals}


@dataclass(frozen=True)
class Program:
    """What a program would do: say something, then end, or run on until a signal that it heeds."""

    says: Callable[[Mapping[str, str]], bytes] = lambda env: b""
    code: int | None = None  # None: runs on
    heeds: Mapping[str, int] = field(default_factory=dict)  # signal → exit code, instead of dying of it
    ignores: frozenset[str] = frozenset()


@dataclass
class Ground:
    """Where instances live: shared by runtimes that stand for one agent's successive lives."""

    programs: dict[str, Program] = field(default_factory=dict)  # by the last word of the command, or the image
    images: set[str] | None = None  # None: every image is there
    instances: dict[str, Instance] = field(default_factory=dict)
    launches: dict[str, Launch] = field(default_factory=dict)
    outputs: dict[str, bytes] = field(default_factory=dict)
    listeners: list[Pending] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(10_000))


class FakeRuntime:
    """`mesh.runtime.Runtime` in memory.

    Faults: `available = False`; `start_fault`, the message of the next starts' `RuntimeFault`; `start_delay` and
    `prepare_delay` in seconds; `end(id, code)` ends an instance by itself; `vanish(id)` takes it away without a trace.
    """

    def __init__(self, ground: Ground | None = None, *, name: str = "fake", capacity: Capacity | None = None) -> None:
        self.ground = ground or Ground()
        self.available = True
        self.start_fault = ""
        self.start_delay = 0.0
        self.prepare_delay = 0.0
        self.signals: list[tuple[str, str]] = []  # (id, signal), in order
        self._facts = Facts(name, "1", capacity or Capacity(cpu=4000, memory=8 * 2**30))

    # ── what tests do to it ──────────────────────────────────────────────────────────────────

    def end(self, id: str, code: int | None = 1, *, oom: bool = False) -> None:
        instance = self.ground.instances[id]
        if instance.state is InstanceState.RUNNING:
            self._changed(replace(instance, state=InstanceState.EXITED, exit_code=code, oom=oom))

    def vanish(self, id: str) -> None:
        del self.ground.instances[id]
        self._tell(id)

    def say(self, id: str, output: bytes) -> None:
        self.ground.outputs[id] += output

    # ── the protocol ─────────────────────────────────────────────────────────────────────────

    async def facts(self) -> Facts:
        self._require_engine()
        return self._facts

    async def instances(self) -> list[Instance]:
        self._require_engine()
        return list(self.ground.instances.values())

    async def prepare(self, spec: ServiceSpec, progress: Callable[[str], None]) -> None:
        self._require_engine()
        if self.ground.images is not None and spec.image not in self.ground.images:
            progress(f"pulling image {spec.image}")
            await asyncio.sleep(self.prepare_delay)
            raise ImageMissing(f"image {spec.image} is neither here nor to be had")

    async def start(self, launch: Launch) -> Instance:
        self._require_engine()
        id = launch.assignment.id
        if id not in self.ground.instances:
            await asyncio.sleep(self.start_delay)
            self._require_engine()
        if existing := self.ground.instances.get(id):
            return existing
        if self.start_fault:
            raise RuntimeFault(self.start_fault)
        program = self._program(launch)
        instance = Instance(
            id=id,
            service=launch.assignment.service,
            slot=launch.assignment.slot,
            release=launch.assignment.release,
            state=InstanceState.RUNNING,
            singleton=launch.spec.singleton,
            address="127.0.0.1",
            ports={name: next(self.ground.numbers) for name in launch.spec.ports},
            started=time.time(),
            handle=f"fake-{next(self.ground.numbers)}",
        )
        self.ground.launches[id] = launch
        self.ground.outputs[id] = program.says(launch.env)
        self._changed(instance)
        if program.code is not None:
            self.end(id, program.code)
        return self.ground.instances[id]

    async def signal_and_wait(self, id: str, signal: str, grace: float) -> None:
        self._require_engine()
        if signal not in NUMBERS:
            raise RuntimeFault(f"there is no signal {signal}")
        if id not in self.ground.instances:
            return
        self.signals.append((id, signal))
        program = self._program(self.ground.launches[id])
        if signal in program.ignores:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._until_ended(id)
            signal = "SIGKILL"
        self.end(id, program.heeds.get(signal, 128 + NUMBERS[signal]))

    async def remove(self, id: str) -> None:
        self._require_engine()
        if self.ground.instances.pop(id, None):
            self._tell(id)

    async def events(self) -> AsyncGenerator[str, None]:
        pending = Pending()
        self.ground.listeners.append(pending)
        try:
            yield ""
            while True:
                for id in await pending.take():
                    yield id
        finally:
            self.ground.listeners.remove(pending)

    async def logs(self, id: str, *, follow: bool = False, tail: int | None = None) -> AsyncGenerator[bytes, None]:
        self._require(id)
        lines = self.ground.outputs[id].splitlines(keepends=True)
        for line in lines if tail is None else lines[len(lines) - tail :]:
            yield line
        if follow:
            said = len(self.ground.outputs[id])
            await self._until_ended(id)
            for line in self.ground.outputs[id][said:].splitlines(keepends=True):
                yield line

    async def exec(self, id: str, command: Sequence[str], *, timeout: float | None = None) -> ExecResult:
        if self._require(id).state is not InstanceState.RUNNING:
            raise RuntimeFault(f"{id} does not run")
        program = self.ground.programs.get(command[-1], Program(code=0))
        if program.code is None:
            await asyncio.sleep(timeout or 0)
            raise RuntimeFault(f"{command[0]} in {id} did not end within {timeout} s")
        return ExecResult(program.code, program.says(self.ground.launches[id].env))

    async def close(self) -> None:
        pass

    # ── inside ───────────────────────────────────────────────────────────────────────────────

    def _require_engine(self) -> None:
        if not self.available:
            raise RuntimeUnavailable("the fake engine does not answer")

    def _require(self, id: str) -> Instance:
        self._require_engine()
        if id not in self.ground.instances:
            raise RuntimeFault(f"{id} is not on this node")
        return self.ground.instances[id]

    def _program(self, launch: Launch) -> Program:
        return self.ground.programs.get((launch.spec.command or [launch.spec.image or ""])[-1], Program())

    def _changed(self, instance: Instance) -> None:
        self.ground.instances[instance.id] = instance
        self._tell(instance.id)

    def _tell(self, id: str) -> None:
        for pending in self.ground.listeners:
            pending.add(id)

    async def _until_ended(self, id: str) -> None:
        pending = Pending()
        self.ground.listeners.append(pending)
        try:
            while id in self.ground.instances and self.ground.instances[id].state is InstanceState.RUNNING:
                await pending.take()
        finally:
            self.ground.listeners.remove(pending)
