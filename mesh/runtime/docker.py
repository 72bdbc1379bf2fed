"""Replicas as containers of a Docker engine, local or remote.

Labels say who a container is, so that any agent of this node adopts it. The engine's restart policy is off:
what ended is reported, and replaced by decision of the scheduler. Limits, volumes and DNS are the engine's work.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from mesh.aio import Backoff
from mesh.model import Capacity
from mesh.runtime import (
    ExecResult,
    Facts,
    File,
    ImageMissing,
    Instance,
    InstanceState,
    Launch,
    RuntimeFault,
    RuntimeUnavailable,
)
from mesh.runtime import docker_config as config
from mesh.runtime.docker_engine import Conflict, Engine, NotThere
from mesh.runtime.docker_events import EngineEvents
from mesh.runtime.output import LineSplitter, collect
from mesh.runtime.usage import Cgroup, Usage, of_stats
from mesh.spec.service import ServiceSpec

STARTS = 4
"""At once: an engine with two cores starts 20 containers in 2.7 s so, and no sooner with more."""
PULLS = 3
LISTING_TIMEOUT = 10.0
"""Seconds for what tells whether the engine is there at all: after them it hangs, and people are told."""
PATIENCE = 10.0
"""Seconds that the engine may take to end a container it was told to kill."""


class DockerRuntime:
    """The containers of `node` on one engine.

    `publish="direct"`: replicas are reached at their containers' own addresses (one machine, or routed container
    networks); `"published"`: at random ports on `address`. `root` keeps meshes on one engine apart. `state` is the
    agent's folder, for what reaches the engine.
    """

    def __init__(
        self,
        node: str,
        *,
        root: str = "mesh",
        docker_host: str | None = None,
        publish: str = "direct",
        address: str = "127.0.0.1",
        state: Path | None = None,
    ) -> None:
        self._node = node
        self._root = root
        self._engine = Engine(docker_host, state)
        self._labels = [f"mesh.node={node}", f"mesh.root={root}"]
        self._events = EngineEvents(self._engine, self._labels)
        self._published = publish == "published"
        self._address = address
        self._images: set[str] = set()  # seen on the engine
        self._fetching: dict[str, asyncio.Lock] = {}
        self._starting: dict[str, asyncio.Lock] = {}
        self._starts = asyncio.Semaphore(STARTS)
        self._pulls = asyncio.Semaphore(PULLS)
        self._cgroups: dict[str, Cgroup | None] = {}  # by replica; None: the engine itself must be asked

    async def facts(self) -> Facts:
        info = await self._engine.call(lambda api: api.info(), timeout=LISTING_TIMEOUT)
        capacity = Capacity(cpu=1000 * info["NCPU"], memory=info["MemTotal"])
        return Facts("docker", info["ServerVersion"], capacity)

    async def bridge_gateway(self) -> str:
        """This host's address on the default bridge: where containers find the node's DNS server."""
        bridge = await self._engine.call(lambda api: api.inspect_network("bridge"))
        return config.gateway(bridge["IPAM"]["Config"][0])

    async def instances(self) -> list[Instance]:
        died = set(self._events.died)  # those who die from now on may be dropped by the next listing, not by this one
        entries = await self._engine.call(
            lambda api: api.containers(all=True, filters={"label": self._labels}), timeout=LISTING_TIMEOUT
        )
        found = [config.listed(entry, published=self._published, address=self._address) for entry in entries]
        self._events.died -= died - {instance.handle for instance in found if instance.state is InstanceState.RUNNING}
        whole = await asyncio.gather(*(self._in_full(instance) for instance in found))
        return [instance for instance in whole if instance]

    async def _in_full(self, instance: Instance) -> Instance | None:
        """A listing does not say how an instance ended, and says `running` for some 50 ms after the event of its death.

        None if it has been removed since.
        """
        if instance.state is not InstanceState.EXITED and instance.handle not in self._events.died:
            return instance
        try:
            return self._instance(await self._inspect(instance.handle))
        except NotThere:
            return None

    # ── images ───────────────────────────────────────────────────────────────────────────────

    async def prepare(self, spec: ServiceSpec, progress: Callable[[str], None]) -> None:
        if spec.image is None:
            raise RuntimeFault(
                f"{spec.name} has no image, and this node runs containers: add one, or run it on a process node"
            )
        async with self._fetching.setdefault(spec.image, asyncio.Lock()):
            if spec.image not in self._images and not await self._has_image(spec.image):
                async with self._pulls:
                    await self._pull(spec.image, progress)
            self._images.add(spec.image)

    async def _has_image(self, image: str) -> bool:
        try:
            await self._engine.call(lambda api: api.inspect_image(image))
        except NotThere:
            return False
        return True

    async def _pull(self, image: str, progress: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        progress(f"pulling image {image}")
        steps = config.PullProgress(image)

        def pull(api: Any) -> None:
            for step in api.pull(image, stream=True, decode=True):
                if "error" in step:
                    raise RuntimeFault(step["error"])
                if sentence := steps.observe(step):
                    loop.call_soon_threadsafe(progress, sentence)

        try:
            await self._engine.call(pull)
        except RuntimeUnavailable:
            raise
        except RuntimeFault as fault:
            raise ImageMissing(f"image {image} is neither on node {self._node} nor to be had: {fault}") from fault

    # ── starting ─────────────────────────────────────────────────────────────────────────────

    async def start(self, launch: Launch) -> Instance:
        id = launch.assignment.id
        body = config.container(
            launch, node=self._node, root=self._root, published=self._published, address=self._address
        )
        async with self._starting.setdefault(id, asyncio.Lock()), self._starts:
            try:
                await self._engine.call(lambda api: api.create_container_from_config(body, config.container_name(id)))
            except NotThere as fault:
                self._images.discard(str(launch.spec.image))
                raise ImageMissing(f"image {launch.spec.image} is not on node {self._node}: {fault}") from fault
            except Conflict:
                existing = await self._existing(id)
                if existing.state is not InstanceState.CREATED:
                    return existing
            return await self._start_created(config.container_name(id), launch.files)

    async def _existing(self, id: str) -> Instance:
        """The instance that has the name. The engine reserves a name before, and frees it after, the container is."""
        try:
            return self._instance(await self._ours(id))
        except NotThere:
            raise RuntimeUnavailable(f"the container of {id} is just being made or removed") from None

    async def _start_created(self, name: str, files: Sequence[File]) -> Instance:
        try:
            if files:
                await self._engine.call(lambda api: api.put_archive(name, "/", config.archive(files)))
            await self._engine.call(lambda api: api.start(name))
        except RuntimeUnavailable:
            raise  # it may have been started all the same: who comes back, adopts it
        except RuntimeFault as fault:
            await self._engine.call(lambda api: api.remove_container(name, force=True, v=True))
            raise RuntimeFault(config.why_not_started(str(fault), self._node)) from fault
        return self._instance(await self._inspect(name))

    # ── ending ───────────────────────────────────────────────────────────────────────────────

    async def signal_and_wait(self, id: str, signal: str, grace: float) -> None:
        for number, patience in ((signal, grace), ("SIGKILL", PATIENCE)):
            try:
                container = (await self._ours(id))["Id"]
                await self._engine.call(partial(_kill, container, number))
            except (NotThere, Conflict):
                return  # gone, or not running
            if await self._ended(id, patience):
                return
        raise RuntimeFault(f"{id}: the engine could not kill its container within {PATIENCE:g} s")

    async def _ended(self, id: str, timeout: float) -> bool:
        """Waits for the end: told by the events, if someone follows them, and by looking now and then."""
        looks = Backoff(0.05, 1.0)
        with self._events.of(id) as told:
            try:
                async with asyncio.timeout(timeout):
                    while self._instance(await self._ours(id)).state is InstanceState.RUNNING:
                        await told.wait(looks.next())
            except NotThere:
                return True
            except TimeoutError:
                return False
        return True

    async def remove(self, id: str) -> None:
        with suppress(NotThere, Conflict):  # a conflict: it is not ours, or its removal is under way
            container = (await self._ours(id))["Id"]
            await self._engine.call(lambda api: api.remove_container(container, force=True, v=True))
        self._starting.pop(id, None)

    # ── watching ─────────────────────────────────────────────────────────────────────────────

    def events(self) -> AsyncGenerator[str, None]:
        return self._events.follow()

    async def logs(self, id: str, *, follow: bool = False, tail: int | None = None) -> AsyncGenerator[bytes, None]:
        container = (await self._ours(id))["Id"]
        options = {"follow": follow, "tail": "all" if tail is None else tail}
        splitter = LineSplitter()
        async with self._engine.stream(lambda api: api.logs(container, stream=True, **options)) as chunks:
            async for chunk in chunks:
                for line in splitter.feed(chunk):
                    yield line
        for line in splitter.flush():
            yield line

    # ── commands inside ──────────────────────────────────────────────────────────────────────

    async def exec(self, id: str, command: Sequence[str], *, timeout: float | None = None) -> ExecResult:
        container = (await self._ours(id))["Id"]
        made = await self._engine.call(lambda api: api.exec_create(container, list(command)))
        try:
            async with asyncio.timeout(timeout):
                async with self._engine.stream(lambda api: api.exec_start(made["Id"], stream=True)) as chunks:
                    output = await collect(chunks)
                details = await self._engine.call(lambda api: api.exec_inspect(made["Id"]))
        except TimeoutError:
            await self._kill_exec(made["Id"], container)
            raise RuntimeFault(f"{command[0]} in {id} did not end within {timeout:g} s") from None
        return ExecResult(details["ExitCode"], output)

    async def _kill_exec(self, exec_id: str, container: str) -> None:
        """Ends a command that took too long. The engine has no call for it; where it is remote, the command goes on."""
        pid = (await self._engine.call(lambda api: api.exec_inspect(exec_id)))["Pid"]
        if self._engine.local:
            _kill_process_of(container, pid)

    async def usage(self, ids: Collection[str]) -> dict[str, Usage]:
        """From the kernel's files where the engine is on this machine: to ask an engine costs it 50 times as much."""
        self._cgroups = {id: cgroup for id, cgroup in self._cgroups.items() if id in ids}
        told = await asyncio.gather(*(self._usage(id) for id in ids), return_exceptions=True)
        for fault in told:
            if isinstance(fault, BaseException) and not isinstance(fault, RuntimeFault):
                raise fault
        return {id: usage for id, usage in zip(ids, told, strict=True) if isinstance(usage, Usage)}

    async def _usage(self, id: str) -> Usage | None:
        if id not in self._cgroups:
            details = await self._ours(id)
            if not details["State"]["Running"]:
                return None
            self._cgroups[id] = Cgroup.of(details["State"]["Pid"], details["Id"]) if self._engine.local else None
        if cgroup := self._cgroups[id]:
            return cgroup.usage()
        stats = await self._engine.call(lambda api: api.stats(config.container_name(id), stream=False, one_shot=True))
        return of_stats(stats)

    async def close(self) -> None:
        self._engine.close()

    # ── one container ────────────────────────────────────────────────────────────────────────

    async def _inspect(self, container: str) -> Mapping[str, Any]:
        details: Mapping[str, Any] = await self._engine.call(lambda api: api.inspect_container(container))
        return details

    async def _ours(self, id: str) -> Mapping[str, Any]:
        """What the engine says of our container for this replica. Raises `NotThere`, `Conflict` if it is another's."""
        name = config.container_name(id)
        details = await self._inspect(name)
        marks = details["Config"]["Labels"] or {}
        if (marks.get("mesh.id"), marks.get("mesh.node"), marks.get("mesh.root")) != (id, self._node, self._root):
            raise Conflict(
                f"the name {name} is taken by a container that is not of this mesh and node; "
                f"see `docker inspect {name}`, and rename or remove it"
            )
        return details

    def _instance(self, details: Mapping[str, Any]) -> Instance:
        return config.inspected(details, published=self._published, address=self._address)


def _kill(container: str, signal: str, api: Any) -> None:
    api.kill(container, signal)


def _kill_process_of(container: str, pid: int) -> None:
    with suppress(OSError):
        if container in Path(f"/proc/{pid}/cgroup").read_text():  # as the engine sees it, so do we
            os.kill(pid, signal.SIGKILL)
