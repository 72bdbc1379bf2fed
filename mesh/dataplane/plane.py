"""What the DNS server and the proxy have in common, seen from the process that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from mesh.dataplane.load import PortLoad
from mesh.metrics import Family
from mesh.table import Table, TableDelta


class DataPlane(Protocol):
    """A server that answers from a Table. `dns/server.py` and `proxy/server.py` each have one."""

    def adopt(self, descriptors: Mapping[str, int]) -> None:
        """Sockets of a predecessor by their places (`tcp 10.96.0.7:80`): they are used instead of new ones, or closed.

        To be called before `start` and `update`.
        """

    def export(self) -> dict[str, int]:
        """The descriptors of the sockets that it listens on now, by their places."""

    async def start(self) -> None:
        """Opens the fixed listeners. Raises OSError with the address in its message."""

    async def update(self, table: Table, delta: TableDelta | None) -> None:
        """Answers from `table` from now on; `delta` says what changed (None: anything may have).

        When it returns, no new query or connection meets what the Table no longer holds.
        """

    def give_secrets(self, secrets: Mapping[str, str]) -> None:
        """The values of the secrets that the Table names; they may come before it or after."""

    def tell_waiting(self, tell: Callable[[Mapping[str, int]], None]) -> None:
        """From now on tells how many requests and connections wait for each service that sleeps, as it changes."""

    def problems(self) -> list[str]:
        """What could not be done for the present Table: `web.http: cannot listen on 127.0.0.1:80: …`."""

    def metrics(self) -> list[Family]: ...

    def loads(self) -> list[PortLoad]:
        """What was proxied since the last call."""

    async def close(self, seconds: float = 5.0, *, shared: bool = False) -> None:
        """Stops accepting, lets open work end within that time, closes.

        shared: another worker has the sockets, and takes what waits in their queues.
        """
