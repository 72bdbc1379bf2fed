"""What replicas use, told by processes, and of containers by the kernel's files or the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import docker
import pytest

from mesh.runtime import MeteredRuntime
from mesh.runtime.usage import Cgroup, Usage, of_stats
from tests.contract.runtimes import FAIL, SLEEP, Lab, lab
from tests.parts.images import tiny_image
from tests.patience import until

BUSY = "while :; do :; done"


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    client = docker.from_env(version="auto").api
    yield tiny_image(client)
    client.close()


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
async def here(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lab]:
    kind = request.param
    async with lab(kind, tmp_path, request.getfixturevalue("image") if kind == "docker" else None) as made:
        yield made


async def used(here: Lab, *ids: str) -> dict[str, Usage]:
    return await cast(MeteredRuntime, here.runtime).usage(ids)


async def test_the_cpu_of_a_busy_replica_grows_and_that_of_an_idle_one_does_not(here: Lab) -> None:
    busy, idle = await here.start(BUSY), await here.start(SLEEP)

    async def both() -> dict[str, Usage] | None:  # a process that has only just begun is not told yet
        told = await used(here, busy.id, idle.id)
        return told if len(told) == 2 else None

    before = await until(both)

    async def grown() -> bool:
        now = await used(here, busy.id)
        return bool(now[busy.id].cpu > before[busy.id].cpu + 0.1)

    await until(grown)
    after = await used(here, busy.id, idle.id)
    assert after[idle.id].cpu - before[idle.id].cpu < 0.1
    assert 0 < after[idle.id].memory < 2**27


async def test_who_does_not_run_is_left_out(here: Lab) -> None:
    running, ended = await here.start(SLEEP), await here.start(FAIL)
    await here.exited(ended.id)
    told = await until(lambda: used(here, running.id, ended.id, "web-9-none"))
    assert told.keys() == {running.id}


@pytest.mark.docker
async def test_an_engine_tells_the_same_as_the_kernels_files(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab("docker", tmp_path, image) as here:
        busy = await here.start(BUSY)
        files = (await until(lambda: used(here, busy.id)))[busy.id]
        monkeypatch.setattr(Cgroup, "of", lambda pid, container: None)
        here.runtime = here.open()
        engine = (await used(here, busy.id))[busy.id]
        assert engine.cpu >= files.cpu
        assert abs(engine.memory - files.memory) < 2**22


def test_stats_of_a_container_that_does_not_run_tell_nothing() -> None:
    assert of_stats({"memory_stats": {}, "cpu_stats": {"cpu_usage": {"total_usage": 0}}}) is None
