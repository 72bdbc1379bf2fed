"""The counting machine of a probe, and the prober on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.aio import Signal
from mesh.model import Assignment
from mesh.runtime import Instance, InstanceState, Launch
from mesh.runtime.health import HURRY, Prober, ProbeState, Verdict, problem_of
from mesh.runtime.probes import check_of
from mesh.spec.service import ServiceSpec, parse_spec
from tests.fakes.runtime import FakeRuntime, Ground, Program

DEADLINE = 10.0


def readiness(rise: int = 2, fall: int = 3, grace: float = 0.0) -> ProbeState:
    return ProbeState(rise, fall, grace, started=0.0, passing=False)


def liveness(rise: int = 2, fall: int = 3, grace: float = 0.0) -> ProbeState:
    return ProbeState(rise, fall, grace, started=0.0, passing=True)


def feed(state: ProbeState, results: str, now: float = 0.0) -> str:
    """`+` and `-` in; whether it passes after each of them out."""
    shown = ""
    for result in results:
        state.observe(result == "+", now)
        shown += "+" if state.passing else "-"
    return shown


@pytest.mark.parametrize(
    ("results", "passing"),
    [
        ("++", "-+"),
        ("+-++", "---+"),
        ("++--+---", "-++++++-"),
        ("++---++", "-+++--+"),
    ],
)
def test_readiness_rises_and_falls(results: str, passing: str) -> None:
    assert feed(readiness(), results) == passing


@pytest.mark.parametrize(("results", "passing"), [("--+--", "+++++"), ("---", "++-"), ("---++", "++--+")])
def test_liveness_falls_and_rises(results: str, passing: str) -> None:
    assert feed(liveness(), results) == passing


def test_failures_of_the_start_do_not_count() -> None:
    state = liveness(grace=30)
    assert feed(state, "-----", now=29.9) == "+++++"
    assert feed(state, "---", now=30) == "++-"


def test_the_first_success_ends_the_start() -> None:
    state = liveness(grace=30)
    assert feed(state, "--+---", now=1) == "+++++-"


def test_an_early_failure_breaks_a_row_of_successes() -> None:
    assert feed(readiness(grace=30), "+-+-++", now=1) == "-----+"


@given(st.lists(st.booleans()), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_it_turns_only_after_enough_results_in_a_row(results: list[bool], rise: int, fall: int, passing: bool) -> None:
    state = ProbeState(rise, fall, 0.0, 0.0, passing)
    for count, result in enumerate(results, 1):
        before = state.passing
        turned = state.observe(result, float(count))
        assert turned == (state.passing != before)
        if turned:
            needed = rise if result else fall
            assert results[count - needed : count] == [result] * needed
            assert state.passing == result


def test_checks_hurry_until_the_first_pass() -> None:
    state = readiness()
    assert state.wait(0.0, 2.0) == HURRY
    assert state.wait(10.0, 2.0) == pytest.approx(1.0)
    assert state.wait(100.0, 2.0) == 2.0
    state.observe(True, 100.0)
    assert state.wait(100.0, 2.0) == HURRY
    state.observe(True, 100.1)
    assert state.wait(100.1, 2.0) == 2.0
    feed(state, "---")
    assert state.wait(200.0, 2.0) == 2.0


def test_liveness_does_not_hurry() -> None:
    assert liveness().wait(0.0, 10.0) == 10.0


# ── on real sockets ──────────────────────────────────────────────────────────────────────────

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[Instance]:
    """An instance whose port `http` answers so."""
    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield instance(listening.sockets[0].getsockname()[1])
    listening.close()


def instance(port: int) -> Instance:
    return Instance("web-1-aaaa", "web", 1, 1, InstanceState.RUNNING, "127.0.0.1", {"http": port})


def service(**probe: Any) -> ServiceSpec:
    return parse_spec({"name": "web", "command": ["x"], "ports": {"http": {"port": 80}}, "health": {"ready": probe}})


async def problem(spec: ServiceSpec, target: Instance, runtime: FakeRuntime | None = None) -> str:
    assert spec.health.ready is not None
    probe = spec.health.ready
    return await problem_of(check_of(probe, spec, target, runtime or FakeRuntime()))


def says(*chunks: bytes) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
        writer.close()

    return answer


@pytest.mark.parametrize(
    ("chunks", "wrong"),
    [
        ([b"HTTP/1.1 200 OK\r\n\r\n"], ""),
        ([b"HTTP/1.0 302 Found\r\n\r\n"], ""),
        ([b"HTT", b"P/1.1 2", b"04 No Content\r\n\r\n"], ""),
        ([b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1_000_000], ""),
        ([b"HTTP/1.1 503 Busy\r\n\r\n"], "GET /healthz: 503"),
        ([b"HTTP/1.1 404 Not Found\r\n\r\n"], "GET /healthz: 404"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], "the answer is not HTTP"),
        ([b"HTTP/1.1"], "the connection ended without an answer"),
        ([], "the connection ended without an answer"),
    ],
)
async def test_what_an_http_probe_makes_of_answers(chunks: list[bytes], wrong: str) -> None:
    async with server(says(*chunks)) as target:
        assert await problem(service(http="/healthz"), target) == wrong


async def test_an_http_probe_asks_politely() -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    async with server(answer) as target:
        assert await problem(service(http="/a?b=1"), target) == ""
        assert heads[0].startswith(f"GET /a?b=1 HTTP/1.1\r\nHost: 127.0.0.1:{target.ports['http']}\r\n".encode())


async def test_a_probe_that_gets_no_answer_is_over_in_time() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with server(silent) as target:
        assert await problem(service(http="/", timeout="50ms"), target) == "no answer within 0.05 s"
        assert await problem(service(tcp="http"), target) == ""


@pytest.mark.parametrize("kind", [{"http": "/"}, {"tcp": "http"}])
async def test_a_refused_connection_names_the_port(kind: dict[str, str]) -> None:
    async with server(says()) as target:
        pass
    assert "port http: " in await problem(service(**kind), target)
    assert (
        await problem(service(**kind), Instance("a", "web", 1, 1, InstanceState.RUNNING)) == "port http has no address"
    )


async def test_exec_probes_look_at_the_exit_code() -> None:
    programs = {
        "good": Program(code=0),
        "bad": Program(says=lambda env: b"no disk\n", code=2),
        "slow": Program(),
    }
    runtime = FakeRuntime(Ground(programs=programs))
    spec = service(exec=["good"])
    running = await runtime.start(Launch(Assignment(id="web-1-aaaa", service="web", slot=1, release=1), spec, {}))
    assert await problem(spec, running, runtime) == ""
    assert await problem(service(exec=["check", "bad"]), running, runtime) == "check: exit code 2: no disk"
    assert "did not end" in await problem(service(exec=["slow"], timeout="50ms"), running, runtime)
    assert "is not on this node" in await problem(spec, instance(1), FakeRuntime())


class Told:
    """Verdicts as they come."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []
        self._more = Signal()

    def __call__(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        self._more.set()

    async def wait_for(self, wanted: Verdict) -> None:
        async with asyncio.timeout(DEADLINE):
            while wanted not in self.verdicts:
                await self._more.wait()


async def test_the_prober_tells_each_change_once() -> None:
    status = [503]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d X\r\n\r\n" % status[0])
        writer.close()

    told = Told()
    prober = Prober(FakeRuntime(), told)
    async with server(answer) as target:
        prober.begin("web-1-aaaa", service(http="/", interval="50ms"), target, ready=False)
        await told.wait_for(Verdict("web-1-aaaa", ready=False, message="GET /: 503"))
        status[0] = 200
        await told.wait_for(Verdict("web-1-aaaa", ready=True))
        status[0] = 500
        await told.wait_for(Verdict("web-1-aaaa", ready=False, message="GET /: 500"))
        assert len(told.verdicts) == 3
        prober.end("web-1-aaaa")
    await prober.close()


async def test_a_replica_that_was_ready_stays_so_without_a_word() -> None:
    asked = Signal()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    told = Told()
    prober = Prober(FakeRuntime(), told)
    async with server(answer) as target:
        prober.begin("web-1-aaaa", service(http="/", interval="50ms"), target, ready=True)
        for _ in range(3):
            assert await asked.wait(DEADLINE)
    await prober.close()
    assert told.verdicts == []


async def test_liveness_and_readiness_are_apart() -> None:
    async with server(says(b"HTTP/1.1 200 OK\r\n\r\n")) as target:
        spec = parse_spec({
            "name": "web", "command": ["x"], "ports": {"http": {"port": 80}},
            "health": {"ready": {"http": "/"},
                       "alive": {"exec": ["gone"], "interval": "50ms", "start": "0s", "fall": 2}},
        })  # fmt: skip
        told = Told()
        prober = Prober(FakeRuntime(), told)
        prober.begin("web-1-aaaa", spec, target, ready=False)
        await told.wait_for(Verdict("web-1-aaaa", ready=True))
        await told.wait_for(Verdict("web-1-aaaa", alive=False, message="web-1-aaaa is not on this node"))
        await prober.close()


async def test_an_engine_that_is_away_says_nothing_of_the_replica() -> None:
    runtime = FakeRuntime(Ground(programs={"good": Program(code=0), "serve": Program()}))
    spec = service(exec=["good"], interval="50ms", fall=1)
    assignment = Assignment(id="web-1-aaaa", service="web", slot=1, release=1)
    running = await runtime.start(Launch(assignment, spec.model_copy(update={"command": ["serve"]}), {}))
    told = Told()
    prober = Prober(runtime, told)
    runtime.available = False
    prober.begin("web-1-aaaa", spec, running, ready=True)
    for _ in range(5):
        await asyncio.sleep(0)
    runtime.available = True
    runtime.ground.programs["good"] = Program(code=1)
    await told.wait_for(Verdict("web-1-aaaa", ready=False, message="good: exit code 1"))
    await prober.close()
    assert len(told.verdicts) == 1
