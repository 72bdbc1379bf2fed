"""What is the Docker runtime's own, on a real engine: what it asks of it, and how it lives through its faults."""

from __future__ import annotations

import asyncio
import socket
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import docker
import pytest

from mesh.aio import Tasks
from mesh.runtime import ImageMissing, InstanceState, RuntimeFault, RuntimeUnavailable
from mesh.runtime.docker import DockerRuntime
from mesh.runtime.docker_engine import Engine, docker_available
from mesh.spec.service import parse_spec
from tests.contract.runtimes import DEADLINE, SLEEP, Lab, lab
from tests.parts.docker import PrivateEngine
from tests.parts.images import python_image, tiny_image
from tests.patience import until

pytestmark = pytest.mark.docker

HTTPD = "mkdir /www; echo here > /www/index.html; exec httpd -f -p 8080 -h /www"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    client = docker.from_env(version="auto").api
    yield client
    client.close()


@pytest.fixture(scope="module")
def image(client: Any) -> str:
    return tiny_image(client)


@pytest.fixture
async def here(image: str, tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab("docker", tmp_path, image) as made:
        yield made


@pytest.fixture
async def away() -> AsyncIterator[DockerRuntime]:
    runtime = DockerRuntime("n1", docker_host="unix:///nowhere/docker.sock")
    yield runtime
    await runtime.close()


async def answers(address: str, port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection(address, port)
    except OSError:
        return False
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    try:
        answer = await reader.read()
    except ConnectionResetError:  # the engine's own proxy listens before the program does
        return False
    finally:
        writer.close()
    return answer.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200"))


async def test_the_container_is_as_the_spec_says(here: Lab, client: Any, image: str) -> None:
    started = await here.start(
        SLEEP,
        env={"TOKEN": "s3cr3t"},
        ports={"http": {"port": 80, "target": 8080}, "dns": {"port": 53, "protocol": "udp"}},
        limits={"cpu": "500m", "memory": "64Mi"},
        stop={"signal": "SIGINT", "grace": "3s"},
    )
    details = client.inspect_container(f"mesh-{started.id}")
    marks = details["Config"]["Labels"]
    assert (marks["mesh.id"], marks["mesh.service"], marks["mesh.slot"]) == (started.id, "web", "1")
    assert (marks["mesh.release"], marks["mesh.node"]) == ("2", "n1")
    assert marks["mesh.root"].startswith("test-")
    assert {"TOKEN=s3cr3t", "PORT_HTTP=8080", "PORT_DNS=53"} <= set(details["Config"]["Env"])
    assert (details["Config"]["StopSignal"], details["Config"]["StopTimeout"]) == ("SIGINT", 3)
    host = details["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["MemorySwap"]) == (500_000_000, 64 * 2**20, 64 * 2**20)
    assert (host["RestartPolicy"]["Name"], host["Init"], host["DnsSearch"]) == ("no", True, ["svc.cluster"])
    assert host["LogConfig"]["Type"] == client.info()["LoggingDriver"]
    assert started.ports == {"http": 8080, "dns": 53}


async def test_direct_containers_are_reached_at_their_own_address(here: Lab) -> None:
    started = await here.start(HTTPD, ports={"http": {"port": 80, "target": 8080}})
    await until(lambda: answers(started.address, started.ports["http"]))


async def test_published_containers_are_reached_at_the_nodes_address(image: str, tmp_path: Path) -> None:
    async with lab("docker", tmp_path, image, publish="published") as here:
        started = await here.start(HTTPD, ports={"http": {"port": 80, "target": 8080}})
        assert started.address == "127.0.0.1"
        assert started.ports["http"] != 8080
        assert await here.find(started.id) == started
        await until(lambda: answers("127.0.0.1", started.ports["http"]))


async def test_a_static_port_is_published_and_a_taken_one_named(here: Lab, client: Any) -> None:
    ports = {"http": {"port": 80, "target": 8080, "host_port": 0}}
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        ports["http"]["host_port"] = holder.getsockname()[1]
        launch = here.launch(HTTPD, ports=ports)
        with pytest.raises(RuntimeFault, match=f"port {ports['http']['host_port']} of node n1 is already in use"):
            await here.runtime.start(launch)
        assert await here.runtime.instances() == []
    await here.runtime.start(launch)
    await until(lambda: answers("127.0.0.1", ports["http"]["host_port"]))


async def test_out_of_memory_is_told(here: Lab) -> None:
    """The engine learns of it beside the death, and now and then too late: then it says 137 alone."""
    eater = "sleep 0.2; exec tail /dev/zero"
    for _ in range(5):
        started = await here.start(eater, resources={"memory": "16Mi"})
        ended = await here.exited(started.id)
        assert ended.exit_code == 137
        if ended.oom:
            return
    pytest.fail("killed five times, and never told why")


async def test_named_volumes_outlive_replicas(here: Lab, client: Any) -> None:
    name = f"t{uuid.uuid4().hex[:8]}"
    volumes = {name: {"path": "/data"}}
    try:
        first = await here.start("echo kept > /data/file; echo done; exec sleep 1000", volumes=volumes)
        await here.says(first.id, b"done")
        await here.runtime.remove(first.id)
        second = await here.start("cat /data/file; exec sleep 1000", volumes=volumes)
        await here.says(second.id, b"kept")
        await here.runtime.remove(second.id)
    finally:
        client.remove_volume(f"mesh-web-{name}")


@pytest.fixture
def network(client: Any) -> Iterator[str]:
    name = f"mesh-test-{uuid.uuid4().hex[:8]}"
    client.create_network(name)
    yield name
    client.remove_network(name)


@pytest.mark.parametrize("publish", ["direct", "published"])
async def test_a_container_in_a_network_of_its_own_is_reached(
    image: str, client: Any, tmp_path: Path, network: str, publish: str
) -> None:
    async with lab("docker", tmp_path, image, publish=publish) as here:
        started = await here.start(HTTPD, network=network, ports={"http": {"port": 80, "target": 8080}})
        assert await here.find(started.id) == started
        inside = client.inspect_container(f"mesh-{started.id}")["NetworkSettings"]["Networks"]
        assert inside.keys() == {network}
        assert (started.address == inside[network]["IPAddress"]) is (publish == "direct")

        async def served() -> bool:
            return await answers(started.address, started.ports["http"])

        await until(served)


async def test_a_network_that_is_not_there(here: Lab) -> None:
    with pytest.raises(RuntimeFault, match="there is no network nowhere on node n1: `docker network create nowhere`"):
        await here.start(SLEEP, network="nowhere")
    assert await here.runtime.instances() == []


async def test_mounts_show_the_hosts_files(here: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host\n")
    mounts = [{"source": str(tmp_path), "path": "/seen", "read_only": True}]
    started = await here.start("cat /seen/file; touch /seen/new || echo refused; exec sleep 1000", mounts=mounts)
    await here.says(started.id, b"of the host")
    await here.says(started.id, b"refused")


async def test_a_mount_that_is_not_there_is_a_fault_and_leaves_nothing(here: Lab) -> None:
    with pytest.raises(RuntimeFault, match="/nowhere"):
        await here.start(SLEEP, mounts=[{"source": "/nowhere/at/all", "path": "/seen"}])
    assert await here.runtime.instances() == []


async def test_a_missing_image_is_told_before_and_at_the_start(here: Lab) -> None:
    spec = parse_spec({"name": "web", "image": "localhost:1/no-such:1"})
    said: list[str] = []
    with pytest.raises(ImageMissing, match="image localhost:1/no-such:1 is neither on node n1 nor to be had: "):
        await here.runtime.prepare(spec, said.append)
    assert said == ["pulling image localhost:1/no-such:1"]
    with pytest.raises(ImageMissing, match="is not on node n1"):
        await here.runtime.start(here.launch(SLEEP, image="localhost:1/no-such:1"))


async def test_an_image_that_is_gone_is_pulled_the_next_time(here: Lab, client: Any, image: str) -> None:
    spec = parse_spec({"name": "web", "image": f"localhost:1/{uuid.uuid4().hex}:1"})
    said: list[str] = []
    client.tag(image, *str(spec.image).rsplit(":", 1))
    await here.runtime.prepare(spec, said.append)
    assert said == []
    client.remove_image(spec.image)
    with pytest.raises(ImageMissing):
        await here.runtime.start(here.launch(SLEEP, image=spec.image))
    with pytest.raises(ImageMissing, match="nor to be had"):
        await here.runtime.prepare(spec, said.append)
    assert said == [f"pulling image {spec.image}"]


async def test_an_image_that_is_here_is_not_asked_of_a_registry(here: Lab, image: str) -> None:
    said: list[str] = []
    await asyncio.gather(
        *(here.runtime.prepare(parse_spec({"name": "web", "image": image}), said.append) for _ in "ab")
    )
    assert said == []


async def test_a_container_left_unstarted_is_started(here: Lab, client: Any) -> None:
    launch = here.launch(SLEEP)
    started = await here.runtime.start(launch)
    details = client.inspect_container(f"mesh-{started.id}")
    await here.runtime.remove(started.id)
    client.create_container(
        details["Config"]["Image"],
        details["Config"]["Cmd"],
        labels=details["Config"]["Labels"],
        name=f"mesh-{started.id}",
    )
    found = await here.find(started.id)
    assert found is not None
    assert found.state is InstanceState.CREATED
    assert (await here.runtime.start(launch)).state is InstanceState.RUNNING


async def test_a_foreign_container_of_that_name_is_left_alone(here: Lab, client: Any, image: str) -> None:
    launch = here.launch(SLEEP)
    name = f"mesh-{launch.assignment.id}"
    client.create_container(image, ["true"], name=name)
    try:
        with pytest.raises(RuntimeFault, match=f"the name {name} is taken by a container that is not of this mesh"):
            await here.runtime.start(launch)
        await here.runtime.remove(launch.assignment.id)
        assert client.inspect_container(name)["Name"] == f"/{name}"
    finally:
        client.remove_container(name)


async def test_other_nodes_and_meshes_on_the_engine_are_not_ours(here: Lab) -> None:
    started = await here.start(SLEEP)
    other = DockerRuntime("n2", root="other")
    assert started.id not in [one.id for one in await other.instances()]
    await other.remove(started.id)
    await other.close()
    assert await here.find(started.id) == started


async def test_a_command_that_is_not_there_ends_with_127_and_says_so(here: Lab) -> None:
    launch = here.launch(SLEEP, command=["no-such-program"])
    await here.runtime.start(launch)
    assert (await here.exited(launch.assignment.id)).exit_code == 127
    assert b"no-such-program" in b"".join([line async for line in here.runtime.logs(launch.assignment.id)])


async def test_exec_that_takes_too_long_leaves_nothing_running(here: Lab) -> None:
    started = await here.start(SLEEP)
    with pytest.raises(RuntimeFault, match="did not end within"):
        await here.runtime.exec(started.id, ["sleep", "1234"], timeout=0.3)

    async def gone() -> bool:
        return b"1234" not in (await here.runtime.exec(started.id, ["ps"])).output

    await until(gone)


async def test_streams_that_are_left_end_their_threads(here: Lab) -> None:
    started = await here.start("while :; do echo a line that is long enough; done")
    async with aclosing(here.runtime.events()) as events, aclosing(here.runtime.logs(started.id, follow=True)) as lines:
        await anext(events)
        for _ in range(1000):
            await anext(lines)
        assert any(thread.name == "docker stream" for thread in threading.enumerate())

    async def ended() -> bool:
        return not [thread for thread in threading.enumerate() if thread.name == "docker stream"]

    await until(ended)


async def test_the_gateway_is_an_address_of_this_host(here: Lab) -> None:
    assert isinstance(here.runtime, DockerRuntime)
    with socket.socket() as listener:
        listener.bind((await here.runtime.bridge_gateway(), 0))


async def test_python_runs_in_the_python_image(here: Lab, client: Any) -> None:
    launch = here.launch(
        SLEEP, image=python_image(client), command=["python3", "-c", "import ssl, json; print('fine')"]
    )
    await here.runtime.start(launch)
    await here.says(launch.assignment.id, b"fine")


async def test_an_engine_that_is_away_is_not_an_end_of_replicas(away: DockerRuntime) -> None:
    for call in (away.facts(), away.instances(), away.remove("web-1-aaaa"), away.exec("web-1-aaaa", ["true"])):
        with pytest.raises(RuntimeUnavailable, match=r"docker\.sock does not answer: No such file"):
            await call


async def test_why_no_engine_can_be_used(tmp_path: Path) -> None:
    assert await docker_available() is None
    assert "is not there): install it" in str(await docker_available(f"unix://{tmp_path}/docker.sock"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/dead.sock")
    assert "does not answer" in str(await docker_available(f"unix://{tmp_path}/dead.sock"))
    assert "does not answer: Connection refused" in str(await docker_available("tcp://127.0.0.1:9"))


class Cable:
    """A TCP port that leads to the engine's socket, for as long as it is not cut: then nothing is said, nor closed."""

    def __init__(self) -> None:
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks = Tasks()

    async def lay(self) -> str:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        return f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_engine, to_engine = await asyncio.open_unix_connection(Engine().host.removeprefix("unix://"))
        self._tasks.spawn(self._carry(reader, to_engine), "to the engine")
        self._tasks.spawn(self._carry(from_engine, writer), "from the engine")

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(2**16):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    async def close(self) -> None:
        self._server.close()
        await self._tasks.close()


async def test_a_remote_engine_whose_cable_is_cut(
    client: Any, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.runtime.docker_events.PING_INTERVAL", 0.1)
    monkeypatch.setattr("mesh.runtime.docker_events.PING_TIMEOUT", 0.5)
    monkeypatch.setattr("mesh.runtime.docker_engine.PING_TIMEOUT", 0.5)
    monkeypatch.setattr("mesh.runtime.docker_engine.CALL_TIMEOUT", 2.0)
    cable = Cable()
    async with lab("docker", tmp_path, image, docker_host=await cable.lay()) as here:
        started = await here.start(SLEEP)
        async with aclosing(here.runtime.events()) as events, asyncio.timeout(DEADLINE):
            assert await anext(events) == ""
            cable.cut()
            client.kill(f"mesh-{started.id}")
            with pytest.raises(RuntimeUnavailable):
                await here.runtime.facts()
            cable.mend()
            while await anext(events) not in ("", started.id):  # looked at again, or told after all: a short cut
                pass
        assert (await here.exited(started.id)).exit_code == 137
    await cable.close()


@pytest.mark.root
@pytest.mark.slow
async def test_an_engine_may_die_hang_and_come_back(tmp_path: Path) -> None:
    with PrivateEngine(tmp_path) as engine:
        own = engine.client()
        image = tiny_image(own)
        own.close()
        async with lab("docker", tmp_path, image, docker_host=engine.host) as here:
            first, second = [await here.start(SLEEP) for _ in range(2)]
            async with aclosing(here.runtime.events()) as events:
                assert await anext(events) == ""

                engine.kill()
                with pytest.raises(RuntimeUnavailable):
                    await here.runtime.instances()
                with pytest.raises(RuntimeUnavailable):
                    await here.runtime.start(here.launch(SLEEP))
                engine.start()
                async with asyncio.timeout(DEADLINE):
                    while await anext(events) != "":
                        pass
                assert {one.id for one in await here.runtime.instances()} == {first.id, second.id}
                assert await here.find(first.id) == first

                await here.runtime.signal_and_wait(first.id, "SIGKILL", 5)
                async with asyncio.timeout(DEADLINE):
                    while await anext(events) != first.id:
                        pass

            engine.pause()
            listing = asyncio.ensure_future(here.runtime.instances())
            done, _ = await asyncio.wait([listing], timeout=0.5)
            assert not done
            engine.resume()
            async with asyncio.timeout(DEADLINE):
                states = {one.id: one.state for one in await listing}
            assert states == {first.id: InstanceState.EXITED, second.id: InstanceState.RUNNING}
