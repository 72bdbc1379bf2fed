"""A worker's side of the Table's way, beside a supervisor of a few lines."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import Mock

from mesh.dataplane.follower import Follower, Served
from mesh.dataplane.frames import Hello, Quit, pack, read_to_supervisor

LINGER = 0.5


async def test_the_time_to_linger_begins_with_the_goodbye(tmp_path: Path) -> None:
    """And not with the connection: an agent that has run for long is restarted without a gap too."""
    came_back = asyncio.Event()
    met: list[asyncio.StreamWriter] = []

    async def supervise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_to_supervisor(reader)
        met.append(writer)
        if len(met) > 1:
            came_back.set()
            return
        await asyncio.sleep(2 * LINGER)  # longer than it may linger
        writer.write(pack(Quit(linger=LINGER)))

    served = Mock(spec=Served, problems=list, metrics=list, loads=list)
    async with await asyncio.start_unix_server(supervise, tmp_path / "feed.sock"):
        follower = Follower(tmp_path / "feed.sock", Hello("dns", 1, 1, "", ""), served)
        following = asyncio.create_task(follower.run())
        back = asyncio.create_task(came_back.wait())
        await asyncio.wait([following, back], return_when=asyncio.FIRST_COMPLETED)
        assert came_back.is_set()
        for task in (following, back):
            task.cancel()
        for writer in met:
            writer.close()
