"""Lines out of chunks, and files of output that are read, followed and cut."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.runtime.output import BLOCK, LONGEST_LINE, MAX_COLLECTED, LineSplitter, OutputFile, collect


@given(st.lists(st.binary()))
def test_lines_hold_every_byte_in_order(chunks: list[bytes]) -> None:
    splitter = LineSplitter()
    lines = [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.flush()
    assert b"".join(lines) == b"".join(chunks)
    assert all(line.endswith(b"\n") for line in lines[:-1])
    assert all(line.count(b"\n") <= 1 for line in lines)


def test_a_line_without_end_is_handed_out_in_parts() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"x" * (LONGEST_LINE - 1)) == []
    assert splitter.feed(b"x") == [b"x" * LONGEST_LINE]
    assert splitter.flush() == []


async def test_only_so_much_is_collected() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 2**16

    assert len(await collect(chunks())) == MAX_COLLECTED


async def read(output: OutputFile, tail: int | None = None) -> bytes:
    return b"".join([line async for line in output.lines(tail, following=lambda: False)])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("text", [b"", b"one\n", b"one", b"one\ntwo\nthree\n", b"one\ntwo\nthree", b"\n\n\n"])
async def test_the_last_lines(tmp_path: Path, text: bytes, count: int) -> None:
    (tmp_path / "log").write_bytes(text)
    lines = text.splitlines(keepends=True)
    assert await read(OutputFile(tmp_path / "log"), count) == b"".join(lines[len(lines) - min(count, len(lines)) :])


async def test_the_last_lines_of_a_long_file(tmp_path: Path) -> None:
    lines = [b"%d " % number + b"x" * 100 + b"\n" for number in range(BLOCK // 25)]
    (tmp_path / "log").write_bytes(b"".join(lines))
    for count in (1, 700, 1500, len(lines) - 1, len(lines), len(lines) + 1):
        assert await read(OutputFile(tmp_path / "log"), count) == b"".join(lines[-count:])


async def test_a_file_that_is_cut_goes_on_with_what_came_before(tmp_path: Path) -> None:
    output = OutputFile(tmp_path / "log", limit=20)
    with (tmp_path / "log").open("ab", buffering=0) as program:
        program.write(b"1 of the first part\n2 of the first part\n")
        output.rotate()
        program.write(b"3 of the second\n")
        output.rotate()
    assert (tmp_path / "log").stat().st_size == 16
    assert await read(output) == b"1 of the first part\n2 of the first part\n3 of the second\n"
    assert await read(output, 2) == b"2 of the first part\n3 of the second\n"
    assert await read(output, 1) == b"3 of the second\n"


async def test_nothing_was_printed(tmp_path: Path) -> None:
    output = OutputFile(tmp_path / "log")
    output.rotate()
    assert await read(output) == b""
    assert await read(output, 3) == b""


async def test_following_sees_all_that_is_added_across_cuts(tmp_path: Path) -> None:
    path = tmp_path / "log"
    output = OutputFile(path, limit=1)
    written = [b"%d\n" % number for number in range(10)]
    unwritten = iter(written)

    def following() -> bool:
        """Called before each look: meanwhile the program has written, the file was cut, and it has written again."""
        more = False
        for line in itertools.islice(unwritten, 2):
            with path.open("ab") as program:
                program.write(line)
            if not more:
                output.rotate()
            more = True
        return more

    async with asyncio.timeout(10):
        assert [line async for line in output.lines(None, following)] == written
