"""What the agent needs of whatever runs replicas: a Docker engine, or local processes.

An `Instance` is the runtime's side of a replica: a container, or a process group. It carries the
replica's identity in labels (or a state file), so that an agent that was restarted adopts what runs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from mesh.model import Assignment, Capacity
from mesh.runtime.usage import Usage
from mesh.spec.service import ServiceSpec


class RuntimeFault(Exception):
    """Something the runtime would not or could not do; the message is for the operator."""


class RuntimeUnavailable(RuntimeFault):
    """The engine does not answer: nothing is known about its instances, and nothing is lost."""


class ImageMissing(RuntimeFault):
    """The image is neither here nor to be had."""


class InstanceState(StrEnum):
    CREATED = "created"  # made, never started
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Instance:
    """One container or process group that belongs to this mesh and node."""

    id: str  # the replica's id
    service: str
    slot: int | str
    release: int
    state: InstanceState
    address: str = ""  # where its ports are reached
    ports: Mapping[str, int] = field(default_factory=dict)
    started: float = 0.0  # Unix seconds
    exit_code: int | None = None
    oom: bool = False
    handle: str = ""  # container id or pid, for messages
    singleton: bool = False  # must never run twice


@dataclass(frozen=True, slots=True)
class Facts:
    """What the runtime says of its host."""

    name: str  # docker | process
    version: str
    capacity: Capacity


@dataclass(frozen=True, slots=True)
class File:
    """A file that a replica gets: `path` in its file system, `mode` its permissions."""

    path: str
    content: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything a runtime needs to start one replica."""

    assignment: Assignment
    spec: ServiceSpec
    env: Mapping[str, str]  # resolved: secrets and configs filled in
    dns: Sequence[str] = ()  # name servers for the replica
    search: Sequence[str] = ()  # search domains: `svc.cluster`
    files: Sequence[File] = ()


@dataclass(frozen=True, slots=True)
class ExecResult:
    code: int
    output: bytes


def variable(what: str, name: str) -> str:
    """The environment variable that tells a replica of a port or a volume: `PORT_HTTP`."""
    return f"{what}_{name.upper().replace('-', '_')}"


class Runtime(Protocol):
    """Verbs on instances, by replica id. Each is safe to repeat. All raise `RuntimeFault`."""

    async def facts(self) -> Facts: ...

    async def instances(self) -> list[Instance]:
        """Everything that is ours on this node, running or not."""

    async def prepare(self, spec: ServiceSpec, progress: Callable[[str], None]) -> None:
        """Fetches the image if it is not here; `progress` gets sentences. Raises `ImageMissing`."""

    async def start(self, launch: Launch) -> Instance:
        """Creates and starts. An instance that exists is returned as it is, after starting it if it never ran."""

    async def signal_and_wait(self, id: str, signal: str, grace: float) -> None:
        """Sends the signal, waits up to `grace` seconds, then kills. Returns when it is not running."""

    async def remove(self, id: str) -> None:
        """Removes what is left of it (kills it if need be). No error if there is nothing."""

    def events(self) -> AsyncGenerator[str, None]:
        """Ids of replicas to look at again, the empty string for all of them. Ends never; survives the engine."""

    def logs(self, id: str, *, follow: bool = False, tail: int | None = None) -> AsyncGenerator[bytes, None]:
        """Lines of output with their line ends; `tail`: only the last so many."""

    async def exec(self, id: str, command: Sequence[str], *, timeout: float | None = None) -> ExecResult:
        """Runs a command inside, with both outputs together (the first MiB). `RuntimeFault` after `timeout` seconds."""

    async def close(self) -> None: ...


class MeteredRuntime(Runtime, Protocol):
    """A runtime that can tell what its instances use."""

    async def usage(self, ids: Collection[str]) -> dict[str, Usage]:
        """Of these replicas; those that do not run here are left out."""
