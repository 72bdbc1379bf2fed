"""The agent's word in the store: `observed/nodes/<me>`, held by its session, written when something changed.

One write is under way at a time and the newest report wins, so a burst of changes costs two writes. While
the store is away the report waits; a session that lapsed is replaced, and the key is claimed again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import msgspec

from mesh.aio import Backoff, Signal, Tasks
from mesh.model import NodeReport, ReplicaReport
from mesh.store import Entry, Op, Store, StoreError, lease
from mesh.store.lease import Lock
from mesh.store.marks import marked
from mesh.view import decode_document, encode_document

log = logging.getLogger(__name__)

COALESCE = 0.005
"""Seconds in which changes that come together share a write."""

MAX_REPORT = 350 * 1024
"""Bytes: Consul takes transactions of 512 KiB of JSON, in which values travel as base64."""

HELD_BACK = 0.05
"""Seconds that a report may wait for a failed replica's last words."""


def report_ops(key: str, report: bytes, session: str) -> list[Op]:
    """What writes a node's report, with its mark."""
    return marked(Op("lock", key, report, session=session))


def session_name(node: str, state: Path) -> str:
    """Names an agent across its restarts: the node, the machine and the state folder."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = socket.gethostname()
    identity = sha256(f"{machine} {state.resolve()}".encode()).hexdigest()[:16]
    return f"mesh-agent {node} {identity}"


class Reporter:
    """Claims the node's key, then keeps the report in it true."""

    def __init__(
        self,
        store: Store,
        key: str,
        name: str,
        ttl: float,
        *,
        report: Callable[[], NodeReport],
        incomplete: Callable[[], bool],
        look: Callable[[], None],
    ) -> None:
        """`report` builds the newest; `incomplete`: something worth a moment's wait is still being read; `look`: what
        is told next, after a new claim, is to have been seen after it."""
        self._store = store
        self._key = key
        self._name = name
        self._ttl = ttl
        self._report = report
        self._incomplete = incomplete
        self._look = look
        self._lock: Lock | None = None
        self._news = Signal()
        self._version = 0  # of what `report` would say
        self._written = 0
        self._progress = asyncio.Condition()
        self._tasks = Tasks()
        self._confirmed = time.monotonic()
        self.claimed = 0.0  # when the key was taken, by the monotonic clock
        self._disowned: float | None = None  # since when the store has said that the claim is over
        self.problem = ""

    @property
    def isolation(self) -> float:
        """Seconds since the store last confirmed that this node's session lives."""
        now = time.monotonic()
        if self._lock and not self._lock.is_lost:
            self._confirmed = now - self._lock.session.age
        return now - self._confirmed

    @property
    def disowned(self) -> float:
        """Seconds since the store said that this node's claim is over, however that came; 0: it has not."""
        return 0.0 if self._disowned is None else time.monotonic() - self._disowned

    async def claim(self) -> NodeReport | None:
        """Takes the node's key, also from an earlier life of this agent; what was in it.

        Raises:
            Held: if the agent of another machine, or state folder, holds it.
            StoreError: if the store does not answer.
        """
        before: NodeReport | None = None

        def told(entry: Entry | None) -> bytes:
            nonlocal before
            before = _decoded(entry.value) if entry else None
            return encode_document(msgspec.structs.replace(before, remembered=True) if before else self._report())

        self._lock = await lease.claim(self._store, self._key, told, self._name, self._ttl)
        self.claimed, self._disowned = time.monotonic(), None
        self._look()
        self._tasks.spawn(self._wake_when_lost(self._lock), "lost claim")
        return before

    def changed(self) -> None:
        """The report would say something new."""
        self._version += 1
        self._news.set()

    async def published(self, timeout: float) -> bool:
        """Waits until all that is known now has been written; False if it was not in time."""
        version = self._version
        try:
            async with asyncio.timeout(timeout), self._progress:
                await self._progress.wait_for(lambda: self._written >= version)
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """After `claim`: writes until it is cancelled."""
        backoff = Backoff(0.05, 2.0)
        while True:
            await self._news.wait()
            await asyncio.sleep(COALESCE)
            await self._hold_back()
            while not await self._write():
                await backoff.sleep()
            backoff.reset()

    async def close(self, *, leave: bool) -> None:
        """`leave`: for good, so the key is given back; else it stays held for the agent's next life, or its TTL."""
        await self._tasks.close()
        if self._lock:
            await (self._lock.release() if leave else self._lock.abandon())
            self._lock = None

    async def _wake_when_lost(self, lock: Lock) -> None:
        await lock.lost()
        self._disowned = time.monotonic()
        self._news.set()

    async def _hold_back(self) -> None:
        deadline = asyncio.get_running_loop().time() + HELD_BACK
        while self._incomplete() and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await self._news.wait(left)

    async def _write(self) -> bool:
        version = self._version
        try:
            if self._lock is None or self._lock.is_lost:
                await self.close(leave=False)
                await self.claim()
            assert self._lock is not None
            result = await self._store.txn(report_ops(self._key, fitted(self._report()), self._lock.session.id))
        except StoreError as error:
            self._say(str(error))
            return False
        if result.ok:
            self._say("")
            async with self._progress:
                self._written = version
                self._progress.notify_all()
        return result.ok

    def _say(self, problem: str) -> None:
        if problem and not self.problem:
            log.warning("report of this node waits: %s", problem)
        elif self.problem and not problem:
            log.info("report of this node is written again")
        self.problem = problem


def _decoded(value: bytes) -> NodeReport | None:
    try:
        return decode_document(value, NodeReport)
    except ValueError:
        return None


def fitted(report: NodeReport) -> bytes:
    """The document, cut to what the store takes: first the messages, then the oldest ended replicas."""
    body = encode_document(report)
    for longest in (200, 40, 0):
        if len(body) <= MAX_REPORT:
            return body
        shortened = [_shortened(replica, longest) for replica in report.replicas]
        report = msgspec.structs.replace(report, replicas=shortened, problems=report.problems[:20])
        body = encode_document(report)
    replicas = sorted(report.replicas, key=lambda replica: (replica.state.ended, -replica.since))
    while len(body) > MAX_REPORT and replicas:
        del replicas[-max(1, len(replicas) // 20) :]
        body = encode_document(msgspec.structs.replace(report, replicas=replicas))
    return body


def _shortened(replica: ReplicaReport, longest: int) -> ReplicaReport:
    return msgspec.structs.replace(replica, message=replica.message[:longest])
