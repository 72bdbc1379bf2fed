"""A `mesh dev` as a person sees it from outside: its command line, its DNS, its admin HTTP, its services' ports."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

PATIENCE = 60.0
"""Seconds that anything may take before the tour gives up."""


_Value = TypeVar("_Value")


class GaveUp(Exception):
    """Something that should have come did not; the message says what."""


class Cluster:
    """A `mesh dev` with a folder of its own, and the CLI that finds it there."""

    def __init__(self, home: Path, runtime: str, path: str) -> None:
        self.home = home
        self.runtime = runtime
        self._environment = {**os.environ, "XDG_STATE_HOME": str(home), "PATH": path}
        for name in ("MESH_STORE", "CONSUL_HTTP_ADDR"):  # it is our own store that is meant
            self._environment.pop(name, None)
        self._process: subprocess.Popen[bytes] | None = None
        self.log = home / "mesh-dev.log"
        self.info: dict[str, Any] = {}

    def start(self) -> None:
        """Returns when it is ready, with its addresses in `info`."""
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [BIN / "mesh", "dev", "--runtime", self.runtime],
                cwd=REPOSITORY, env=self._environment, stdout=output, stderr=output,
                start_new_session=True,  # Ctrl-C is for the tour, which then ends it in order
            )  # fmt: skip
        self.info = wait_until("mesh dev is ready", self._ready)

    def _ready(self) -> dict[str, Any] | None:
        if self._process and self._process.poll() is not None:
            raise GaveUp(f"mesh dev ended with {self._process.returncode}")
        written = next(self.home.glob("**/dev.json"), None)
        if written is None:
            return None
        try:
            info: dict[str, Any] = json.loads(written.read_bytes())
            with urllib.request.urlopen(f"{info['admin']}/readyz", timeout=2):
                return info
        except (OSError, ValueError):
            return None

    def stop(self) -> None:
        """Like Ctrl-C: returns when it has removed what it started."""
        if self._process:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(PATIENCE)

    def mesh(self, *arguments: str) -> str:
        """What the command prints."""
        done = self.run([str(BIN / "mesh"), *arguments])
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-5:]
            raise GaveUp("\n".join([f"`mesh {' '.join(arguments)}` ended with {done.returncode}", *said]))
        return done.stdout

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """A command in the repository's folder, as in a terminal beside the mesh."""
        return subprocess.run(command, cwd=REPOSITORY, env=self._environment, capture_output=True, text=True)

    def service(self, name: str) -> Mapping[str, Any]:
        """The service in the Table: its virtual IP, ports and endpoints."""
        with urllib.request.urlopen(f"{self.info['admin']}/v1/table", timeout=5) as answer:
            found: Mapping[str, Any] = json.load(answer).get("services", {}).get(name, {})
        return found

    def ready(self, name: str) -> dict[str, Mapping[str, Any]]:
        """The endpoints that get traffic, by replica."""
        endpoints = self.service(name).get("endpoints", [])
        return {endpoint["id"]: endpoint for endpoint in endpoints if endpoint.get("state", "ready") == "ready"}

    def address(self, name: str, port: str) -> tuple[str, int]:
        """Where this machine reaches a port of a service: its virtual IP, or what stands in for it without root."""
        service = self.service(name)
        listen = service["ports"][port].get("listen")
        host, _, number = (listen or f"{service['vip']}:{service['ports'][port]['port']}").rpartition(":")
        return host, int(number)

    def how_to_kill(self, replica: str) -> str:
        """The command that ends a replica at once, behind the mesh's back."""
        if self.runtime == "docker":
            return f"docker kill mesh-{replica}"
        program = next(self.home.glob(f"**/replicas/{replica}/program"))
        return f"kill -9 {program.read_text().split()[0]}"


def wait_until(what: str, found: Callable[[], _Value | None], patience: float = PATIENCE) -> _Value:
    """The first true value of `found()`. Raises `GaveUp`."""
    deadline = time.monotonic() + patience
    while not (value := found()):
        if time.monotonic() > deadline:
            raise GaveUp(f"waited {patience:g} s in vain until {what}")
        time.sleep(0.02)
    return value


class Load:
    """Requests to the guestbook from several clients at once, until stopped; counts every answer."""

    def __init__(self, address: tuple[str, int], clients: int = 4) -> None:
        self.answered: Counter[str] = Counter()  # by replica
        self.greetings: Counter[str] = Counter()
        self.failures: list[str] = []
        self._address = address
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, name=f"client {n}") for n in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    @property
    def total(self) -> int:
        return sum(self.answered.values()) + len(self.failures)

    def _ask(self) -> None:
        """Half of the requests on a kept-alive connection, half on new ones."""
        kept = http.client.HTTPConnection(*self._address, timeout=10)
        while not self._ended.wait(0.005):
            self._once(kept)
            fresh = http.client.HTTPConnection(*self._address, timeout=10)
            self._once(fresh)
            fresh.close()
        kept.close()

    def _once(self, connection: http.client.HTTPConnection) -> None:
        try:
            answer = ask(connection)
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()  # the next request opens it again
            with self._lock:
                self.failures.append(f"{type(error).__name__}: {error}")
            return
        with self._lock:
            self.answered[answer["replica"]] += 1
            self.greetings[answer["greeting"]] += 1


def ask(connection: http.client.HTTPConnection) -> dict[str, Any]:
    """One `GET /api`. Raises ValueError for any status but 200."""
    connection.request("GET", "/api")
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        raise ValueError(f"{response.status} {body.decode(errors='replace').strip()}")
    answer: dict[str, Any] = json.loads(body)
    return answer
