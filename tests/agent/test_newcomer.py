"""The process that stands by: it takes the place of one that crashed, with its sockets, and is never in the way."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench.processes import children
from mesh.dataplane.newcomer import Newcomer, hear_of_place
from mesh.dataplane.worker import ProxyArguments
from mesh.dataplane.workers import Workers
from mesh.table import Table
from tests.patience import until


class World:
    """Two workers that share the work, and whoever stands by."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._before = children(os.getpid())
        self.workers = Workers(folder, [ProxyArguments()] * 2)

    def placed(self) -> set[int]:
        return {int(file.read_text()) for file in self.folder.glob("proxy-*.pid")}

    def unplaced(self) -> list[int]:
        return [pid for pid in children(os.getpid()) if pid not in self._before and pid not in self.placed()]

    async def one_standing_by(self) -> int:
        await until(lambda: len(self.unplaced()) == 1, "process that stands by, alone")
        return self.unplaced()[0]

    async def kill(self, name: str) -> int:
        """Kills this worker; the process that serves in its place."""
        file = self.folder / f"{name}.pid"
        killed = int(file.read_text())
        os.kill(killed, signal.SIGKILL)
        await until(lambda: int(file.read_text()) != killed, "successor")
        await self.workers.serving()
        return int(file.read_text())


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path / "workers")
    world.workers.publish(Table())
    await world.workers.start()
    await world.workers.serving()
    yield world
    await world.workers.close()
    assert not world.unplaced()


async def test_one_stands_by_and_takes_the_place_of_a_worker_that_crashed(world: World) -> None:
    first = await world.one_standing_by()
    assert await world.kill("proxy-2") == first
    assert await world.one_standing_by() != first, "and another stands by"


async def test_a_place_is_filled_although_nobody_stands_by_any_more(world: World) -> None:
    os.kill(first := await world.one_standing_by(), signal.SIGKILL)
    assert await world.kill("proxy-1") != first
    await world.one_standing_by()


async def test_a_replacement_by_intent_gets_new_processes_only(world: World) -> None:
    first = await world.one_standing_by()
    assert await world.workers.replace() == []
    assert first not in world.placed()
    assert await world.one_standing_by() != first


def test_a_newcomer_hears_of_more_sockets_than_fit_into_a_message() -> None:
    ours, theirs = os.pipe()
    heard: list[int] = []

    def command(descriptor: int) -> list[str]:
        heard.append(os.dup(descriptor))
        return ["true"]

    newcomer = Newcomer(command, ())
    sockets = {f"tcp 127.0.0.1:{port}": theirs for port in range(450)}
    newcomer.give_place(3, sockets)
    place = hear_of_place(heard[0])
    assert place is not None
    assert place.number == 3
    assert list(place.sockets) == list(sockets)
    assert {os.fstat(each).st_ino for each in place.sockets.values()} == {os.fstat(theirs).st_ino}
    for descriptor in (ours, theirs, *place.sockets.values()):
        os.close(descriptor)
    newcomer.dismiss()


def test_a_newcomer_ends_where_nobody_has_a_place_for_it() -> None:
    heard: list[int] = []

    def command(descriptor: int) -> list[str]:
        heard.append(os.dup(descriptor))
        return ["true"]

    Newcomer(command, ()).dismiss()
    assert hear_of_place(heard[0]) is None
