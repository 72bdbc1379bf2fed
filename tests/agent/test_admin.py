"""Admin HTTP: who may ask what, and what is answered."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

import aiohttp
import pytest

from mesh.admin import Admin, Sources, admin_token
from mesh.dataplane.load import LoadReport, ReplicaUsage, ServiceReport
from mesh.metrics import Family, Sample
from mesh.model import ReplicaReport, ReplicaState
from mesh.runtime import ExecResult, RuntimeFault
from mesh.startup import StartError
from mesh.table import Table, TableService, parse_table

TOKEN = "a-token"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


class Replicas:
    def list(self) -> list[ReplicaReport]:
        return [ReplicaReport(id="web-1-aaaa", service="web", slot=1, release=1, state=ReplicaState.READY)]

    async def logs(self, id: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        if tail == 13:
            raise RuntimeFault("its output cannot be read")
        for line in [b"one\n", b"two\n", b"three\n"][-tail if tail else 0 :]:
            yield line
        if follow:
            yield b"and more\n"

    async def exec(self, id: str, command: Sequence[str], *, timeout: float) -> ExecResult:
        if command == ["missing"]:
            raise RuntimeFault("there is no program missing")
        return ExecResult(3, f"{id} {' '.join(command)} {timeout:g}".encode())


class Server:
    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.table: Table | None = Table(index=7, services={"web": TableService(vip="10.96.0.1")})
        sources = Sources(
            lambda: self.reasons, self._metrics, lambda: self.table, Replicas(), load=self._load, usage=self._usage
        )
        self.admin = Admin("127.0.0.1:0", sources, TOKEN)

    async def _load(self) -> LoadReport:
        return LoadReport(node="n1", time=1.0, window=9.5, services={"web": ServiceReport(rps=2.0)})

    async def _usage(self, services: Collection[str]) -> dict[str, ReplicaUsage]:
        return {f"{service}-1-6f3a": ReplicaUsage(cpu=250.0, memory=1, window=9.0) for service in services}

    async def _metrics(self) -> list[Family]:
        return [Family("mesh_things", "Things", "gauge", [Sample(2.0, {"kind": "odd"})])]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.admin.start()
    yield server
    await server.admin.close()


@pytest.fixture
async def http(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.admin.address) as session:
        yield session


async def test_health_and_readiness(server: Server, http: aiohttp.ClientSession) -> None:
    assert (await http.get("/healthz")).status == 200
    assert (await http.get("/readyz")).status == 200
    server.reasons = ["waiting for the store", "worker dns-1 has no Table yet"]
    answer = await http.get("/readyz")
    assert (answer.status, await answer.text()) == (503, "waiting for the store\nworker dns-1 has no Table yet\n")
    assert (await http.get("/healthz")).status == 200, "alive all the same"


async def test_metrics_in_prometheus_format(http: aiohttp.ClientSession) -> None:
    answer = await http.get("/metrics")
    assert answer.content_type == "text/plain"
    assert 'mesh_things{kind="odd"} 2.0' in await answer.text()


async def test_the_table_reads_back(server: Server, http: aiohttp.ClientSession) -> None:
    assert parse_table(await (await http.get("/v1/table")).read()) == server.table
    server.table = None
    assert (await http.get("/v1/table")).status == 503


async def test_stats(http: aiohttp.ClientSession) -> None:
    told = await (await http.get("/v1/stats")).json()
    assert (told["node"], told["window"]) == ("n1", 9.5)
    assert (told["services"]["web"]["rps"], told["services"]["web"]["p50"]) == (2.0, None)


async def test_stats_tell_what_replicas_use_only_if_asked(http: aiohttp.ClientSession) -> None:
    assert (await (await http.get("/v1/stats")).json())["usage"] == {}
    told = await (await http.get("/v1/stats?usage=web,api")).json()
    assert told["usage"].keys() == {"web-1-6f3a", "api-1-6f3a"}
    assert told["services"]["web"]["rps"] == 2.0


async def test_replicas(http: aiohttp.ClientSession) -> None:
    (replica,) = await (await http.get("/v1/replicas")).json()
    assert (replica["id"], replica["state"]) == ("web-1-aaaa", "ready")


@pytest.mark.parametrize(
    ("query", "lines"),
    [("", b"one\ntwo\nthree\n"), ("?tail=1", b"three\n"), ("?follow=1", b"one\ntwo\nthree\nand more\n")],
)
async def test_logs(http: aiohttp.ClientSession, query: str, lines: bytes) -> None:
    answer = await http.get(f"/v1/replicas/web-1-aaaa/logs{query}", headers=AUTHORIZED)
    assert (answer.status, await answer.read()) == (200, lines)


async def test_exec(http: aiohttp.ClientSession) -> None:
    answer = await http.post(
        "/v1/replicas/web-1-aaaa/exec", json={"command": ["ls", "-l"], "timeout": 5}, headers=AUTHORIZED
    )
    assert await answer.json() == {"code": 3, "output": "web-1-aaaa ls -l 5"}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/replicas/web-9-ffff/logs", 404),
        ("/v1/replicas/web-1-aaaa/logs?tail=-1", 400),
        ("/v1/replicas/web-1-aaaa/logs?tail=13", 409),
        ("/v1/elsewhere", 404),
    ],
)
async def test_bad_questions(http: aiohttp.ClientSession, path: str, status: int) -> None:
    assert (await http.get(path, headers=AUTHORIZED)).status == status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"not json", 400),
        (b'{"command": "ls"}', 400),
        (b'{"command": []}', 400),
        (b'{"command": ["ls"], "timeout": -1}', 400),
        (b'{"command": ["ls"], "shell": true}', 400),
        (b'{"command": ["missing"]}', 409),
        (b'{"command": ["' + b"x" * 70_000 + b'"]}', 413),
    ],
)
async def test_bad_exec(http: aiohttp.ClientSession, body: bytes, status: int) -> None:
    answer = await http.post("/v1/replicas/web-1-aaaa/exec", data=body, headers=AUTHORIZED)
    assert answer.status == status


@pytest.mark.parametrize("given", [None, "Bearer", "Bearer other", "Basic a-token", "Bearer \xe4"])
@pytest.mark.parametrize(("method", "what"), [("GET", "logs"), ("POST", "exec")])
async def test_logs_and_exec_need_the_token(
    http: aiohttp.ClientSession, method: str, what: str, given: str | None
) -> None:
    headers = {"Authorization": given} if given else {}
    answer = await http.request(method, f"/v1/replicas/web-1-aaaa/{what}", headers=headers)
    assert answer.status == 401
    assert "admin.token" in await answer.text()
    assert TOKEN not in await answer.text()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403), ("evil.example:7070", 403), ("127.0.0.1.evil.example", 403), ("localhost.evil", 403),
        ("", 403), ("localhost", 200), ("localhost:7070", 200), ("127.0.0.1:7070", 200), ("[::1]:7070", 200),
    ],
)  # fmt: skip
async def test_a_foreign_host_is_refused_on_loopback(http: aiohttp.ClientSession, host: str, status: int) -> None:
    assert (await http.get("/v1/table", headers={"Host": host})).status == status


async def test_without_a_token_nobody_gets_logs() -> None:
    server = Server()
    admin = Admin("127.0.0.1:0", Sources(list, server._metrics, None, Replicas()), None)
    await admin.start()
    async with aiohttp.ClientSession(admin.address) as http:
        answer = await http.get("/v1/replicas/web-1-aaaa/logs", headers={"Authorization": "Bearer "})
        assert answer.status == 401
        assert (await http.get("/v1/table")).status == 404
    await admin.close()


async def test_an_address_that_is_taken_is_told(server: Server) -> None:
    second = Admin(server.admin.address.removeprefix("http://"), Sources(list, server._metrics))
    with pytest.raises(StartError, match=r"already in use: choose another .* --admin-listen \(--admin of mesh dns"):
        await second.start()
    await second.close()


def test_the_token_is_made_once_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESH_ADMIN_TOKEN", raising=False)
    token = admin_token(tmp_path)
    assert len(token) > 30
    assert admin_token(tmp_path) == token
    assert stat.S_IMODE((tmp_path / "admin.token").stat().st_mode) == 0o600
    monkeypatch.setenv("MESH_ADMIN_TOKEN", "given")
    assert admin_token(tmp_path) == "given"
