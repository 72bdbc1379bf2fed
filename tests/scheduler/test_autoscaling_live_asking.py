"""What the leader asks over HTTP: agents, whoever is waited for, and Prometheus, with everything that may go wrong."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from mesh.autoscaling import agents, prometheus
from mesh.autoscaling.agents import Agents, Question, Silent
from mesh.autoscaling.prometheus import Prometheus, number_in
from mesh.autoscaling.waiting import Waiting
from mesh.dataplane.load import LoadReport
from mesh.dataplane.waiting import WaitingReport
from tests.patience import until

Handler = Callable[[web.Request], Awaitable[web.Response]]
REPORT = msgspec.json.encode(LoadReport(node="n1", time=1.0, window=10.0, services={}))


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


# ── agents ───────────────────────────────────────────────────────────────────────────────────


async def test_the_first_question_is_for_everything_and_the_next_for_what_is_not_idle() -> None:
    asked = []

    async def stats(request: web.Request) -> web.Response:
        asked.append(request.query_string)
        return web.Response(body=REPORT)

    async with serving(stats) as admin:
        asking = Agents()
        for _ in range(2):
            (answer,) = (await asking.round({"n1": Question(admin, {"web", "api"})})).values()
            assert isinstance(answer, LoadReport)
        await asking.close()
    assert asked == ["usage=api,web", "active=1&usage=api,web"]


async def test_a_straggler_keeps_nobody_waiting_and_is_not_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "STRAGGLERS", 0.1)
    go, asked = asyncio.Event(), Counter[str]()

    async def slow(request: web.Request) -> web.Response:
        asked["slow"] += 1
        await go.wait()
        return web.Response(body=REPORT)

    async def quick(request: web.Request) -> web.Response:
        return web.Response(body=REPORT)

    async with serving(slow) as far, serving(quick) as near:
        asking = Agents()
        questions = {"far": Question(far), "near": Question(near)}
        assert (await asking.round(questions)).keys() == {"near"}
        assert (await asking.round(questions)).keys() == {"near"}
        go.set()
        await until(lambda: all(task.done() for task in asking._asking.values()))
        assert (await asking.round(questions)).keys() == {"far", "near"}
        await asking.close()
    assert asked["slow"] == 1


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [(b"<html>", 200, "malformed"), (b"", 503, "answers 503"), (b" " * 2000, 200, "more than 1000 bytes")],
)
async def test_an_answer_that_is_none_is_told(
    body: bytes, status: int, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "MAX_ANSWER", 1000)

    async def odd(request: web.Request) -> web.Response:
        return web.Response(body=body, status=status)

    async with serving(odd) as admin:
        asking = Agents()
        (answer,) = (await asking.round({"n1": Question(admin)})).values()
        assert isinstance(answer, Silent)
        assert problem in answer.problem
        assert asking.failures == 1
        await asking.close()


async def test_an_agent_that_nobody_can_find_is_told() -> None:
    asking = Agents()
    (answer,) = (await asking.round({"n1": Question("")})).values()
    assert answer == Silent(node="n1", problem="it does not report where its agent is")
    await asking.close()


# ── who is waited for ────────────────────────────────────────────────────────────────────────


async def test_one_question_stays_open_and_tells_at_once_who_is_waited_for() -> None:
    asked: asyncio.Queue[str] = asyncio.Queue()
    answers: asyncio.Queue[WaitingReport] = asyncio.Queue()

    async def waiting(request: web.Request) -> web.Response:
        asked.put_nowait(request.query_string)
        return web.Response(body=msgspec.json.encode(await answers.get()))

    rung = asyncio.Event()
    async with serving(waiting) as admin:
        waits = Waiting(rung.set)
        waits.follow({"n1": admin})
        assert await asyncio.wait_for(asked.get(), 5) == "wait=30"
        answers.put_nowait(WaitingReport(7, {"web": 3}))
        await asyncio.wait_for(rung.wait(), 5)
        assert waits.services() == {"web": 3}
        assert await asyncio.wait_for(asked.get(), 5) == "wait=30&since=7"
        waits.follow({})
        await until(lambda: not waits.services())
        await waits.close()


# ── Prometheus ───────────────────────────────────────────────────────────────────────────────


def vector(*values: str) -> bytes:
    result = [{"metric": {}, "value": [1.0, value]} for value in values]
    return msgspec.json.encode({"status": "success", "data": {"resultType": "vector", "result": result}})


def test_one_number_is_read_from_a_vector_or_a_scalar() -> None:
    assert number_in(vector("12.5")) == 12.5
    scalar = {"status": "success", "data": {"resultType": "scalar", "result": [1.0, "3"]}}
    assert number_in(msgspec.json.encode(scalar)) == 3.0


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (vector(), "yields 0 results"),
        (vector("1", "2"), "yields 2 results, it must yield one"),
        (vector("NaN"), "yields NaN, which is no number"),
        (vector("+Inf"), "yields +Inf, which is no number"),
        (b"# HELP text", "something else than Prometheus' JSON"),
        (b"\xff\xfe", "something else than Prometheus' JSON"),
        (b"[]", "something else than Prometheus' JSON"),
        (b'{"status": "success"}', "something else than Prometheus' JSON"),
        (b'{"status": "success", "data": {"resultType": "matrix", "result": []}}', "yields a matrix"),
        (b'{"status": "error", "error": "parse error"}', "refuses the query: parse error"),
    ],
)
def test_whatever_else_is_a_failure_with_a_sentence(answer: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("+", r"\+")):
        number_in(answer)


async def test_a_query_is_asked_again_and_again_and_its_failure_is_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "INTERVAL", 0.01)
    told = {"status": 200, "body": vector("42")}
    queries = set()

    async def query(request: web.Request) -> web.Response:
        queries.add((request.path, request.query["query"]))
        if told["status"] == 302:
            raise web.HTTPFound("http://127.0.0.1:1/elsewhere")
        return web.Response(status=int(str(told["status"])), body=told["body"])

    asking = Prometheus()
    async with serving(query) as url:
        asking.follow({(url, "sum(up)")})
        assert "not answered yet" in asking.last(url, "sum(up)").fault
        await until(lambda: asking.last(url, "sum(up)").value == 42.0)
        told.update(status=500, body=b"oops")
        await until(lambda: asking.last(url, "sum(up)").fault == f"{url} answers 500")
        told.update(status=302)
        await until(lambda: "redirects (302)" in asking.last(url, "sum(up)").fault)
        told.update(status=200, body=b"x" * (prometheus.MAX_ANSWER + 1))
        await until(lambda: "more than 65536 bytes" in asking.last(url, "sum(up)").fault)
    await until(lambda: "cannot be reached" in asking.last(url, "sum(up)").fault)
    assert queries == {("/api/v1/query", "sum(up)")}
    asking.follow(())
    assert "is not asked" in asking.last(url, "sum(up)").fault
    await asking.close()
