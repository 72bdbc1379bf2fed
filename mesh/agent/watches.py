"""What an agent follows of the store: a few prefixes, put together into one View."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from mesh.aio import Signal
from mesh.keys import Keys
from mesh.store import Entry, Store
from mesh.view import View, ViewReader

ANEW = (2.7, 1.5, 1.5, 2.0)
"""Seconds from one asking anew to the next, after a node has fallen silent."""


class Watches:
    """The prefixes that an agent needs. `news`: the store has delivered something."""

    def __init__(self, store: Store, keys: Keys, node: str) -> None:
        self.news = Signal()
        self._store = store
        self._marked = (keys.planned_services, keys.observed_nodes)
        self._prefixes = [keys.node_plan(node), keys.planned_services, keys.cluster, keys.observed_nodes, keys.config,
                          keys.route("")]  # fmt: skip
        self._reader = ViewReader(keys)
        self._entries: dict[str, Mapping[str, Entry]] = {}  # by prefix
        self._seen: dict[str, int] = {}  # by prefix: the newest index, below which no server is believed
        self._index = 0
        self._anew = asyncio.Event()  # set for a moment: watches are to be asked anew

    def begin(self, group: asyncio.TaskGroup) -> None:
        for prefix in self._prefixes:
            group.create_task(self._watch(prefix), name=f"watch {prefix}")

    def view(self) -> View | None:
        """None until every prefix has come: a Table of a part of the store would deny what it does not know."""
        if len(self._entries) < len(self._prefixes):
            return None
        return self._reader.read_parts(self._entries.values(), self._index)

    async def ask_anew(self) -> None:
        """Consul's own failure detector takes some seconds to send its questions elsewhere."""
        for pause in ANEW:
            await asyncio.sleep(pause)
            self._anew.set()
            self._anew.clear()

    async def _watch(self, prefix: str) -> None:
        """Follows a prefix; anew whenever a node has fallen silent: Consul may have asked a server on it, and waits."""
        while True:
            watching = asyncio.create_task(self._follow(prefix))
            anew = asyncio.create_task(self._anew.wait())
            try:
                await asyncio.wait((watching, anew), return_when=asyncio.FIRST_COMPLETED)
                if watching.done():
                    watching.result()
            finally:
                for task in (watching, anew):
                    task.cancel()
                await asyncio.gather(watching, anew, return_exceptions=True)

    async def _follow(self, prefix: str) -> None:
        async for change in self._store.watch(prefix, self._seen.get(prefix, 0), marked=prefix in self._marked):
            self._seen[prefix] = change.index
            self._entries[prefix] = change.entries
            self._index = max(self._index, change.index)
            self.news.set()
