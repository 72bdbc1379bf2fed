"""A Table in a file, read again when it changes: for a data plane without the rest of the mesh."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from mesh.startup import StartError
from mesh.table import Table, TableError, parse_table

log = logging.getLogger(__name__)

LOOK_EVERY = 0.25
"""Seconds between looks at the file's time, size and inode."""


class TableFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> Table:
        """Raises `StartError` if there is no Table in it."""
        try:
            self._seen = self._mark()
            return parse_table(self._path.read_bytes())
        except OSError as error:
            raise StartError(f"{self._path}: {error.strerror}: --table wants a file with a Table") from None
        except TableError as error:
            raise StartError(f"{self._path}: {error}") from None

    async def follow(self, publish: Callable[[Table], object]) -> None:
        """Publishes each new Table; a file that is broken or gone changes nothing, and is said once."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                mark = self._mark()
            except OSError as error:
                mark = None
                fault = error.strerror
            if mark == self._seen:
                continue
            self._seen = mark
            if mark is None:
                log.warning("%s: %s: the last Table stays", self._path, fault)
                continue
            try:
                table = self.read()
            except StartError as error:
                log.warning("%s: the last Table stays", error)
            else:
                publish(table)
                log.info("%s: read again, index %d", self._path, table.index)

    def _mark(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino
