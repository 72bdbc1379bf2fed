"""What the DNS server and the proxy have in common, seen from the process that runs them."""

from __future__ import annotations

from typing import Protocol

from mesh.metrics import Family
from mesh.table import Table, TableDelta


class DataPlane(Protocol):
    """A server that answers from a Table. `dns/server.py` and `proxy/server.py` each have one."""

    async def start(self) -> None:
        """Opens the fixed listeners. Raises OSError with the address in its message."""

    async def update(self, table: Table, delta: TableDelta | None) -> None:
        """Answers from `table` from now on; `delta` says what changed (None: anything may have).

        When it returns, no new query or connection meets what the Table no longer holds.
        """

    def problems(self) -> list[str]:
        """What could not be done for the present Table: `web.http: cannot listen on 127.0.0.1:80: …`."""

    def metrics(self) -> list[Family]: ...

    async def close(self) -> None:
        """Stops accepting, lets open work end within a short bound, closes."""
