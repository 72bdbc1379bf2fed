"""A real Consul server of one's own for a test: free loopback ports, its own folder, and faults at will."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import Request, urlopen

from mesh.settings import StoreSettings
from tests.parts.ports import free_port

START_TIMEOUT = 30.0
"""Seconds for a server alone to elect itself."""


def consul_binary() -> str:
    return os.environ.get("MESH_TEST_CONSUL", "consul")


class ConsulServer:
    """`with ConsulServer(folder) as consul`: one server with `raft_multiplier` 1 and session TTLs from 1 s.

    Its data survive `kill`, and `start` brings it back; both block, so inside a loop run them in a thread.
    `config` is merged into its configuration.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any] | None = None, *, token: str | None = None) -> None:
        """`token`: one that may read the catalog, where `config` turns ACLs on."""
        self._folder = folder
        self._token = token
        self._http, server, serf_lan, serf_wan = (free_port() for _ in range(4))
        self._config: dict[str, Any] = {
            "server": True,
            "bootstrap_expect": 1,
            "node_name": "test",
            "data_dir": str(folder / "data"),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "ports": {
                "http": self._http,
                "server": server,
                "serf_lan": serf_lan,
                "serf_wan": serf_wan,
                "dns": -1,
                "grpc": -1,
            },
            "performance": {"raft_multiplier": 1},
            "session_ttl_min": "1s",
            "disable_update_check": True,
            "log_level": "warn",
        }
        extra = dict(config or {})
        self._config["ports"] |= extra.pop("ports", {})
        self._config |= extra
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._http}"

    @property
    def settings(self) -> StoreSettings:
        return StoreSettings(address=self.address)

    @property
    def pid(self) -> int:
        assert self._process is not None, "it was not started"
        return self._process.pid

    def start(self) -> None:
        """Starts it and returns when it takes writes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / "config.json"
        file.write_text(json.dumps(self._config))
        with (self._folder / "consul.log").open("ab") as log:
            self._process = subprocess.Popen(
                [consul_binary(), "agent", "-config-file", str(file)], stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._takes_writes():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"consul does not start: {(self._folder / 'consul.log').read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """As if the machine lost its power: nothing is said or saved any more."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """As if it hung; its sockets still accept."""
        if self._process:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> ConsulServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _takes_writes(self) -> bool:
        """It leads, and its own node is in the catalog (sessions belong to a node)."""
        return bool(self._ask("/v1/status/leader")) and bool(self._ask("/v1/catalog/node/test"))

    def _ask(self, path: str) -> Any:
        headers = {"X-Consul-Token": self._token} if self._token else {}
        try:
            with urlopen(Request(self.address + path, headers=headers), timeout=2) as answer:
                return json.load(answer)
        except (OSError, ValueError):
            return None
