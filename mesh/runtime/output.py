"""What replicas print: split into lines, collected up to a bound, kept in files that do not grow without end."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

LONGEST_LINE = 64 * 1024
MAX_COLLECTED = 1024 * 1024
FOLLOW_INTERVAL = 0.1
BLOCK = 64 * 1024


class LineSplitter:
    """Makes lines, with their ends, of chunks; a line above `LONGEST_LINE` bytes is handed out in parts."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        *whole, rest = (self._rest + chunk).split(b"\n")
        lines = [line + b"\n" for line in whole]
        if len(rest) >= LONGEST_LINE:
            lines.append(rest)
            rest = b""
        self._rest = rest
        return lines

    def flush(self) -> list[bytes]:
        """The last line, if it has no end yet."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


async def collect(chunks: AsyncIterator[bytes]) -> bytes:
    """All output, of which `MAX_COLLECTED` bytes are kept."""
    kept = bytearray()
    async for chunk in chunks:
        kept += chunk[: MAX_COLLECTED - len(kept)]
    return bytes(kept)


class OutputFile:
    """A file that programs append to, cut by `rotate` when it has grown above `limit` bytes.

    The programs keep the file open, so it is copied to `<name>.1` and emptied (logrotate's copytruncate):
    what is written between the two is lost.
    """

    def __init__(self, path: Path, *, limit: int = 5 * 2**20) -> None:
        self._path = path
        self._earlier = path.with_name(path.name + ".1")
        self._limit = limit

    def rotate(self) -> None:
        if _size(self._path) <= self._limit:
            return
        copy = self._earlier.with_name(self._earlier.name + ".new")
        shutil.copyfile(self._path, copy)
        copy.chmod(0o600)
        os.truncate(self._path, 0)
        copy.replace(self._earlier)

    async def lines(self, tail: int | None, following: Callable[[], bool]) -> AsyncIterator[bytes]:
        """The last `tail` lines or all, then new ones for as long as `following()`."""
        splitter = LineSplitter()
        async for block in self._read(tail, following):
            for line in splitter.feed(block):
                yield line
        for line in splitter.flush():
            yield line

    async def _read(self, tail: int | None, following: Callable[[], bool]) -> AsyncIterator[bytes]:
        cut = _identity(self._earlier)
        offset, missing = _start_of_last(self._path, tail)
        if missing is None or missing > 0:
            for block in _blocks(self._earlier, _start_of_last(self._earlier, missing)[0]):
                yield block
        while True:
            more_may_come = following()  # asked before reading, so that the last words are read
            if cut != (cut := _identity(self._earlier)):  # what had not been read is there now
                for block in _blocks(self._earlier, offset):
                    yield block
                offset = 0
            for block in _blocks(self._path, offset):
                offset += len(block)
                yield block
            if not more_may_come:
                return
            await asyncio.sleep(FOLLOW_INTERVAL)


def _identity(path: Path) -> tuple[int, int]:
    with suppress(FileNotFoundError):
        stat = path.stat()
        return stat.st_ino, stat.st_mtime_ns
    return 0, 0


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _blocks(path: Path, offset: int) -> Iterator[bytes]:
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(offset)
        while block := file.read(BLOCK):
            yield block


def _start_of_last(path: Path, count: int | None) -> tuple[int, int | None]:
    """Where the last `count` lines of the file begin, and how many more the file does not have."""
    if count is None:
        return 0, None
    size = _size(path)
    if count == 0 or size == 0:
        return size, count
    with path.open("rb") as file:
        position, ends = size, 0
        while position > 0:
            start = max(0, position - BLOCK)
            file.seek(start)
            block = file.read(position - start)
            # The end of the file's last line begins no line.
            found = block.rfind(b"\n", 0, len(block) - 1 if position == size else len(block))
            while found >= 0:
                ends += 1
                if ends == count:
                    return start + found + 1, 0
                found = block.rfind(b"\n", 0, found)
            position = start
    return 0, count - ends - 1
