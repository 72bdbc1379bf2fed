"""Logs and exec over the admin HTTP of agents: which agent to ask, its token, and lines from many at once."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import msgspec

from mesh import console
from mesh.cli.base import Failed, Mesh
from mesh.cli.status import ReplicaStatus, service_names, service_status
from mesh.model import ReplicaState
from mesh.suggestion import suggestion
from mesh.view import View

_LONGEST_LINE = 64 * 1024
_CONNECT_TIMEOUT = 5.0


class ExecAnswer(msgspec.Struct, frozen=True):
    code: int
    output: str


class Printer:
    """Prints lines of several replicas, each behind its id in a colour of its own."""

    def __init__(self, *, json_lines: bool) -> None:
        self._json_lines = json_lines
        self._styles: dict[str, str] = {}

    def line(self, replica: str, text: str) -> None:
        if self._json_lines:
            print(json.dumps({"replica": replica, "line": text}, ensure_ascii=False), flush=True)
            return
        style = self._styles.setdefault(replica, console.prefix_style(len(self._styles)))
        print(f"{console.paint(replica, style)} {console.foreign(text)}", flush=True)


async def print_logs(mesh: Mesh, target: str, tail: int | None, printer: Printer) -> None:
    """What is there now, one replica after the other.

    Raises:
        Failed: if some replica's logs cannot be had, after those that can.
    """
    view = await mesh.view()
    failures: list[str] = []
    async with Agents(mesh) as agents:
        for replica in _replicas(view, target):
            if replica.state == "assigned":
                continue
            try:
                async for text in agents.logs(view, replica, follow=False, tail=tail):
                    printer.line(replica.id, text)
            except Failed as failed:
                failures += failed.args
    if failures:
        raise Failed(*failures)


async def follow_logs(mesh: Mesh, target: str, tail: int | None, printer: Printer) -> None:
    """What is there and what comes, of all replicas and of those that will be; ends by Ctrl-C, or when nobody
    reads it any more."""
    reading: set[str] = set()
    met: set[str] = set()

    async def read(view: View, replica: ReplicaStatus) -> None:
        again = replica.id in met  # its agent was restarted: what it printed before has been shown
        met.add(replica.id)
        try:
            async for text in agents.logs(view, replica, follow=True, tail=0 if again else tail):
                printer.line(replica.id, text)
        except Failed as failed:
            for sentence in failed.args:
                console.note(sentence)
        reading.discard(replica.id)

    try:
        async with Agents(mesh) as agents, asyncio.TaskGroup() as readers:
            async for view in mesh.views():
                for replica in _replicas(view, target):
                    ended = replica.id in met and ReplicaState(replica.state).ended
                    if replica.id not in reading and not ended and replica.state not in ("assigned", "pulling"):
                        reading.add(replica.id)
                        readers.create_task(read(view, replica))
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


async def run_inside(mesh: Mesh, replica: str, command: list[str], timeout: float) -> ExecAnswer:
    view = await mesh.view()
    found = [one for one in _replicas(view, replica) if one.id == replica]
    if not found:
        ids = ", ".join(one.id for one in _replicas(view, replica)) or "none yet"
        raise Failed(f"{replica!r} is a service; name one of its replicas: {ids}")
    async with Agents(mesh) as agents:
        return await agents.exec(view, found[0], command, timeout)


def _replicas(view: View, target: str) -> list[ReplicaStatus]:
    """The replicas of a service, or the one of this id."""
    names = service_names(view)
    if target in names:
        return service_status(view, target).replicas
    everything = {one.id: one for name in names for one in service_status(view, name).replicas}
    if target not in everything:
        raise Failed(f"there is no service or replica {target!r}{suggestion(target, [*names, *everything])}")
    return [everything[target]]


class Agents:
    """Asks the agents of replicas' nodes. All faults are `Failed`."""

    def __init__(self, mesh: Mesh) -> None:
        self._sources = mesh.sources
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT)
        self._http = aiohttp.ClientSession(timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def logs(self, view: View, replica: ReplicaStatus, *, follow: bool, tail: int | None) -> AsyncIterator[str]:
        query = {"follow": "1"} if follow else {}
        if tail is not None:
            query["tail"] = str(tail)
        async with self._asked("GET", view, replica, "logs", params=query) as response:
            async for line in _lines(response.content):
                yield line

    async def exec(self, view: View, replica: ReplicaStatus, command: list[str], timeout: float) -> ExecAnswer:
        body = {"command": command, "timeout": timeout}
        longest = aiohttp.ClientTimeout(total=timeout + _CONNECT_TIMEOUT, sock_connect=_CONNECT_TIMEOUT)
        async with self._asked("POST", view, replica, "exec", json=body, timeout=longest) as response:
            return msgspec.json.decode(await response.read(), type=ExecAnswer)

    @contextlib.asynccontextmanager
    async def _asked(
        self, method: str, view: View, replica: ReplicaStatus, verb: str, **more: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        node = view.nodes.get(replica.node)
        if node is None or not node.report.admin:
            raise Failed(f"{replica.id}: its node {replica.node} does not report where its agent is")
        admin = node.report.admin
        headers = {"Authorization": f"Bearer {token}"} if (token := self._sources.admin_token(admin)) else {}
        url = f"{admin}/v1/replicas/{quote(replica.id, safe='')}/{verb}"
        try:
            async with self._http.request(method, url, headers=headers, allow_redirects=False, **more) as response:
                if response.status != 200:
                    sentence = (await response.content.read(2000)).decode(errors="replace").strip()
                    raise Failed(f"{replica.id}: the agent of {replica.node} says: {sentence or response.reason}")
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            what = str(error) or "no answer in time"
            raise Failed(f"{replica.id}: cannot reach the agent of {replica.node} at {admin}: {what}; "
                         "other hosts need its --admin-listen on an address that they reach") from None  # fmt: skip


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[str]:
    """Lines of output; one that is longer than `_LONGEST_LINE` bytes comes in pieces."""
    rest = b""
    async for chunk in stream.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            yield line.rstrip(b"\r").decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")
