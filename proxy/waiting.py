"""The waiting room of a worker: requests and connections that came for a service at zero, and wait while it starts.

The gate of a service that sleeps lets nobody in (`Backend.settle`). Whoever comes stands in the line before it, like
anybody who waits for a turn, but for longer; the room bounds them all together, and tells which services are waited
for: that is what wakes them. With the first endpoint the gate opens, and the line moves up within the usual limits.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from mesh.proxy.hangup import Hangups, HungUp
from mesh.proxy.limit import Waiter

if TYPE_CHECKING:
    from mesh.proxy.backend import Backend

MOST_HELD = 8192
"""Requests and connections in the room, of all services together."""
MOST_BYTES = 64 * 2**20
"""Bytes of them that are in memory. What a client sends beyond its first bytes is left to the kernel."""
TELL_EVERY = 0.1
"""Seconds from a change until it is told: a burst of first requests is told as one, and wakes as many replicas as it
needs with one decision."""

Tell = Callable[[Mapping[str, int]], None]
"""Hears how many wait in this worker, for each service that sleeps."""


class Hold:
    """One that waits."""

    __slots__ = ("_forget", "_room", "backend", "since", "size")

    def __init__(self, room: WaitingRoom, backend: Backend, size: int, now: float) -> None:
        self.backend = backend
        self.size = size
        self.since = now
        self._room = room
        self._forget: Callable[[], None] | None = None

    def watch(self, hangups: Hangups, descriptor: int, hung_up: HungUp) -> None:
        """Notices if its client hangs up."""
        self._forget = partial(hangups.forget, descriptor)
        hangups.watch(descriptor, hung_up)

    def end(self, now: float) -> None:
        """It was let in, or waits no more. To be called once, before its socket is closed."""
        if self._forget is not None:
            self._forget()
        self._room.left(self, now)


class WaitingRoom:
    """All that wait in this worker: pure. `now`: monotonic seconds."""

    def __init__(self, *, most: int = MOST_HELD, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._held: Counter[Backend] = Counter()
        self.count = 0
        self.bytes = 0
        self.changed: Callable[[], None] = lambda: None
        """Hears that somebody has come, or left."""

    def enter(self, waiter: Waiter, backend: Backend, size: int, now: float) -> Hold | None:
        """Puts `waiter`, of which `size` bytes are in memory, in line; None if there is no room for it."""
        if self.count >= self._most or self.bytes + size > self._most_bytes or not backend.gate.wait(waiter):
            return None
        self.count += 1
        self.bytes += size
        self._held[backend] += 1
        backend.stats.hold()
        self.changed()
        return Hold(self, backend, size, now)

    def left(self, hold: Hold, now: float) -> None:
        """One has left the line."""
        backend = hold.backend
        self.count -= 1
        self.bytes -= hold.size
        self._held[backend] -= 1
        if not self._held[backend]:
            del self._held[backend]
        backend.stats.held_for(now - hold.since)
        self.changed()

    def services(self) -> dict[str, int]:
        """How many wait, for each service that sleeps."""
        waiting: Counter[str] = Counter()
        for backend, count in self._held.items():
            if backend.asleep:
                waiting[backend.service] += count
        return dict(waiting)


class Herald:
    """Tells who waits in a room, all that has changed within a moment together."""

    def __init__(self, room: WaitingRoom, tell: Tell) -> None:
        self._room = room
        self._tell = tell
        self._told: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        room.changed = self._changed

    def _changed(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TELL_EVERY, self._say)

    def _say(self) -> None:
        self._timer = None
        services = self._room.services()
        if services != self._told:
            self._told = services
            self._tell(services)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
