"""The certificates of routes on their way from the store's secrets to the proxy workers.

They go beside the Table, never in it: the Table is for all to see. Nothing is read while no route names a secret.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from mesh.aio import Tasks
from mesh.keys import Keys
from mesh.store import Entry, Store, StoreError
from mesh.table import TableRoute, TableTls

log = logging.getLogger(__name__)

RETRY = 5.0
"""Seconds until the secrets are asked for again where the store refused them."""


class RouteSecrets:
    """Call `follow` with each new set of routes; `give` is called whenever what they need is another."""

    def __init__(self, store: Store, keys: Keys, give: Callable[[Mapping[str, str]], None]) -> None:
        self._store = store
        self._prefix = keys.secret("")
        self._give = give
        self._names: set[str] = set()
        self._entries: Mapping[str, Entry] = {}
        self._given: dict[str, str] = {}
        self._tasks = Tasks()
        self._watching: asyncio.Task[None] | None = None

    def follow(self, routes: Mapping[str, TableRoute]) -> None:
        self._names = {
            source.secret
            for route in routes.values()
            if isinstance(route.tls, TableTls)
            for source in (route.tls.cert, route.tls.key)
            if source.secret
        }
        if self._names and self._watching is None:
            self._watching = self._tasks.spawn(self._watch(), "watch route secrets")
        elif not self._names and self._watching is not None:
            self._watching.cancel()
            self._watching = None
            self._entries = {}
        self._hand_on()

    async def _watch(self) -> None:
        while True:
            try:
                async for change in self._store.watch(self._prefix):
                    self._entries = change.entries
                    self._hand_on()
            except StoreError as error:
                log.warning("the secrets of routes cannot be read: %s", error)
            await asyncio.sleep(RETRY)

    def _hand_on(self) -> None:
        found = {name: self._entries.get(self._prefix + name) for name in self._names}
        secrets = {name: entry.value.decode(errors="replace") for name, entry in found.items() if entry is not None}
        if secrets != self._given:
            self._given = secrets
            self._give(secrets)

    async def close(self) -> None:
        await self._tasks.close()
