"""What is the process runtime's own: ports, adoption after kill -9, whole process trees, bounded output, secrets."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.runtime import InstanceState, RuntimeFault
from mesh.runtime.process import ProcessRuntime
from mesh.runtime.process_table import ProcessId, processes_with
from mesh.spec.service import parse_spec
from tests.contract.runtimes import FAIL, POLITE, SLEEP, Lab, lab
from tests.patience import until


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab("process", tmp_path / "state") as made:
        yield made


def descendants(folder: Path) -> list[ProcessId]:
    return processes_with("MESH_INSTANCE", str(folder))


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def read(path: str) -> bytes:
    return Path(path).read_bytes()


async def test_the_program_is_told_its_port_and_address(here: Lab) -> None:
    started = await here.start(
        'echo "$HOST:$PORT_WEB_UI"; exec sleep 1000', ports={"web-ui": {"port": 80, "target": 8080}}
    )
    await here.says(started.id, f"{started.address}:{started.ports['web-ui']}".encode())


async def test_no_two_replicas_share_a_port(here: Lab) -> None:
    ports = {"http": {"port": 80}, "dns": {"port": 53, "protocol": "udp"}}
    started = await asyncio.gather(*(here.start(SLEEP, ports=ports) for _ in range(30)))
    chosen = [port for one in started for port in one.ports.values()]
    assert len(set(chosen)) == 60
    more = await here.open().start(here.launch(SLEEP, ports=ports))
    assert not set(more.ports.values()) & set(chosen)


async def test_a_listing_sees_a_replica_whole_or_not_at_all(here: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing takes a while, in a thread; a listing meanwhile once met half a folder, and that ended the agent."""
    begun, go_on, remove_all = threading.Event(), threading.Event(), shutil.rmtree

    def half(folder: Path, ignore_errors: bool) -> None:
        (folder / "program").unlink()
        begun.set()
        go_on.wait(10)
        remove_all(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr("shutil.rmtree", half)
    gone, stays = await here.start(SLEEP), await here.start(SLEEP)
    removal = asyncio.create_task(here.runtime.remove(gone.id))
    await asyncio.to_thread(begun.wait, 10)
    try:
        assert [instance.id for instance in await here.runtime.instances()] == [stays.id]
    finally:
        go_on.set()
    await removal


async def test_a_static_port_is_used_and_a_taken_one_named(here: Lab) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(RuntimeFault, match=f"port {port} of node n1 is already in use"):
            await here.start(SLEEP, ports={"db": {"port": 5432, "host_port": port}})
        assert await here.runtime.instances() == []
    started = await here.start(SLEEP, ports={"db": {"port": 5432, "host_port": port}})
    assert started.ports == {"db": port}


async def test_a_program_that_is_not_there_is_named_and_leaves_nothing(here: Lab) -> None:
    launch = here.launch(SLEEP, command=["no-such-program", "--flag"])
    with pytest.raises(RuntimeFault, match="'no-such-program' is not on this node"):
        await here.runtime.start(launch)
    assert await here.runtime.instances() == []


async def test_an_image_alone_is_refused_with_advice(here: Lab) -> None:
    with pytest.raises(RuntimeFault, match="web has no command, and this node runs processes"):
        await here.runtime.prepare(parse_spec({"name": "web", "image": "web:1"}), print)


async def test_replicas_outlive_an_agent_that_is_killed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    script = f"""
import asyncio, os, signal
from pathlib import Path
from tests.contract.runtimes import lab, SLEEP, FAIL
async def main():
    async with lab("process", Path({str(state)!r})) as here:
        await here.start(SLEEP, id="web-1-lives")
        await here.start("sleep 0.2; exit 3", id="web-2-ends")
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    assert await agent.wait() == -signal.SIGKILL
    async with lab("process", state) as here:
        here.ids += ["web-1-lives", "web-2-ends"]
        lives = await here.find("web-1-lives")
        assert lives is not None
        assert lives.state is InstanceState.RUNNING
        assert (await here.exited("web-2-ends")).exit_code == 3
        await here.runtime.signal_and_wait("web-1-lives", "SIGTERM", 5)
        assert (await here.exited("web-1-lives")).exit_code == 143


async def test_a_process_that_has_the_number_now_is_not_taken_for_the_replica(here: Lab, tmp_path: Path) -> None:
    launch = here.launch(FAIL)
    await here.runtime.start(launch)
    await here.exited(launch.assignment.id)
    folder = tmp_path / "state" / "replicas" / launch.assignment.id
    (folder / "exit").unlink()
    stranger = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    stat = read(f"/proc/{stranger.pid}/stat").split()
    stat[21] = b"1"  # it began earlier
    for name in ("keeper", "program"):
        (folder / name).write_bytes(b" ".join(stat))
    found = await here.find(launch.assignment.id)
    assert found is not None
    assert (found.state, found.exit_code) == (InstanceState.EXITED, None)
    await here.runtime.remove(launch.assignment.id)
    stranger.terminate()
    assert await stranger.wait() == -signal.SIGTERM


async def test_a_killed_keeper_costs_the_exit_status_not_the_program(here: Lab, tmp_path: Path) -> None:
    started = await here.start(SLEEP)
    keeper = ProcessId.parse((tmp_path / "state" / "replicas" / started.id / "keeper").read_text())
    keeper.signal(signal.SIGKILL)
    assert await keeper.ended(5)
    found = await here.find(started.id)
    assert found is not None
    assert found.state is InstanceState.RUNNING
    os.kill(int(started.handle), signal.SIGKILL)
    assert (await here.exited(started.id)).exit_code is None


async def test_the_signal_reaches_the_whole_group(here: Lab, tmp_path: Path) -> None:
    child = f"sh -c '{POLITE.replace('exit 7', 'echo child >&2; exit 7')}'"
    started = await here.start(f"{child} & trap 'wait; exit 0' TERM; echo up; wait")
    await here.says(started.id, b"ready")
    await here.runtime.signal_and_wait(started.id, "SIGTERM", 10)
    await here.says(started.id, b"child")


async def test_nothing_is_left_behind_not_even_in_sessions_of_its_own(here: Lab, tmp_path: Path) -> None:
    started = await here.start("setsid sleep 1000 & sleep 1000 & echo up; wait")
    await here.says(started.id, b"up")
    folder = tmp_path / "state" / "replicas" / started.id

    async def all_there() -> bool:
        return len(descendants(folder)) >= 4

    await until(all_there)
    await here.runtime.signal_and_wait(started.id, "SIGTERM", 5)
    assert descendants(folder) == []
    await here.runtime.remove(started.id)
    assert not folder.exists()


async def test_secrets_are_in_no_file_and_no_command_line(here: Lab, tmp_path: Path) -> None:
    started = await here.start(SLEEP, env={"TOKEN": "s3cr3t"})
    assert (await here.runtime.exec(started.id, ["sh", "-c", 'echo "$TOKEN"'])).output == b"s3cr3t\n"
    folder = tmp_path / "state" / "replicas" / started.id
    assert folder.stat().st_mode & 0o077 == 0
    assert not [file for file in folder.iterdir() if b"s3cr3t" in file.read_bytes()]
    assert not [one for one in descendants(folder) if b"s3cr3t" in read(f"/proc/{one.pid}/cmdline")]


async def test_the_agents_own_secrets_do_not_reach_replicas(here: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "the agent's")
    started = await here.start(SLEEP)
    environment = (await here.runtime.exec(started.id, ["env"])).output
    assert b"CONSUL_HTTP_TOKEN" not in environment
    assert b"PATH=" in environment


async def test_volumes_are_folders_that_outlive_replicas(here: Lab) -> None:
    volumes = {"data": {"path": "/var/lib/x"}}
    first = await here.start('echo kept > "$VOLUME_DATA/file"; echo done; exec sleep 1000', volumes=volumes)
    await here.says(first.id, b"done")
    await here.runtime.remove(first.id)
    second = await here.start('cat "$VOLUME_DATA/file"; exec sleep 1000', volumes=volumes)
    await here.says(second.id, b"kept")


async def test_exec_kills_what_takes_too_long_and_bounds_its_output(here: Lab, tmp_path: Path) -> None:
    started = await here.start(SLEEP)
    with pytest.raises(RuntimeFault, match="did not end within"):
        await here.runtime.exec(started.id, ["sh", "-c", "sleep 4321 & sleep 4321"], timeout=0.2)

    async def gone() -> bool:
        left = descendants(tmp_path / "state" / "replicas" / started.id)
        return not any(b"4321" in command_line(process.pid) for process in left)

    await until(gone)
    result = await here.runtime.exec(started.id, ["head", "-c", "3000000", "/dev/zero"])
    assert (result.code, len(result.output)) == (0, 2**20)


async def test_signals_that_the_agent_ignores_are_not_ignored_in_the_program(here: Lab) -> None:
    started = await here.start("grep SigIgn /proc/self/status; exec sleep 1000")

    async def said() -> list[bytes]:
        return [line async for line in here.runtime.logs(started.id)]

    ignored = int((await until(said))[0].split()[1], 16)
    assert not [number for number in signal.Signals if ignored & 1 << (number - 1)]


async def test_a_second_runtime_does_not_lose_the_first_ones_starts(tmp_path: Path) -> None:
    first, second = ProcessRuntime(tmp_path, "n1"), ProcessRuntime(tmp_path, "n1")
    async with lab("process", tmp_path) as here:
        started = await first.start(here.launch(SLEEP))
        assert [one.id for one in await second.instances()] == [started.id]
    await first.close()
    await second.close()
