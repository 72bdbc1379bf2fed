"""What the autoscaler decides, as `mesh autoscale SERVICE` shows it: asked of the leader, else read from the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import aiohttp
import msgspec

from mesh import console
from mesh.autoscaling.agents import body, session
from mesh.autoscaling.telling import Explanation
from mesh.cli.base import Failed, Mesh
from mesh.cli.top import number
from mesh.model import ScaleState
from mesh.view import View, leader_of

_INTERVAL = 1.0
_MAX_ANSWER = 1024 * 1024
_LAST = 5
"""Changes that are shown."""


async def explanations(mesh: Mesh, service: str) -> AsyncIterator[tuple[Explanation, Sequence[str]]]:
    """One now, and another each second; with warnings."""
    async with session() as http:
        while True:
            view = await mesh.view()
            mesh.known_services(view, [service])
            told, warnings = await _explanation(mesh, http, view, service)
            yield told, [*warnings, *mesh.warnings()]
            await asyncio.sleep(_INTERVAL)


async def _explanation(
    mesh: Mesh, http: aiohttp.ClientSession, view: View, service: str
) -> tuple[Explanation, Sequence[str]]:
    wish, plan = view.wishes.get(service), view.plans.get(service)
    state = view.scaled.get(service)
    if state is None and (wish is None or (wish.spec is not None and wish.spec.scale is None)):
        raise Failed(f"{service} does not follow its load: give its spec a `scale`, see docs/autoscaling.md")
    warnings = []
    if plan is not None and plan.errors:
        warnings.append(f"{service}: its newest spec is refused, the one before stays: {'; '.join(plan.errors)}")
    leader = leader_of(await mesh.store.get(mesh.keys.leader))
    answer = await _ask(http, leader.admin, service)
    if isinstance(answer, Explanation):
        return answer, warnings
    warnings.append(f"this is what was written last, the leader cannot be asked: {answer}")
    return Explanation.recorded(service, state or ScaleState(), view.scale.get(service)), warnings


async def _ask(http: aiohttp.ClientSession, admin: str, service: str) -> Explanation | str:
    if not admin:
        return "it does not say where it is"
    try:
        async with http.get(f"{admin}/v1/autoscale/{service}", allow_redirects=False) as answer:
            told = await body(answer, _MAX_ANSWER)
            if answer.status != 200:
                return f"{admin}: {told.decode(errors='replace').strip()[:200] or answer.status}"
            return msgspec.json.decode(told, type=Explanation)
    except TimeoutError:
        return f"{admin} does not answer"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return f"{admin}: {error}"


def show(told: Explanation) -> None:
    """In sentences and a table."""
    console.say(f"{told.service}: {_counts(told)}")
    console.say(told.why)
    if told.metrics:
        console.print_table(
            ["metric", "per replica", "target", "asks for", "fault"],
            [
                [each.metric, None if each.value is None else number(each.value), number(each.target),
                 each.recommendation, each.fault]
                for each in told.metrics
            ],
        )  # fmt: skip
    for problem in told.problems:
        console.say(f"problem: {problem}")
    if told.changes:
        console.say("last changes:")
        for change in told.changes[-_LAST:]:
            ago = console.age(time.time() - change.time)
            console.say(f"  {ago} ago: {change.current} → {change.replicas}: {change.why}")


def line(told: Explanation) -> str:
    """For `-f`."""
    return f"{_counts(told)}  {told.why}"


def _counts(told: Explanation) -> str:
    if told.held is not None:
        return f"held at {told.held} by hand (mesh scale {told.service}=spec releases it)"
    if told.replicas is None:
        return "no decision yet"
    parts = [f"{told.replicas} replicas" if told.replicas != 1 else "1 replica"]
    if told.recommendation is not None:
        measured = " over ".join(part for part in (told.metric, told.window) if part)
        parts.append(f"{told.recommendation} asked for{f' by {measured}' if measured else ''}")
    if told.limit:
        parts.append(f"limit: {told.limit}")
    return ", ".join(parts)
