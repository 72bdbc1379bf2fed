"""`mesh logs` and `exec` through a real admin HTTP with made-up replicas behind it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from mesh.admin import Admin, Sources
from mesh.model import NodeReport, ReplicaReport, ReplicaState
from mesh.runtime import ExecResult, RuntimeFault
from tests.cli.conftest import Kv, Mesh

REPLICAS = [
    ReplicaReport(id=f"web-{slot}-aaaa", service="web", slot=slot, release=1, state=ReplicaState.READY)
    for slot in (1, 2)
]


class Replicas:
    """Prints two lines each; runs `echo`, `false` and nothing else."""

    def list(self) -> Sequence[ReplicaReport]:
        return REPLICAS

    async def logs(self, id: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        lines = [f"{id} begins\n".encode(), b"\x1b]0;title\x07caf\xc3\xa9\r\n"]
        for line in lines[-tail:] if tail else lines if tail is None else []:
            yield line
        if follow:
            yield b"more\n"
            await asyncio.Event().wait()
        yield b"no line end"

    async def exec(self, id: str, command: Sequence[str], *, timeout: float) -> ExecResult:
        if command[0] == "echo":
            return ExecResult(0, " ".join(command[1:]).encode() + b"\n")
        if command[0] == "false":
            return ExecResult(3, b"")
        raise RuntimeFault(f"there is no program {command[0]!r}")


@pytest.fixture
def agent(kv: Kv, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An agent's admin HTTP, and the node in the store that says where it is."""

    async def nothing() -> list[object]:
        return []

    loop = asyncio.new_event_loop()
    sources = Sources(waiting_for=list, metrics=nothing, replicas=Replicas())  # type: ignore[arg-type]
    admin = Admin("127.0.0.1:0", sources, "secret")
    loop.run_until_complete(admin.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    kv.put(
        kv.keys.node_report("n1"), NodeReport(node="n1", address="127.0.0.1", admin=admin.address, replicas=REPLICAS)
    )
    monkeypatch.setenv("MESH_ADMIN_TOKEN", "secret")
    yield admin.address
    asyncio.run_coroutine_threadsafe(admin.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_logs_of_all_replicas_behind_their_ids(mesh: Mesh, agent: str) -> None:
    assert mesh("logs", "web").out.splitlines() == [
        "web-1-aaaa web-1-aaaa begins", "web-1-aaaa \x1b]0;title\x07café", "web-1-aaaa no line end",
        "web-2-aaaa web-2-aaaa begins", "web-2-aaaa \x1b]0;title\x07café", "web-2-aaaa no line end",
    ]  # fmt: skip


def test_on_a_terminal_nobodys_output_steers_it(mesh: Mesh, agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert mesh("logs", "web-1-aaaa").out.splitlines()[1] == "web-1-aaaa �]0;title�café"


def test_logs_of_one_replica_cut_short_as_json(mesh: Mesh, agent: str) -> None:
    out = mesh("logs", "web-2-aaaa", "--tail", "0", "--json").out
    assert out == '{"replica": "web-2-aaaa", "line": "no line end"}\n'


def test_following_ends_by_ctrl_c(agent: str) -> None:
    command = [sys.executable, "-m", "mesh.cli", "logs", "web", "-f", "--tail", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        assert {process.stdout.readline() for _ in REPLICAS} == {"web-1-aaaa more\n", "web-2-aaaa more\n"}
        process.send_signal(2)
        assert process.wait(10) == 130
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_following_ends_when_nobody_reads(agent: str) -> None:
    command = [sys.executable, "-m", "mesh.cli", "logs", "web", "-f"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(10) == 1
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_exec_passes_output_and_exit_code_through(mesh: Mesh, agent: str) -> None:
    result = mesh("exec", "web-1-aaaa", "--", "echo", "-n", "--json", "hello")
    assert (result.code, result.out) == (0, "-n --json hello\n")
    assert mesh("exec", "web-1-aaaa", "--", "false").code == 3
    assert mesh("exec", "--json", "web-1-aaaa", "--", "false").json == {
        "replica": "web-1-aaaa",
        "code": 3,
        "output": "",
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["exec", "web-1-aaaa", "--", "nope"], "web-1-aaaa: the agent of n1 says: there is no program 'nope'"),
        (["exec", "web-1-aaab", "--", "x"], "there is no service or replica 'web-1-aaab' (did you mean 'web-1-aaaa'?)"),
        (["logs", "wbe"], "there is no service or replica 'wbe'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_a_sentence(mesh: Mesh, agent: str, arguments: list[str], sentence: str) -> None:
    result = mesh(*arguments)
    assert result.code == 1
    assert result.err.startswith(f"error: {sentence}")


def test_a_wrong_token_says_where_the_right_one_is(mesh: Mesh, agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_ADMIN_TOKEN", "wrong")
    result = mesh("logs", "web-1-aaaa")
    assert result.code == 1
    assert "MESH_ADMIN_TOKEN" in result.err


def test_an_agent_that_is_away_is_a_sentence_and_the_others_go_on(mesh: Mesh, kv: Kv, agent: str) -> None:
    lost = ReplicaReport(id="web-3-aaaa", service="web", slot=3, release=1, state=ReplicaState.READY)
    silent = NodeReport(node="n2", address="127.0.0.1", admin="http://127.0.0.1:9", replicas=[lost])
    kv.put(kv.keys.node_report("n2"), silent)
    result = mesh("logs", "web")
    assert result.code == 1
    assert "error: web-3-aaaa: cannot reach the agent of n2 at http://127.0.0.1:9" in result.err
    assert "web-2-aaaa no line end" in result.out


def test_exec_wants_a_replica(mesh: Mesh, kv: Kv, agent: str) -> None:
    kv.put(kv.keys.service("web"), {"image": "x"})
    assert mesh("exec", "web", "--", "x").err == (
        "error: 'web' is a service; name one of its replicas: web-1-aaaa, web-2-aaaa\n"
    )
