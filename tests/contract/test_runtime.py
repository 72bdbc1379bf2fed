"""What every runtime must do: a Docker engine, local processes, and the fake of the unit tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import docker
import pytest

from mesh.runtime import File, InstanceState, RuntimeFault
from tests.contract.runtimes import (
    BRIEF,
    COUNT,
    DEADLINE,
    FAIL,
    GREET,
    POLITE,
    SHOW_FILES,
    SLEEP,
    STUBBORN,
    Lab,
    lab,
)
from tests.parts.images import tiny_image
from tests.patience import until


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    client = docker.from_env(version="auto").api
    yield tiny_image(client)
    client.close()


@pytest.fixture(params=["fake", "process", pytest.param("docker", marks=pytest.mark.docker)])
async def here(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lab]:
    kind = request.param
    async with lab(kind, tmp_path, request.getfixturevalue("image") if kind == "docker" else None) as made:
        yield made


async def test_facts_name_the_runtime_and_what_the_node_offers(here: Lab) -> None:
    facts = await here.runtime.facts()
    assert facts.name in ("fake", "process", "docker")
    assert facts.version
    assert facts.capacity.cpu >= 1000
    assert facts.capacity.memory > 2**28


async def test_a_started_replica_runs_and_is_listed(here: Lab) -> None:
    launch = here.launch(SLEEP, ports={"http": {"port": 80}})
    started = await here.runtime.start(launch)
    assert (started.service, started.slot, started.release) == ("web", 1, 2)
    assert started.state is InstanceState.RUNNING
    assert started.address
    assert started.ports.keys() == {"http"}
    assert started.exit_code is None
    assert await here.find(started.id) == started


async def test_starting_again_returns_what_runs(here: Lab) -> None:
    launch = here.launch(SLEEP)
    first = await here.runtime.start(launch)
    assert await here.runtime.start(launch) == first


async def test_two_starts_at_once_make_one_instance(here: Lab) -> None:
    launch = here.launch(SLEEP)
    first, second = await asyncio.gather(here.runtime.start(launch), here.runtime.start(launch))
    assert first.handle == second.handle
    assert [one.id for one in await here.runtime.instances()] == [first.id]


async def test_a_replica_that_ended_is_never_started_into_a_new_life(here: Lab) -> None:
    launch = here.launch(FAIL)
    await here.runtime.start(launch)
    ended = await here.exited(launch.assignment.id)
    again = await here.runtime.start(launch)
    assert (again.state, again.exit_code, again.handle) == (InstanceState.EXITED, 3, ended.handle)


async def test_another_runtime_object_adopts_what_runs(here: Lab) -> None:
    started = await here.start(SLEEP, ports={"http": {"port": 80}}, singleton=True)
    adopter = here.open()
    assert await here.find(started.id, adopter) == started
    assert started.singleton
    await adopter.signal_and_wait(started.id, "SIGTERM", 5)
    assert (await here.exited(started.id)).exit_code == 143


async def test_how_it_ended_is_known_to_an_agent_that_was_away(here: Lab) -> None:
    launch = here.launch(FAIL)
    await here.runtime.start(launch)
    await here.runtime.close()
    assert (await here.exited(launch.assignment.id, here.open())).exit_code == 3


async def test_the_environment_reaches_the_program(here: Lab) -> None:
    started = await here.start(GREET)
    await here.says(started.id, f"hello world from {started.id}".encode())


async def test_files_that_were_made_for_it_are_there_when_it_starts(here: Lab) -> None:
    files = [File("/etc/web/a.conf", b"colour = blue\n", 0o440), File("/etc/web/b", b"hush\n", 0o444)]
    started = await here.start(SHOW_FILES, files=files)
    await here.says(started.id, b"colour = blue")
    await here.says(started.id, b"hush")
    await here.says(started.id, b"440")
    await here.says(started.id, b"444")


async def test_the_program_may_end_in_its_own_way_at_the_signal(here: Lab) -> None:
    started = await here.start(POLITE)
    await here.says(started.id, b"ready")
    await here.runtime.signal_and_wait(started.id, "SIGTERM", 10)
    ended = await here.find(started.id)
    assert ended is not None
    assert (ended.state, ended.exit_code) == (InstanceState.EXITED, 7)


async def test_a_program_that_ignores_the_signal_is_killed(here: Lab) -> None:
    started = await here.start(STUBBORN)
    await here.says(started.id, b"deaf")
    await here.runtime.signal_and_wait(started.id, "SIGTERM", 0.2)
    ended = await here.find(started.id)
    assert ended is not None
    assert (ended.state, ended.exit_code) == (InstanceState.EXITED, 137)


async def test_another_signal_can_be_asked_for(here: Lab) -> None:
    started = await here.start(SLEEP)
    await here.runtime.signal_and_wait(started.id, "SIGINT", 10)
    assert (await here.exited(started.id)).exit_code == 130


async def test_an_unknown_signal_is_refused(here: Lab) -> None:
    started = await here.start(SLEEP)
    with pytest.raises(RuntimeFault, match=r"(?i)signal"):
        await here.runtime.signal_and_wait(started.id, "SIGNONE", 1)


async def test_signalling_what_has_ended_or_never_was_is_no_fault(here: Lab) -> None:
    launch = here.launch(FAIL)
    await here.runtime.start(launch)
    await here.exited(launch.assignment.id)
    await here.runtime.signal_and_wait(launch.assignment.id, "SIGTERM", 1)
    await here.runtime.signal_and_wait("web-9-none", "SIGTERM", 1)


async def test_removing_ends_what_runs_and_may_be_repeated(here: Lab) -> None:
    started = await here.start(SLEEP)
    await here.runtime.remove(started.id)
    assert await here.runtime.instances() == []
    await here.runtime.remove(started.id)


async def test_events_ask_for_a_look_at_all_then_at_what_ended(here: Lab) -> None:
    async with aclosing(here.runtime.events()) as events, asyncio.timeout(DEADLINE):
        listening = asyncio.ensure_future(anext(events))
        started = await here.start(SLEEP)
        await here.runtime.signal_and_wait(started.id, "SIGKILL", 5)
        seen = [await listening]
        while started.id not in seen:
            seen.append(await anext(events))
        assert set(seen) <= {"", started.id}


async def test_after_the_event_of_an_end_the_listing_says_so(here: Lab) -> None:
    started = await here.start(SLEEP)
    async with aclosing(here.runtime.events()) as events, asyncio.timeout(DEADLINE):
        listening = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        dying = asyncio.ensure_future(here.runtime.signal_and_wait(started.id, "SIGKILL", 5))
        while True:
            await listening
            instance = await here.find(started.id)
            assert instance is not None
            if instance.state is InstanceState.EXITED:
                break
            listening = asyncio.ensure_future(anext(events))
        assert instance.exit_code == 137
        await dying


async def test_logs_give_all_lines_or_the_last(here: Lab) -> None:
    started = await here.start(COUNT)
    await here.says(started.id, b"line 5")
    assert [line async for line in here.runtime.logs(started.id)] == [b"line %d\n" % i for i in range(1, 6)]
    assert [line async for line in here.runtime.logs(started.id, tail=2)] == [b"line 4\n", b"line 5\n"]
    assert [line async for line in here.runtime.logs(started.id, tail=0)] == []


async def test_following_logs_ends_with_the_replica(here: Lab) -> None:
    started = await here.start(BRIEF)
    async with asyncio.timeout(DEADLINE):
        assert [line async for line in here.runtime.logs(started.id, follow=True)] == [b"first\n", b"last\n"]


async def test_following_can_be_left(here: Lab) -> None:
    started = await here.start(COUNT)
    async with aclosing(here.runtime.logs(started.id, follow=True)) as lines, asyncio.timeout(DEADLINE):
        assert await anext(lines) == b"line 1\n"
    await here.runtime.remove(started.id)


async def test_exec_gives_output_and_exit_code(here: Lab) -> None:
    started = await here.start(SLEEP)
    result = await here.runtime.exec(started.id, ["sh", "-c", 'echo "$NAME"; exit 4'])
    assert (result.code, result.output) == (4, b"world\n")


async def test_exec_that_takes_too_long_is_a_fault(here: Lab) -> None:
    started = await here.start(SLEEP)
    with pytest.raises(RuntimeFault, match="did not end within"):
        await here.runtime.exec(started.id, ["sh", "-c", SLEEP], timeout=0.2)


async def test_exec_and_logs_of_what_is_not_there_are_faults(here: Lab) -> None:
    with pytest.raises(RuntimeFault):
        await here.runtime.exec("web-9-none", ["true"])
    with pytest.raises(RuntimeFault):
        await anext(aiter(here.runtime.logs("web-9-none")))


async def test_many_at_once(here: Lab) -> None:
    started = await asyncio.gather(*(here.start(SLEEP, ports={"http": {"port": 80}}) for _ in range(8)))
    assert {one.id for one in await here.runtime.instances()} == {one.id for one in started}
    assert len({(one.address, one.ports["http"]) for one in started}) == 8
    await asyncio.gather(*(here.runtime.signal_and_wait(one.id, "SIGTERM", 5) for one in started))

    async def all_ended() -> bool:
        return all(one.state is InstanceState.EXITED for one in await here.runtime.instances())

    await until(all_ended)
