"""Drives a whole mesh as its users do: through the CLI, DNS and HTTP, each in a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.parts.ports import free_port
from tests.patience import eventually

APP = Path(__file__).with_name("app.py")
MESH = Path(sys.executable).with_name("mesh")

_T = TypeVar("_T")


class Process:
    """One `mesh …` in the background; its output goes to a file that a failure can show."""

    def __init__(self, *arguments: str, log: Path, env: Mapping[str, str]) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [MESH, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **env}
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`, and nothing else."""
        self._process.kill()
        self._process.wait()

    def stop(self, within: float = 30.0) -> int:
        """SIGTERM as an operator's; returns the exit code."""
        if self.running:
            self._process.terminate()
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not stop within {within:g} s; its output:\n{self.output()}") from None


@dataclass
class Cluster:
    """A mesh under test: where it answers, and the verbs of its user."""

    folder: Path
    store: str
    dns: str
    admin: str
    env: dict[str, str] = field(default_factory=dict)

    def mesh(self, *arguments: str, input: str | None = None, code: int | None = 0) -> str:
        """Runs the CLI; asserts its exit code (None: any) and returns what it printed, errors included."""
        done = subprocess.run(
            [MESH, *arguments], input=input, capture_output=True, text=True, timeout=60, env={**os.environ, **self.env}
        )
        said = done.stdout + done.stderr
        assert "Traceback" not in said, said
        assert code is None or done.returncode == code, f"mesh {' '.join(arguments)}: {done.returncode}\n{said}"
        return said if done.returncode else done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.mesh(*arguments, "--json"))

    def apply(self, *specs: Mapping[str, Any]) -> None:
        self.mesh("apply", "-", input=json.dumps(list(specs)))

    def replicas(self, service: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.json("status", service)["replicas"]
        return found

    def ready(self, service: str) -> list[str]:
        """Ids of its ready replicas, sorted."""
        return sorted(replica["id"] for replica in self.replicas(service) if replica["state"] == "ready")

    def wait_ready(self, service: str, count: int, within: float = 30.0) -> list[str]:
        return eventually(lambda: ids if len(ids := self.ready(service)) == count else None,
                          f"{count} ready replicas of {service}", within)  # fmt: skip

    def dig(self, *question: str) -> list[str]:
        address, _, port = self.dns.rpartition(":")
        done = subprocess.run(
            ["dig", f"@{address}", "-p", port, "+short", "+time=2", "+tries=1", *question],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
        return [line for line in done.stdout.splitlines() if not line.startswith(";")]

    def table(self) -> Any:
        address = self.admin.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=5)
        try:
            connection.request("GET", "/v1/table")
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def address(self, service: str, port: str = "http") -> tuple[str, int]:
        """Where this node's proxy answers for a service."""
        entry = self.table()["services"][service]
        if listen := entry["ports"][port].get("listen"):
            host, _, number = listen.rpartition(":")
            return host, int(number)
        return entry["vip"], entry["ports"][port]["port"]

    def get(self, service: str, path: str = "/", timeout: float = 5.0) -> tuple[int, str]:
        connection = http.client.HTTPConnection(*self.address(service), timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


@contextmanager
def dev(
    folder: Path, *arguments: str, runtime: str = "process", wait: bool = True
) -> Iterator[tuple[Cluster, Process]]:
    """A `mesh dev` on ports of its own; ended, with all it started, on exit."""
    ports = {name: f"127.0.0.1:{free_port()}" for name in ("store", "dns", "admin")}
    state = folder / "state"
    own = [] if "--store" in arguments else ["--store-listen", ports["store"]]
    process = Process(
        "dev", "--state", str(state), "--runtime", runtime, "--dns-listen", ports["dns"],
        "--admin-listen", ports["admin"], *own, *arguments, log=folder / "dev.log", env={},
    )  # fmt: skip
    store = arguments[arguments.index("--store") + 1] if "--store" in arguments else f"http://{ports['store']}"
    env = {"CONSUL_HTTP_ADDR": store, "MESH_ADMIN_TOKEN_FILE": str(state / "admin.token")}
    cluster = Cluster(folder, store, ports["dns"], f"http://{ports['admin']}", env)
    try:
        if wait:
            eventually(lambda: cluster.dig("ns.cluster") or not process.running, "mesh dev answers")
            assert process.running, process.output()
        yield cluster, process
    except BaseException:
        print(process.output()[-20_000:])
        raise
    finally:
        process.stop()


def app_pids(id: str) -> list[int]:
    """Processes that run the test's program for one replica (and not those that watch it)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (folder / "environ").read_bytes().split(b"\0")
            if f"MESH_REPLICA={id}".encode() in environment and runs_app(int(folder.name)):
                found.append(int(folder.name))
    return found


def runs_app(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return str(APP).encode() in command[1:2]


def service(name: str = "web", replicas: int = 3, **more: Any) -> dict[str, Any]:
    """The spec of the test's own small service."""
    return {
        "name": name,
        "command": [sys.executable, str(APP)],
        "replicas": replicas,
        "resources": {"cpu": "10m", "memory": "32Mi"},
        "ports": {"http": {"port": 80, "target": 8080, "protocol": "http"}},
        "health": {"ready": {"http": "/healthz", "interval": "1s"}},
        "update": {"min_healthy": "200ms"},
        "stop": {"drain": "500ms", "grace": "5s"},
        **more,
    }


class Load:
    """Requests one after the other on a few threads until the end of the block; counts what came back."""

    def __init__(self, address: tuple[str, int], threads: int = 4, keep_alive: bool = True) -> None:
        self._address = address
        self._keep_alive = keep_alive
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(20)

    @property
    def total(self) -> int:
        return sum(self.answers.values()) + len(self.failures)

    def _run(self) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=10)
        while not self._ended.is_set():
            try:
                connection.request("GET", "/")
                answer = connection.getresponse()
                body = answer.read().decode().strip()
                if answer.status == 200:
                    self.answers[body] += 1
                else:
                    self.failures.append(f"{answer.status} {body}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
            if not self._keep_alive:
                connection.close()
            time.sleep(0.002)
        connection.close()


def descendants(pid: int) -> set[int]:
    """Pids of all processes below one."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    fresh: Sequence[int] = [pid]
    while fresh:
        fresh = [child for child, parent in parents.items() if parent in fresh]
        found.update(fresh)
    return found


class Split:
    """Scheduler and agent as processes of their own, as on a real host, against a given store."""

    def __init__(self, folder: Path, store: str, *agent_options: str) -> None:
        self.folder = folder
        self._agent_options = agent_options
        self._admin, self._dns = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self._state = folder / "agent"
        env = {"CONSUL_HTTP_ADDR": store, "MESH_ADMIN_TOKEN_FILE": str(self._state / "admin.token")}
        self.cluster = Cluster(folder, store, self._dns, f"http://{self._admin}", env)
        self.schedulers: dict[str, Process] = {}
        self.agent: Process | None = None
        self._processes: list[Process] = []

    def start_scheduler(self, name: str) -> Process:
        process = self._start("scheduler", "--name", name, "--admin-listen", f"127.0.0.1:{free_port()}", log=name)
        self.schedulers[name] = process
        return process

    def start_agent(self, node: str = "n1") -> Process:
        self.agent = self._start(
            "agent", "--node", node, "--state", str(self._state),
            "--dns-listen", self._dns, "--admin-listen", self._admin,
            *self._agent_options, log=node,
        )  # fmt: skip
        return self.agent

    def leader(self) -> str:
        """The name of the scheduler that leads, by its own log: the last who took the lock and lives."""
        leading = [name for name, process in self.schedulers.items()
                   if process.running and "leads" in process.output()]  # fmt: skip
        return leading[0] if leading else ""

    def _start(self, *arguments: str, log: str) -> Process:
        process = Process(*arguments, log=self.folder / f"{log}.log", env=self.cluster.env)
        self._processes.append(process)
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:
            for process in self._processes:
                print(f"── {process.log.name}\n{process.output()[-8_000:]}")
        for process in self._processes:
            if process.running:
                process.send(signal.SIGCONT)
                process.kill()
        for pid in own_processes(str(self._state)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        added = self._state / "vip_route"  # an agent leaves its route to the next one
        if added.exists():
            subprocess.run(["ip", "route", "del", "local", added.read_text(), "dev", "lo"], check=False)


def own_processes(word: str) -> list[int]:
    """Pids whose command line has a word: workers that outlive their agent on purpose."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if word.encode() in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found
