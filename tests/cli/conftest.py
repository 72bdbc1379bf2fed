"""The CLI against a real embedded store; each test has a root of its own in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mesh.cli.app import run
from mesh.keys import Keys
from mesh.view import encode_document
from tests.parts.ports import free_port

DEADLINE = 20.0


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Mesh = Callable[..., Result]


@dataclass(frozen=True)
class Kv:
    """The store's keys under one root, by plain HTTP."""

    store: str
    keys: Keys

    def put(self, key: str, value: bytes | msgspec.Struct | object) -> None:
        body = value if isinstance(value, bytes) else (
            encode_document(value) if isinstance(value, msgspec.Struct) else json.dumps(value).encode())  # fmt: skip
        urllib.request.urlopen(urllib.request.Request(f"{self.store}/v1/kv/{key}", body, method="PUT")).close()

    def get(self, key: str) -> Any:
        try:
            with urllib.request.urlopen(f"{self.store}/v1/kv/{key}?raw") as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError:
            return None


@pytest.fixture(scope="session")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mesh store` as a process of its own."""
    address = f"127.0.0.1:{free_port()}"
    data = tmp_path_factory.mktemp("store")
    command = [sys.executable, "-m", "mesh.cli", "store", "--data", str(data), "--listen", address]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                urllib.request.urlopen(f"http://{address}/v1/status/leader").close()
                break
            except OSError:
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE)


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No settings of this machine; the current folder is empty."""
    settings = ("MESH_", "CONSUL_", "DOCKER_")
    for name in [name for name in os.environ if name.startswith(settings) and name != "MESH_TEST_SESSION"]:
        monkeypatch.delenv(name)
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def kv(store_url: str, surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> Kv:
    root = f"test-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("MESH_STORE", store_url)
    monkeypatch.setenv("MESH_ROOT", root)
    return Kv(store_url, Keys(root))


@pytest.fixture
def mesh(surroundings: Path, capsys: pytest.CaptureFixture[str]) -> Mesh:
    """Runs the CLI in this process."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call
