"""The runtimes under one contract, and the programs that the contract runs on each of them."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.model import Assignment
from mesh.runtime import File, Instance, InstanceState, Launch, Runtime
from mesh.runtime.docker import DockerRuntime
from mesh.runtime.process import ProcessRuntime
from mesh.spec.service import parse_spec
from tests.fakes.runtime import FakeRuntime, Ground, Program
from tests.patience import until

DEADLINE = 20.0

SLEEP = "exec sleep 1000"
GREET = 'echo "hello $NAME from $MESH_REPLICA"; exec sleep 1000'
FAIL = "echo going; exit 3"
STUBBORN = 'trap "" TERM; echo deaf; while :; do sleep 0.1; done'
POLITE = 'trap "exit 7" TERM; echo ready; while :; do sleep 0.02; done'
SHOW_FILES = 'cd "$MESH_FILES/etc/web" && cat a.conf b && stat -c %a a.conf b; exec sleep 1000'
COUNT = "for i in 1 2 3 4 5; do echo line $i; done; exec sleep 1000"
BRIEF = "echo first; sleep 0.3; echo last"

PROGRAMS = {
    SLEEP: Program(),
    GREET: Program(says=lambda env: f"hello {env['NAME']} from {env['MESH_REPLICA']}\n".encode()),
    FAIL: Program(says=lambda env: b"going\n", code=3),
    STUBBORN: Program(says=lambda env: b"deaf\n", ignores=frozenset({"SIGTERM"})),
    POLITE: Program(says=lambda env: b"ready\n", heeds={"SIGTERM": 7}),
    SHOW_FILES: Program(says=lambda env: b"colour = blue\nhush\n440\n444\n"),
    COUNT: Program(says=lambda env: b"".join(b"line %d\n" % i for i in range(1, 6))),
    BRIEF: Program(says=lambda env: b"first\nlast\n", code=0),
    'echo "$NAME"; exit 4': Program(says=lambda env: env["NAME"].encode() + b"\n", code=4),
}
"""Each as a shell script, and as the fake plays it."""


@dataclass
class Lab:
    """One runtime to be tested: `open` gives further ones over the same instances, as a restarted agent would."""

    runtime: Runtime
    open: Callable[[], Runtime]
    image: str | None = None
    ids: list[str] = field(default_factory=list)

    def launch(
        self,
        script: str,
        *,
        id: str | None = None,
        env: dict[str, str] | None = None,
        files: Sequence[File] = (),
        **spec: Any,
    ) -> Launch:
        """A replica that runs a shell script."""
        id = id or f"web-1-{uuid.uuid4().hex[:8]}"
        self.ids.append(id)
        parsed = parse_spec({"name": "web", "image": self.image, "command": ["sh", "-c", script], **spec})
        session = {"MESH_TEST_SESSION": os.environ.get("MESH_TEST_SESSION", "")}
        return Launch(
            Assignment(id=id, service="web", slot=1, release=2),
            parsed,
            {"NAME": "world", "MESH_REPLICA": id, **session, **(env or {})},
            search=["svc.cluster"],
            files=files,
        )

    async def start(self, script: str, **options: Any) -> Instance:
        return await self.runtime.start(self.launch(script, **options))

    async def find(self, id: str, runtime: Runtime | None = None) -> Instance | None:
        return next((one for one in await (runtime or self.runtime).instances() if one.id == id), None)

    async def exited(self, id: str, runtime: Runtime | None = None) -> Instance:
        """The instance once it has ended."""

        async def ended() -> Instance | None:
            instance = await self.find(id, runtime)
            return instance if instance and instance.state is InstanceState.EXITED else None

        instance: Instance = await until(ended)
        return instance

    async def says(self, id: str, text: bytes) -> None:
        """Waits until the replica has printed the line."""

        async def printed() -> bool:
            return text in [line.strip() async for line in self.runtime.logs(id)]

        await until(printed)


@asynccontextmanager
async def lab(kind: str, folder: Path, image: str | None = None, **options: Any) -> AsyncIterator[Lab]:
    """A runtime of this kind, with instances of its own; all of them are removed in the end."""
    root, ground = f"test-{uuid.uuid4().hex[:8]}", Ground(programs=dict(PROGRAMS))
    opened: list[Runtime] = []

    def open_runtime() -> Runtime:
        runtime: Runtime
        match kind:
            case "docker":
                runtime = DockerRuntime("n1", root=root, **options)
            case "process":
                runtime = ProcessRuntime(folder, "n1")
            case _:
                runtime = FakeRuntime(ground)
        opened.append(runtime)
        return runtime

    made = Lab(open_runtime(), open_runtime, image)
    yield made
    await asyncio.gather(*(made.runtime.remove(id) for id in made.ids))
    for runtime in opened:
        await runtime.close()
