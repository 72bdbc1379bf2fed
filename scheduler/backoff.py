"""Back-off between the replacements of a slot that keeps failing.

The delay is a least distance between two *attempts* and doubles with each failure. So a replica that served for
a while and is killed is replaced at once, while one that dies at its start is tried after 1, 2, 4 … 60 seconds.
"""

from __future__ import annotations

from mesh.model import SlotState
from mesh.spec.service import Restart

MAX_NODES = 20
"""Nodes that one slot remembers as having failed it."""

_DOUBLINGS = 32
"""Beyond this every delay is at its maximum, and the power would overflow."""


def after_failure(
    old: SlotState | None,
    restart: Restart,
    *,
    release: int,
    node: str,
    placed: float,
    unready_since: float,
    now: float,
    why: str = "",
) -> SlotState:
    """The slot's memory after one more failed attempt, which was placed then and there.

    Failures of another release, or from before `reset_after` seconds without any, are forgotten.
    """
    if old is None or old.release != release or is_over(old, restart, now):
        old = SlotState(since=unready_since)
    failures = old.failures + 1
    delay = min(restart.delay * 2 ** min(failures - 1, _DOUBLINGS), restart.max_delay)
    return SlotState(
        failures=failures,
        last_failure=now,
        retry_at=max(now, min(placed, now) + delay),
        node=node,
        why=why,
        nodes=[*(name for name in old.nodes if name != node), node][-MAX_NODES:],
        release=release,
        since=old.since,
    )


def retry_at(state: SlotState | None, now: float) -> float:
    """When the slot may be tried again: at once, if the clock was set back to before the failure."""
    return now if state is None or state.last_failure > now else state.retry_at


def is_over(state: SlotState, restart: Restart, now: float) -> bool:
    """True once the slot has been well for so long that its failures are forgotten."""
    return now >= state.last_failure + restart.reset_after
