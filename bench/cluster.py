"""A real Consul, a scheduler and an agent as processes of their own, and the surfaces that a user sees."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from dnslib import QTYPE, RCODE, DNSRecord

from bench.engine import COMMAND, IMAGE
from tests.parts.consul import ConsulServer
from tests.parts.ports import free_port

BIN = Path(sys.executable).parent
PATIENCE = 60.0
_Value = TypeVar("_Value")


def wait_until(found: Callable[[], _Value], pause: float = 0.005) -> _Value:
    """The first true value of `found()`."""
    deadline = time.monotonic() + PATIENCE
    while not (value := found()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE:g} s in vain")
        time.sleep(pause)
    return value


class Cluster:
    """Its store is written with plain HTTP, its DNS asked with plain UDP."""

    def __init__(self, folder: Path, consul: ConsulServer, runtime: str) -> None:
        self.store = consul.address
        self.dns = ("127.0.0.1", free_port())
        self.admin = f"127.0.0.1:{free_port()}"
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.agent = self._start(
            "agent", "--node", "bench", "--state", str(folder / "agent"), "--runtime", runtime, "--vips", "loopback",
            "--dns-listen", f"{self.dns[0]}:{self.dns[1]}", "--admin-listen", self.admin,
        )  # fmt: skip
        self._start("scheduler", "--name", "bench", "--admin-listen", f"127.0.0.1:{free_port()}")
        wait_until(lambda: self.ask("cluster", "SOA") is not None)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self._folder / f"{arguments[0]}.log").open("wb")
        process = subprocess.Popen(
            [BIN / "mesh", *arguments, "--store", self.store], stdout=log, stderr=log,
            env={**os.environ, "XDG_STATE_HOME": str(self._folder)}, start_new_session=True,
        )  # fmt: skip
        self._processes.append(process)
        return process

    def stop(self) -> None:
        """Ends the processes, and the workers that an agent leaves to serve on."""
        workers = family(self.agent.pid) - {self.agent.pid}
        for process in reversed(self._processes):
            process.terminate()
            process.wait(30)
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    # ── the store ────────────────────────────────────────────────────────────────────────────

    def write(self, name: str, replicas: int) -> None:
        """Wishes for a service, as an operator would with curl."""
        spec = {
            "name": name, "image": IMAGE, "command": COMMAND, "replicas": replicas,
            "resources": {"cpu": "1m", "memory": "8Mi"},
            "ports": {"http": {"port": 80, "target": 8080, "protocol": "http"}},
            "health": {"ready": {"tcp": "http"}},
            "stop": {"drain": "0s", "signal": "SIGKILL", "grace": "1s"},
        }  # fmt: skip
        self._call("PUT", f"/v1/kv/mesh/desired/services/{name}", json.dumps(spec).encode())

    def delete(self, name: str) -> None:
        self._call("DELETE", f"/v1/kv/mesh/desired/services/{name}")

    def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        with urllib.request.urlopen(
            urllib.request.Request(self.store + path, body, method=method), timeout=10
        ) as answer:
            found: bytes = answer.read()
            return found

    # ── names and endpoints ──────────────────────────────────────────────────────────────────

    def ask(self, name: str, kind: str = "A") -> list[str] | None:
        """The answer's records; None while there is no (good) answer."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(1)
            udp.connect(self.dns)
            try:
                udp.send(DNSRecord.question(name, kind).pack())
                answer = DNSRecord.parse(udp.recv(65535))
            except OSError:
                return None
        if answer.header.rcode != RCODE.NOERROR:
            return None
        return [str(record.rdata) for record in answer.rr if record.rtype == getattr(QTYPE, kind)]

    def ready(self, name: str) -> dict[str, Any]:
        """The endpoints in the agent's Table that get traffic, by replica."""
        try:
            with urllib.request.urlopen(f"http://{self.admin}/v1/table", timeout=5) as answer:
                service = json.load(answer).get("services", {}).get(name, {})
        except OSError:
            return {}
        return {one["id"]: one for one in service.get("endpoints", []) if one.get("state", "ready") == "ready"}


@contextmanager
def cluster(folder: Path, runtime: str = "docker") -> Iterator[Cluster]:
    with ConsulServer(folder / "consul") as consul:
        running = Cluster(folder, consul, runtime)
        try:
            yield running
        finally:
            running.stop()


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the state on (proc(5)); empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def family(pid: int) -> set[int]:
    """A process and all its descendants."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for file in files for child in file.read_text().split()]
    return {pid}.union(*map(family, children))


def usage(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Resident memory (MiB) and CPU seconds so far, of a process and all its descendants."""
    stats = [stat for stat in map(_stat, family(process.pid)) if stat]
    ticks = sum(int(stat[11]) + int(stat[12]) for stat in stats)
    pages = sum(int(stat[21]) for stat in stats)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, ticks / os.sysconf("SC_CLK_TCK")


def dev_first_answer(folder: Path) -> float:
    """Seconds from starting `mesh dev` to its first DNS answer."""
    port = free_port()
    began = time.monotonic()
    process = subprocess.Popen(
        [BIN / "mesh", "dev", "--runtime", "process", "--state", str(folder), "--dns-listen", f"127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: _answers(port))
        return time.monotonic() - began
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def _answers(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(0.2)
        udp.connect(("127.0.0.1", port))
        try:
            udp.send(DNSRecord.question("cluster", "SOA").pack())
            return bool(DNSRecord.parse(udp.recv(4096)).header.rcode == RCODE.NOERROR)
        except OSError:
            return False
