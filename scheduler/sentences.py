"""How decisions are told: short sentences with a bounded number of names."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.model import ReplicaReport

MAX_NAMED = 5
MAX_MESSAGE = 160


def listed(things: Sequence[str], most: int = MAX_NAMED) -> str:
    """The first few, and how many more."""
    more = len(things) - most
    return ", ".join(things[:most]) + (f" and {more} more" if more > 0 else "")


def ending(report: ReplicaReport | None) -> str:
    """How a replica ended, to be added: ` (exited with code 1: no such file)`."""
    how = how_ended(report)
    return how and f" ({how})"


def how_ended(report: ReplicaReport | None) -> str:
    """`exited with code 1: no such file`; empty where nobody has said."""
    if report is None or not (report.message or report.exit):
        return ""
    how = " ".join(report.message.split())[:MAX_MESSAGE]
    if report.exit is not None:
        how = how or f"exit {report.exit.code}"
        if report.exit.oom and "memory" not in how:
            how = f"out of memory: {how}"
    return how


def size_text(size: int) -> str:
    """Bytes for reading: `1.2Gi`."""
    for unit, scale in (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if size >= scale:
            return f"{size / scale:.4g}{unit}"
    return str(size)
