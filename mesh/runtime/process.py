"""Replicas as local processes: the runtime of machines without a Docker engine.

Each replica has a folder `<state>/replicas/<id>` (0700) with what an agent needs to adopt it:

    replica.json   who it is, and its ports; never its environment, which may hold secrets
    keeper, program, exit: who they are and how it ended, written by the replica's keeper (see `keeper`)
    output.log     stdout and stderr; output.log.1 is the part before it
    files/         what its spec mounts of configs and secrets

What a container engine would do and this does not: limits are not enforced, mounts and volumes are not mounted
(a volume is a folder of the state folder, named by `VOLUME_<NAME>`; a file made for the replica is found at its path
below `MESH_FILES`), and programs see the host's files, users and network. Under systemd the agent's unit needs
`KillMode=process`, or its restart ends the replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import platform
import random
import shutil
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence, Set
from pathlib import Path

import msgspec

from mesh.aio import Pending, Tasks
from mesh.model import Assignment, Capacity, Document
from mesh.runtime import ExecResult, Facts, File, Instance, InstanceState, Launch, RuntimeFault, keeper, variable
from mesh.runtime.output import OutputFile, collect
from mesh.runtime.process_table import ProcessId, environment_of, processes_with
from mesh.runtime.usage import Usage, of_sessions
from mesh.spec.service import PortSpec, ServiceSpec

INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""What a replica gets of the agent's environment; the rest (tokens, say) is the agent's own."""

PORTS = range(20_000, 32_768)
"""Ports for replicas: below 32768, where Linux takes the ports of outgoing connections (ip_local_port_range)."""

MARK = "MESH_INSTANCE"
"""Variable that a replica's descendants inherit, wherever they go: its value is the replica's folder."""

FILES = "files"
"""Folder, within a replica's, of the files that are made for it."""

GONE = ".gone-"
"""Begins the name of a folder that is being removed."""

FULL_LOOK = 30.0
HOUSEKEEPING = 1.0
PATIENCE = 5.0


class _Record(Document, frozen=True, kw_only=True):
    """`replica.json`."""

    assignment: Assignment
    ports: dict[str, int]
    singleton: bool = False


