"""Clients that are not read for a while, and hang up: told by an epoll of our own, which wakes us for nothing else.

A loop watches a socket for what can be read. That is no help where bytes shall stay in the kernel: they would wake us
again and again, and the end lies behind them.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Callable

HungUp = Callable[[bool], None]
"""Hears that a client sends no more, or (True) that its connection is gone. It may hear one after the other."""

_EVENTS = select.EPOLLRDHUP | select.EPOLLET  # a reset is told in any case, by EPOLLHUP and EPOLLERR


class Hangups:
    """Watches sockets by their descriptors."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None  # as soon as it is needed
        self._told: dict[int, HungUp] = {}

    def watch(self, descriptor: int, hung_up: HungUp) -> None:
        """Calls `hung_up` from the loop, also if it happened already. Ends with `forget`, before the socket is closed.

        Where the kernel has no room for one more watch, the end is noticed later, by whoever reads or writes.
        """
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)
        with contextlib.suppress(OSError):
            self._epoll.register(descriptor, _EVENTS)
            self._told[descriptor] = hung_up

    def forget(self, descriptor: int) -> None:
        if self._told.pop(descriptor, None) is not None and self._epoll is not None:
            with contextlib.suppress(OSError):  # it is closed
                self._epoll.unregister(descriptor)

    def _look(self) -> None:
        assert self._epoll is not None
        for descriptor, events in self._epoll.poll(0):
            if hung_up := self._told.get(descriptor):
                hung_up(bool(events & (select.EPOLLHUP | select.EPOLLERR)))

    def close(self) -> None:
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
