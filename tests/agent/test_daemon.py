"""The processes themselves: started by the command line, told to stop, killed, started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import dnslib
import pytest

from mesh.dataplane.workers import orphans
from mesh.model import Assignment, NodePlan, NodeReport, ReplicaReport, ServicePlan
from mesh.settings import EmbeddedStoreSettings, StoreSettings
from mesh.store.consul import ConsulStore
from mesh.store.embedded import EmbeddedStore
from mesh.view import decode_document, encode_document
from tests.parts.ports import free_port
from tests.patience import eventually

MESH = [sys.executable, "-c", "from mesh.cli import main; main()"]


def answer(port: int, name: str) -> tuple[int, list[str]] | None:
    """Response code and addresses; None: no answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(1)
        asker.connect(("127.0.0.1", port))
        try:
            asker.send(dnslib.DNSRecord.question(name).pack())
            record = dnslib.DNSRecord.parse(asker.recv(4096))
        except OSError:
            return None
    return record.header.rcode, [str(resource.rdata) for resource in record.rr]


class Processes:
    """What a test has started, with its output."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "output.log"
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            process = subprocess.Popen([*MESH, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self._running.append(process)
        return process

    def output(self) -> str:
        return self.log.read_text()

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(30)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    processes.close()


def table(**vips: str) -> str:
    return json.dumps({"index": 1, "services": {name: {"vip": vip} for name, vip in vips.items()}})


class TestTableFile:
    def test_it_answers_from_the_file_and_follows_it(self, processes: Processes, tmp_path: Path) -> None:
        file, port, admin = tmp_path / "table.json", free_port(), free_port()
        file.write_text(table(web="10.96.0.7"))
        server = processes.start(
            "dns", "--table", str(file), "--listen", f"127.0.0.1:{port}", "--workers", "2",
            "--admin", f"127.0.0.1:{admin}", "--no-forward",
        )  # fmt: skip
        eventually(lambda: answer(port, "web.svc.cluster") == (0, ["10.96.0.7"]), "the first answer")
        file.write_text('{"services": {"web": {"vip": 7}}}')
        eventually(lambda: "services.web.vip" in processes.output(), "the place of the fault")
        assert answer(port, "web.svc.cluster") == (0, ["10.96.0.7"]), "the last good one stays"
        file.unlink()
        eventually(lambda: "No such file" in processes.output(), "that it is gone")
        fresh = tmp_path / "fresh.json"
        fresh.write_text(table(web="10.96.0.8", shop="10.96.0.9"))
        fresh.rename(file)
        eventually(lambda: answer(port, "shop.svc.cluster") == (0, ["10.96.0.9"]), "the new one")
        assert answer(port, "web.svc.cluster") == (0, ["10.96.0.8"])
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
        assert answer(port, "web.svc.cluster") is None
        assert "Traceback" not in processes.output()

    def test_sighup_replaces_the_workers(self, processes: Processes, tmp_path: Path) -> None:
        file, port, admin = tmp_path / "table.json", free_port(), free_port()
        file.write_text(table(web="10.96.0.7"))
        server = processes.start(
            "dns", "--table", str(file), "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"
        )
        eventually(lambda: answer(port, "web.svc.cluster") == (0, ["10.96.0.7"]), "the first answer")
        server.send_signal(signal.SIGHUP)
        while "replaced all workers" not in processes.output():
            assert answer(port, "web.svc.cluster") == (0, ["10.96.0.7"]), "no query is lost"
        assert processes.output().count("started as process") == 2
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [("{", "table.json: "), ('{"services": {"web": {"vip": 7}}}', "services.web.vip: expected str, got int")],
    )
    def test_a_broken_file_at_the_start_is_an_error(
        self, processes: Processes, tmp_path: Path, content: str, sentence: str
    ) -> None:
        file = tmp_path / "table.json"
        file.write_text(content)
        server = processes.start("dns", "--table", str(file), "--listen", f"127.0.0.1:{free_port()}")
        assert server.wait(20) == 1
        assert sentence in processes.output()
        assert "Traceback" not in processes.output()

    def test_a_port_that_is_taken_at_the_start_is_an_error(self, processes: Processes, tmp_path: Path) -> None:
        file = tmp_path / "table.json"
        file.write_text(table())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{other.getsockname()[1]}"
            assert processes.start("dns", "--table", str(file), "--listen", address).wait(20) == 1
        assert f"dns cannot listen on {address}: Address already in use" in processes.output()

    def test_kill_9_leaves_no_workers(self, processes: Processes, tmp_path: Path) -> None:
        file, port = tmp_path / "table.json", free_port()
        file.write_text(table(web="10.96.0.7"))
        server = processes.start("dns", "--table", str(file), "--listen", f"127.0.0.1:{port}", "--no-forward")
        eventually(lambda: answer(port, "web.svc.cluster"), "the first answer")
        server.kill()
        server.wait(20)
        eventually(lambda: answer(port, "web.svc.cluster") is None, "the worker's end")

    def test_the_proxy_too(self, processes: Processes, tmp_path: Path) -> None:
        port = free_port()
        with socket.socket() as backend:
            backend.bind(("127.0.0.1", 0))
            backend.listen()
            endpoint = {
                "id": "web-1-aaaa", "slot": 1, "node": "n1", "address": "127.0.0.1",
                "ports": {"db": backend.getsockname()[1]},
            }  # fmt: skip
            ports = {"db": {"port": 5432, "listen": f"127.0.0.1:{port}"}}
            file = tmp_path / "table.json"
            file.write_text(json.dumps({"services": {"web": {"ports": ports, "endpoints": [endpoint]}}}))
            processes.start("proxy", "--table", str(file))
            client = eventually(lambda: connected(port), "a connection")
            with client:
                client.sendall(b"hello")
                served, _ = backend.accept()
                with served:
                    assert served.recv(100) == b"hello"

    def test_what_cannot_be_done_is_said(self, processes: Processes, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            file = tmp_path / "table.json"
            file.write_text(json.dumps({"services": {"web": {"ports": {"db": {"port": 1, "listen": address}}}}}))
            processes.start("proxy", "--table", str(file))
            said = f"web.db: cannot listen on {address}: address already in use"
            eventually(lambda: said in processes.output(), "what is wrong")
        eventually(lambda: f"no more: {said}" in processes.output(), "that it is well again")


def connected(port: int) -> socket.socket | None:
    try:
        return socket.create_connection(("127.0.0.1", port), 1)
    except OSError:
        return None


# ── the agent ────────────────────────────────────────────────────────────────────────────────

SLEEPER = {
    "name": "web", "command": ["sleep", "1000"], "ports": {"http": {"port": 8080}},
    "stop": {"drain": "100ms", "grace": "1s"},
}  # fmt: skip


class AgentHost:
    """A host with a store, on which agents come and go."""

    def __init__(self, folder: Path, processes: Processes, store: ConsulStore) -> None:
        self.state = folder / "agent"
        self.dns, self.admin = free_port(), free_port()
        self._processes = processes
        self.store = store

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        return self._processes.start(
            "agent", "--node", "n1", "--state", str(self.state), "--store", self.store.address, "--runtime", "process",
            "--dns-listen", f"127.0.0.1:{self.dns}", "--admin-listen", f"127.0.0.1:{self.admin}",
            "--vips", "loopback", *more,
        )  # fmt: skip

    async def plan(self, *ids: str) -> None:
        await self.store.put(
            "mesh/planned/services/web", encode_document(ServicePlan(service="web", vip="10.96.0.1", desired=1))
        )
        replicas = [Assignment(id=id, service="web", slot=number, release=1) for number, id in enumerate(ids, 1)]
        plan = NodePlan(node="n1", replicas=replicas, specs={"web@1": SLEEPER})
        await self.store.put("mesh/planned/nodes/n1", encode_document(plan))

    async def replicas(self) -> dict[str, ReplicaReport]:
        entry = await self.store.get("mesh/observed/nodes/n1")
        if entry is None or entry.session is None:
            return {}
        return {replica.id: replica for replica in decode_document(entry.value, NodeReport).replicas}

    async def until_states(self, **states: str) -> dict[str, ReplicaReport]:
        deadline = time.monotonic() + 30
        wanted = {id.replace("_", "-"): state for id, state in states.items()}
        while True:
            found = await self.replicas()
            if {id: str(replica.state) for id, replica in found.items()} == wanted:
                return found
            assert time.monotonic() < deadline, f"{found}\n{self._processes.output()}"
            await asyncio.sleep(0.02)

    def program(self, id: str) -> int:
        return int((self.state / "replicas" / id / "program").read_text().split()[0])


@pytest.fixture
async def host(tmp_path: Path, processes: Processes) -> AsyncIterator[AgentHost]:
    embedded = EmbeddedStore(EmbeddedStoreSettings(tmp_path / "store", "127.0.0.1:0"))
    await embedded.start()
    store = ConsulStore(StoreSettings(address=embedded.address))
    host = AgentHost(tmp_path, processes, store)
    yield host
    await host.plan()
    if await host.replicas():
        if not orphans(host.state / "workers"):
            host.start()
        await host.until_states()
    await asyncio.to_thread(processes.close)
    await store.close()
    await embedded.close()


async def test_kill_9_costs_neither_a_replica_nor_an_answer(host: AgentHost) -> None:
    agent = host.start()
    await host.plan("web-1-aaaa")
    before = await host.until_states(web_1_aaaa="ready")
    program = host.program("web-1-aaaa")
    await asyncio.to_thread(eventually, lambda: answer(host.dns, "web.svc.cluster"), "the data plane serves")
    agent.kill()
    agent.wait()
    assert await asyncio.to_thread(answer, host.dns, "web.svc.cluster") == (0, ["127.96.0.1"])
    host.start()
    await host.plan("web-1-aaaa", "web-2-aaaa")
    after = await host.until_states(web_1_aaaa="ready", web_2_aaaa="ready")
    assert after["web-1-aaaa"] == before["web-1-aaaa"]
    assert host.program("web-1-aaaa") == program
    assert await asyncio.to_thread(answer, host.dns, "web.svc.cluster") == (0, ["127.96.0.1"])


async def test_what_died_while_no_agent_looked_is_failed(host: AgentHost) -> None:
    agent = host.start()
    await host.plan("web-1-aaaa")
    await host.until_states(web_1_aaaa="ready")
    agent.kill()
    agent.wait()
    os.kill(host.program("web-1-aaaa"), signal.SIGKILL)
    host.start()
    after = await host.until_states(web_1_aaaa="failed")
    assert "137" in after["web-1-aaaa"].message


async def test_sigterm_leaves_replicas_and_data_plane_for_the_next(host: AgentHost) -> None:
    agent = host.start()
    await host.plan("web-1-aaaa")
    await host.until_states(web_1_aaaa="ready")
    program = host.program("web-1-aaaa")
    await asyncio.to_thread(eventually, lambda: answer(host.dns, "web.svc.cluster"), "the data plane serves")
    agent.terminate()
    assert await asyncio.to_thread(agent.wait, 20) == 0
    assert await asyncio.to_thread(answer, host.dns, "web.svc.cluster") == (0, ["127.96.0.1"])
    workers = sorted(file.read_text() for file in (host.state / "workers").glob("*.pid"))
    agent = host.start()
    await host.plan("web-1-aaaa", "web-2-aaaa")
    await host.until_states(web_1_aaaa="ready", web_2_aaaa="ready")
    assert host.program("web-1-aaaa") == program
    assert sorted(file.read_text() for file in (host.state / "workers").glob("*.pid")) == workers
    agent.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(agent.wait, 20) == 0
    assert not orphans(host.state / "workers"), "a person who interrupts it wants it gone"
    assert (await host.replicas())["web-1-aaaa"].state == "ready", "its session is left for its next life"


async def test_two_agents_of_one_state_folder(host: AgentHost, processes: Processes) -> None:
    first = host.start()
    await host.plan()
    await asyncio.to_thread(eventually, lambda: answer(host.dns, "node.cluster"), "the first serves")
    second = host.start()
    assert await asyncio.to_thread(second.wait, 20) == 1
    assert f"{host.state} is in use by process {first.pid}" in processes.output()
    assert "Traceback" not in processes.output()


async def test_two_agents_of_one_name(host: AgentHost, processes: Processes, tmp_path: Path) -> None:
    host.start()
    await host.plan("web-1-aaaa")
    await host.until_states(web_1_aaaa="ready")
    other = AgentHost(tmp_path / "elsewhere", processes, host.store)
    second = other.start()
    assert await asyncio.to_thread(second.wait, 20) == 1
    assert "another machine uses the same name" in processes.output()
    assert "Traceback" not in processes.output()
    assert (await host.replicas())["web-1-aaaa"].state == "ready"


async def test_without_a_store_it_waits_and_says_so(processes: Processes, tmp_path: Path) -> None:
    store = ConsulStore(StoreSettings(address=f"http://127.0.0.1:{free_port()}"))
    host = AgentHost(tmp_path, processes, store)
    host.start()
    await asyncio.to_thread(
        eventually, lambda: answer(host.dns, "web.svc.cluster") == (dnslib.RCODE.SERVFAIL, []), "SERVFAIL"
    )
    await asyncio.to_thread(eventually, lambda: "waiting for the store" in processes.output(), "the sentence")
    assert store.address in processes.output()
    await store.close()


def test_a_doubled_ctrl_c_is_one_and_a_later_one_means_at_once() -> None:
    script = """
import asyncio, os, signal
from mesh.daemon import IMPATIENCE, Stop
async def main():
    stop = Stop()
    stop.listen()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.05)
    await stop.wait()
    print("told", flush=True)
    await asyncio.sleep(IMPATIENCE)
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(20)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.returncode) == ("told\n", 130)