class ProcessRuntime:
    """Runs replicas as processes of this user. `address` is where their ports are reached."""

    def __init__(self, state: Path, node: str, *, address: str = "127.0.0.1") -> None:
        self._replicas = state / "replicas"
        self._volumes = state / "volumes"
        self._replicas.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._replicas.glob(f"{GONE}*"):
            shutil.rmtree(left, ignore_errors=True)
        self._node = node
        self._address = address
        self._starting: dict[str, asyncio.Lock] = {}
        self._watched: set[str] = set()
        self._listeners: list[Pending] = []
        self._tasks = Tasks()

    async def facts(self) -> Facts:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Facts("process", platform.release(), Capacity(cpu=1000 * len(os.sched_getaffinity(0)), memory=memory))

    async def instances(self) -> list[Instance]:
        found = [instance for id in self._ids() if (instance := self._load(id))]
        for instance in found:
            self._watch(instance)
        return found

    async def prepare(self, spec: ServiceSpec, progress: Callable[[str], None]) -> None:
        if spec.command is None:
            raise RuntimeFault(
                f"{spec.name} has no command, and this node runs processes: add one, or run it on a Docker node"
            )

    async def start(self, launch: Launch) -> Instance:
        id = launch.assignment.id
        async with self._starting.setdefault(id, asyncio.Lock()):
            instance = self._load(id)
            if instance is None or instance.state is InstanceState.CREATED:
                await self._start(launch)
                instance = self._load(id)
        if instance is None or instance.state is InstanceState.CREATED:
            raise RuntimeFault(f"{id}: could not be started; is the disk of {self._folder(id)} full?")
        self._watch(instance)
        return instance

    async def _start(self, launch: Launch) -> None:
        await self.prepare(launch.spec, lambda sentence: None)
        command = launch.spec.command or []
        ports = self._choose_ports(launch.spec.ports)
        env = self._environment(launch, ports)
        _require_program(command, env, launch.spec.name)
        folder = self._folder(launch.assignment.id)
        _make_folder(folder, _Record(assignment=launch.assignment, ports=ports, singleton=launch.spec.singleton))
        if launch.files:
            _write_files(folder / FILES, launch.files)
        try:
            await keeper.run(folder, command, env)
        except OSError as error:
            raise RuntimeFault(f"{folder.name}: the process could not be made: {error.strerror}") from error

    async def signal_and_wait(self, id: str, signal: str, grace: float) -> None:
        program = self._process(id, "program")
        if program:
            program.signal_group(_number(signal))
            await program.ended(grace)
        await self._finish(id)

    async def remove(self, id: str) -> None:
        await self._finish(id)
        gone = self._replicas / f"{GONE}{id}"  # out of every listing at once: a folder half removed tells lies
        with contextlib.suppress(FileNotFoundError):
            self._folder(id).rename(gone)
        await asyncio.to_thread(shutil.rmtree, gone, ignore_errors=True)
        self._starting.pop(id, None)

    async def events(self) -> AsyncGenerator[str, None]:
        pending = Pending()
        self._listeners.append(pending)
        loop = asyncio.get_running_loop()
        try:
            await self.instances()
            look_at_all = loop.time() + FULL_LOOK
            while True:
                for id in await pending.take(HOUSEKEEPING):
                    yield id
                await asyncio.to_thread(self._rotate_outputs)
                if loop.time() >= look_at_all:
                    look_at_all = loop.time() + FULL_LOOK
                    yield ""
        finally:
            self._listeners.remove(pending)

    async def logs(self, id: str, *, follow: bool = False, tail: int | None = None) -> AsyncGenerator[bytes, None]:
        self._require(id)
        output = self._output(id)
        async for line in output.lines(tail, following=lambda: follow and self._runs(id)):
            yield line

    async def exec(self, id: str, command: Sequence[str], *, timeout: float | None = None) -> ExecResult:
        instance = self._require(id)
        if instance.state is not InstanceState.RUNNING:
            raise RuntimeFault(f"{id} does not run")
        env = self._environment_of(id)
        _require_program(command, env, id)
        process = await asyncio.create_subprocess_exec(
            *command,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(timeout):
                output = await collect(_chunks(process.stdout))
                return ExecResult(await process.wait(), output)
        except TimeoutError:
            raise RuntimeFault(f"{command[0]} in {id} did not end within {timeout:g} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    async def usage(self, ids: Collection[str]) -> dict[str, Usage]:
        programs = ((id, self._process(id, "program")) for id in ids)
        leaders = {program.pid: id for id, program in programs if program and program.alive()}
        return await asyncio.to_thread(of_sessions, leaders) if leaders else {}

    async def close(self) -> None:
        """Stops watching; the replicas run on."""
        await self._tasks.close()

    # ── one replica ──────────────────────────────────────────────────────────────────────────

    def _ids(self) -> list[str]:
        names = (entry.name for entry in os.scandir(self._replicas) if entry.is_dir())
        return sorted(name for name in names if not name.startswith(GONE))

    def _folder(self, id: str) -> Path:
        return self._replicas / id

    def _output(self, id: str) -> OutputFile:
        return OutputFile(self._folder(id) / "output.log")

    def _load(self, id: str) -> Instance | None:
        """The instance as its files and /proc tell it."""
        folder, record = self._folder(id), self._record(id)
        if record is None:
            return None
        its_keeper, program = self._process(id, "keeper"), self._process(id, "program")
        kept = its_keeper is not None and its_keeper.alive()  # asked before the exit status is read, which so is final
        code = keeper.exit_status(folder)
        if program is None:
            state = InstanceState.CREATED
        elif code is None and (kept or program.alive()):
            state = InstanceState.RUNNING
        else:
            state = InstanceState.EXITED
        assignment = record.assignment
        return Instance(
            id=id,
            service=assignment.service,
            slot=assignment.slot,
            release=assignment.release,
            state=state,
            address=self._address,
            ports=record.ports,
            started=(folder / "program").stat().st_mtime if program else 0.0,
            exit_code=code,
            handle=str(program.pid) if program else "",
            singleton=record.singleton,
        )

    def _record(self, id: str) -> _Record | None:
        try:
            return msgspec.json.decode((self._folder(id) / "replica.json").read_bytes(), type=_Record)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _require(self, id: str) -> Instance:
        if instance := self._load(id):
            return instance
        raise RuntimeFault(f"{id} is not on node {self._node}")

    def _runs(self, id: str) -> bool:
        instance = self._load(id)
        return instance is not None and instance.state is InstanceState.RUNNING

    def _process(self, id: str, which: str) -> ProcessId | None:
        return keeper.process(self._folder(id), which)

    # ── starting ─────────────────────────────────────────────────────────────────────────────

    def _choose_ports(self, wanted: Mapping[str, PortSpec]) -> dict[str, int]:
        """A port for each name: the static one, or one that neither a replica of ours nor anyone else has."""
        taken = {port for id in self._ids() if (record := self._record(id)) for port in record.ports.values()}
        chosen: dict[str, int] = {}
        for name, port in wanted.items():
            kind = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
            if port.host_port is None:
                chosen[name] = self._free_port(kind, taken)
                taken.add(chosen[name])
            elif _is_free(self._address, port.host_port, kind):
                chosen[name] = port.host_port
            else:
                raise RuntimeFault(f"port {port.host_port} of node {self._node} is already in use")
        return chosen

    def _free_port(self, kind: socket.SocketKind, taken: Set[int]) -> int:
        first = random.randrange(len(PORTS))
        for number in itertools.chain(PORTS[first:], PORTS[:first]):
            if number not in taken and _is_free(self._address, number, kind):
                return number
        raise RuntimeFault(f"no port from {PORTS.start} to {PORTS.stop - 1} is free on node {self._node}")

    def _environment(self, launch: Launch, ports: Mapping[str, int]) -> dict[str, str]:
        volumes: dict[str, str] = {}
        for name in launch.spec.volumes:
            folder = self._volumes / f"{launch.spec.name}-{name}"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            volumes[variable("VOLUME", name)] = str(folder)
        return {
            **{name: os.environ[name] for name in INHERITED if name in os.environ},
            **launch.env,
            **volumes,
            **({"MESH_FILES": str(self._folder(launch.assignment.id) / FILES)} if launch.files else {}),
            **{variable("PORT", name): str(number) for name, number in ports.items()},
            "HOST": self._address,
            MARK: str(self._folder(launch.assignment.id)),
        }

    def _environment_of(self, id: str) -> dict[str, str]:
        """What the replica was started with: of its keeper, for programs such as Redis put a title over their own."""
        for which in ("keeper", "program"):
            if (process := self._process(id, which)) and (env := environment_of(process.pid)):
                return env
        raise RuntimeFault(f"{id}: its environment cannot be read")

    # ── ending ───────────────────────────────────────────────────────────────────────────────

    def _watch(self, instance: Instance) -> None:
        if instance.state is InstanceState.RUNNING and instance.id not in self._watched:
            self._watched.add(instance.id)
            self._tasks.spawn(self._tell_the_end(instance.id), f"watch {instance.id}")

    async def _tell_the_end(self, id: str) -> None:
        try:
            for which in ("keeper", "program"):  # the program runs on if its keeper was killed
                if process := self._process(id, which):
                    await process.ended()
            for pending in self._listeners:
                pending.add(id)
        finally:
            self._watched.discard(id)

    async def _finish(self, id: str) -> None:
        """Kills what is left of a replica, wherever it hides, once its keeper has noted the end."""
        its_keeper, program = self._process(id, "keeper"), self._process(id, "program")
        if program:
            program.signal_group(signal.SIGKILL)
            if not await program.ended(PATIENCE):
                raise RuntimeFault(f"{id}: process {program.pid} does not end, not even killed; is its disk away?")
        if its_keeper:
            await its_keeper.ended(PATIENCE)
        while left := await asyncio.to_thread(processes_with, MARK, str(self._folder(id))):
            for process in left:
                process.signal(signal.SIGKILL)
                await process.ended(PATIENCE)

    def _rotate_outputs(self) -> None:
        for id in self._ids():
            self._output(id).rotate()


def _make_folder(folder: Path, record: _Record) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = folder / "replica.json.new"
    unfinished.write_bytes(msgspec.json.encode(record))
    unfinished.replace(folder / "replica.json")


def _write_files(folder: Path, files: Sequence[File]) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a start that did not end
    for file in files:
        place = folder / file.path.lstrip("/")
        try:
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            place.touch(mode=0o600, exist_ok=False)
            place.write_bytes(file.content)
            place.chmod(file.mode)
        except OSError as error:
            raise RuntimeFault(f"mounts: {file.path} could not be written: {error.strerror}") from error


async def _chunks(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while chunk := await stream.read(64 * 1024):
        yield chunk


def _require_program(command: Sequence[str], env: Mapping[str, str], who: str) -> None:
    if shutil.which(command[0], path=env.get("PATH", os.defpath)) is None:
        raise RuntimeFault(f"{who}: the program {command[0]!r} is not on this node, or cannot be executed")


def _is_free(address: str, port: int, kind: socket.SocketKind) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:  # a connection that has just ended does not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _number(name: str) -> int:
    try:
        return signal.Signals[name]
    except KeyError:
        raise RuntimeFault(f"there is no signal {name}") from None
