"""The report: fitted to what the store takes; the agent's name in its session; the claim on the node's key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from mesh.agent.report import Reporter, fitted, session_name
from mesh.model import NodeReport, ReplicaReport, ReplicaState
from mesh.store import MAX_VALUE
from mesh.view import decode_document
from tests.fakes.store import FakeStore
from tests.patience import until

KEY = "mesh/observed/nodes/n1"


def replica(number: int, state: ReplicaState = ReplicaState.READY, message: str = "") -> ReplicaReport:
    return ReplicaReport(
        id=f"web-{number}-aaaa",
        service="web",
        slot=number,
        release=1,
        state=state,
        since=float(number),
        message=message,
    )


def test_a_small_report_is_whole() -> None:
    report = NodeReport(node="n1", address="127.0.0.1", replicas=[replica(1, message="why")])
    assert msgspec.json.decode(fitted(report), type=NodeReport) == report


def test_long_messages_are_cut_first() -> None:
    report = NodeReport(node="n1", address="127.0.0.1", replicas=[replica(n, message="x" * 3000) for n in range(500)])
    body = fitted(report)
    assert len(body) <= MAX_VALUE
    kept = msgspec.json.decode(body, type=NodeReport).replicas
    assert len(kept) == 500
    assert kept[0].message == "x" * 200


def test_then_the_replicas_that_ended_longest_ago_are_left_out() -> None:
    ended = [replica(n, ReplicaState.FAILED, "x" * 300) for n in range(8000)]
    body = fitted(NodeReport(node="n1", address="127.0.0.1", replicas=[*ended, replica(9000)]))
    assert len(body) <= MAX_VALUE
    kept = msgspec.json.decode(body, type=NodeReport).replicas
    assert kept[0] == replica(9000), "what runs is never left out before what ended"
    assert {each.since for each in kept[1:]} == {float(n) for n in range(8001 - len(kept), 8000)}


def test_an_agent_has_one_name_through_its_restarts_and_another_elsewhere(tmp_path: Path) -> None:
    assert session_name("n1", tmp_path) == session_name("n1", tmp_path / "x" / "..")
    assert session_name("n1", tmp_path) != session_name("n1", tmp_path / "other")
    assert session_name("n1", tmp_path).startswith("mesh-agent n1 ")


@pytest.fixture
async def store() -> AsyncIterator[FakeStore]:
    store = FakeStore()
    yield store
    await store.close()


@pytest.fixture
async def reporter(store: FakeStore) -> AsyncIterator[Reporter]:
    reporter = Reporter(store, KEY, "mesh-agent n1", 10.0, report=lambda: NodeReport(node="n1", address="n1"),
                        incomplete=lambda: False, look=lambda: None)  # fmt: skip
    await reporter.claim()
    yield reporter
    await reporter.close(leave=True)


async def test_a_claim_that_somebody_ends_is_known_to_be_wanting(store: FakeStore, reporter: Reporter) -> None:
    """What must never run twice stops on that, long before the TTL that nobody waits for now."""
    assert reporter.disowned == 0
    (session,) = store.sessions
    store.end_session(session)
    await until(lambda: reporter.disowned > 0, "the loss")
    assert reporter.isolation < 5
    await reporter.claim()
    assert reporter.disowned == 0


async def test_a_claim_tells_again_what_an_earlier_life_has_told(store: FakeStore, reporter: Reporter) -> None:
    """And that it is of an earlier life: a node that was given up is not back on such words."""
    await reporter.claim()
    entry = await store.get(KEY)
    assert entry
    assert decode_document(entry.value, NodeReport).remembered
