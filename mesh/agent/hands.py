"""What the agent does with its hands: each action of the heart becomes one call, and its end an event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mesh.agent.events import (
    Action,
    Event,
    Explain,
    Explained,
    Hindered,
    Prepare,
    Prepared,
    Progress,
    Remove,
    Removed,
    Signal,
    Signalled,
    Start,
    Started,
    Withdraw,
    Withdrawn,
)
from mesh.agent.surroundings import Surroundings
from mesh.keys import Keys
from mesh.runtime import File, Launch, Runtime, RuntimeFault, RuntimeUnavailable
from mesh.spec.service import ConfigRef, SecretRef
from mesh.store import Store, StoreError

log = logging.getLogger(__name__)

AT_ONCE = 16
"""Actions of one node that run at the same time."""

LAST_WORDS = 5
"""Lines of a failed replica's output that go into its message."""


class Missing(Exception):
    """A secret or config value that the spec names and the store does not have."""


class Hands:
    """Runs actions. Those of one replica come one after the other: the heart sees to that."""

    def __init__(
        self,
        runtime: Runtime,
        store: Store,
        keys: Keys,
        *,
        withdraw: Callable[[], Awaitable[None]],
        tell: Callable[[Event], None],
    ) -> None:
        """`withdraw` returns when the data plane and the store know the replicas' states; `tell` takes progress."""
        self._runtime = runtime
        self._store = store
        self._keys = keys
        self._withdraw = withdraw
        self._tell = tell
        self._places = asyncio.Semaphore(AT_ONCE)
        self.surroundings = Surroundings("", "")

    async def do(self, action: Action) -> Event:
        """Carries out one action; the event that ends it."""
        try:
            match action:
                case Prepare(id, spec):
                    await self._runtime.prepare(spec, lambda text: self._tell(Progress(id, text)))
                    return Prepared(id)
                case Start(id):
                    return await self._start(action)
                case Withdraw(id):
                    await self._withdraw()
                    return Withdrawn(id)
                case Signal(id, signal, grace):
                    await self._runtime.signal_and_wait(id, signal, grace)
                    return Signalled(id)
                case Explain(id):
                    return Explained(id, await self._last_words(id))
                case Remove(id):
                    async with self._places:
                        await self._runtime.remove(id)
                    return Removed(id)
        except (RuntimeUnavailable, StoreError) as error:
            return Hindered(action.id, str(error), retry=True)
        except (RuntimeFault, Missing) as error:
            return Hindered(action.id, str(error))
        raise TypeError(f"not an action with an end: {action!r}")

    async def _start(self, start: Start) -> Event:
        async with self._places:
            env = await self._environment(start)
            dns, search = self.surroundings.nameservers, self.surroundings.search
            launch = Launch(start.assignment, start.spec, env, dns, search, await self._files(start))
            return Started(start.id, await self._runtime.start(launch))

    async def _environment(self, start: Start) -> dict[str, str]:
        assignment = start.assignment
        env = {
            "MESH_NODE": self.surroundings.node,
            "MESH_SERVICE": assignment.service,
            "MESH_SLOT": str(assignment.slot),
            "MESH_REPLICA": assignment.id,
            "MESH_DNS": self.surroundings.dns,
        }
        for name, value in start.spec.env.items():
            match value:
                case SecretRef(secret=secret):
                    env[name] = await self._text(self._keys.secret(secret), f"env.{name}: there is no secret")
                case ConfigRef(config=config):
                    env[name] = await self._text(self._keys.config_value(config), f"env.{name}: there is no config")
                case str():
                    env[name] = value
        return env

    async def _files(self, start: Start) -> list[File]:
        files = []
        for number, mount in enumerate(start.spec.mounts):
            if mount.secret is not None:
                content = await self._stored(self._keys.secret(mount.secret), f"mounts.{number}: there is no secret")
            elif mount.content is not None:
                content = mount.content.encode()
            else:
                continue
            files.append(File(mount.path, content, mount.permissions))
        return files

    async def _stored(self, key: str, fault: str) -> bytes:
        entry = await self._store.get(key)
        if entry is None:
            raise Missing(f"{fault} {key}: put it there, and the replica is started anew")
        return entry.value

    async def _text(self, key: str, fault: str) -> str:
        value = await self._stored(key, fault)
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise Missing(f"{key} is not text: an environment variable cannot hold it") from None

    async def _last_words(self, id: str) -> str:
        try:
            async with asyncio.timeout(2):
                lines = [line async for line in self._runtime.logs(id, tail=LAST_WORDS)]
        except (RuntimeFault, TimeoutError) as error:
            log.debug("replica %s: its output cannot be read: %s", id, error)
            return ""
        texts = [line.decode(errors="replace").strip()[:300] for line in lines]
        return " | ".join(text for text in texts if text)
