"""The leader asks the proxies what canaries answer, while there are some."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from aiohttp import web

from mesh.autoscaling.agents import Silent
from mesh.dataplane.load import EndpointReport, LoadReport, ServiceReport
from mesh.model import NodeReport, Rollout, RolloutState, ServicePlan
from mesh.scheduler.plan import Outcome
from mesh.scheduler.service.rollout import Served
from mesh.trials import Trials, served_by
from mesh.view import NodeView, View

CANARY = "web-1-bbbb"


def told(rps: float, ratio: float | None, service: str = "web") -> LoadReport:
    endpoint = EndpointReport(rps=rps, in_flight_now=0, success_ratio=ratio, ejected=False)
    return LoadReport(node="n1", time=0.0, window=10.0, services={service: ServiceReport(endpoints={CANARY: endpoint})})


def test_what_all_proxies_sent_is_added_up() -> None:
    answers: list[LoadReport | Silent] = [
        told(3.0, 0.5),
        told(1.0, 1.0),
        Silent(node="n3", problem="it is away"),
        told(9.0, 0.0, "other"),
    ]
    assert served_by(answers, ["web"]) == {CANARY: Served(40.0, 15.0)}
    assert served_by([told(0.0, None)], ["web"]) == {CANARY: Served(0.0, 0.0)}


@pytest.fixture
async def admin() -> Any:
    """An agent's admin HTTP, and what it was asked so far."""
    asked: list[str] = []

    async def stats(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response(msgspec.to_builtins(told(5.0, 0.4)))

    app = web.Application()
    app.router.add_get("/v1/stats", stats)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}", asked
    await runner.cleanup()


async def test_agents_are_asked_while_there_are_canaries_and_not_else(admin: tuple[str, list[str]]) -> None:
    url, asked = admin
    report = NodeReport(node="n1", address="127.0.0.1", admin=url)
    plan = ServicePlan(service="web", rollout=Rollout(state=RolloutState.CANARY))
    view = View(nodes={"n1": NodeView(report, held=True, index=1)}, plans={"web": plan})
    trials, news = Trials(), asyncio.Event()
    running = asyncio.create_task(trials.run(news.set))
    try:
        trials.follow(at_rest(view), Outcome())
        await asyncio.sleep(0)
        assert not asked
        trials.follow(view, Outcome())
        await asyncio.wait_for(news.wait(), 10)
        assert trials.served[CANARY].requests == 50.0
        assert trials.served[CANARY].ratio == pytest.approx(0.4)
        idle = msgspec.structs.replace(plan, rollout=Rollout())
        trials.follow(view, Outcome(services={"web": idle}))
        assert not trials.served
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def at_rest(view: View) -> View:
    """The same cluster without a rollout."""
    return View(nodes=view.nodes, plans={"web": ServicePlan(service="web")})
