"""A watch: whatever happens to the store, what it has now, after each change."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from mesh.aio import Backoff
from mesh.store import Change, Entry, Listing, StoreError

log = logging.getLogger(__name__)

FIRST_RETRY, LONGEST_RETRY = 0.05, 5.0


class Source(Protocol):
    """What a watch asks."""

    async def next(self) -> Listing:
        """What there is after a change, or after a while; at once the first time. Raises `StoreError`."""

    def forget(self) -> None:
        """The store was away: the next answer is to come at once, and to tell everything."""


async def changes(source: Source, prefix: str) -> AsyncIterator[Change]:
    """Everything at the start, then after each change; the store's absences are waited for."""
    known: Mapping[str, Entry] | None = None
    backoff = Backoff(FIRST_RETRY, LONGEST_RETRY)
    away = False
    while True:
        try:
            listing = await source.next()
        except StoreError as error:
            if not away:
                log.warning("watch interrupted prefix=%s: %s", prefix, error)
            away = True
            source.forget()
            await backoff.sleep()
            continue
        if away:
            log.info("watch goes on prefix=%s index=%d", prefix, listing.index)
        away = False
        backoff.reset()
        changed = frozenset(listing.entries) if known is None else _differing(known, listing.entries)
        if known is None or changed:
            known = listing.entries
            yield Change(listing.index, listing.entries, changed)


def _differing(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> frozenset[str]:
    """The keys that were written, removed, locked or unlocked: not by index alone, which a restore may repeat."""
    return frozenset(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
