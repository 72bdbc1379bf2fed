"""What `mesh history` shows: the releases of a service, and what each changed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mesh import console
from mesh.cli.changes import Field, differences, show_field
from mesh.model import Release, RolloutState, ServicePlan
from mesh.view import View


@dataclass(frozen=True, slots=True)
class Entry:
    """A release, what became of it, and what it changed of the one before (nothing is known before the first kept)."""

    release: Release
    outcome: str
    changes: Sequence[Field]


def entries(view: View, service: str) -> list[Entry]:
    """Newest first."""
    plan = view.plans.get(service) or ServicePlan(service=service)
    before: dict[str, Any] | None = None
    found = []
    for release in plan.releases:
        changes = list(differences("", before, release.spec)) if before is not None else []
        found.append(Entry(release, _outcome(plan, release), changes))
        before = release.spec
    return found[::-1]


def _outcome(plan: ServicePlan, release: Release) -> str:
    """`in force`, the state of its rollout, `good` (it was in force), or `replaced` (it never was)."""
    if release.number == plan.releases[-1].number:
        return "in force" if plan.rollout.state is RolloutState.IDLE else plan.rollout.state
    if any(later.rollback_of == release.number for later in plan.releases):
        return "taken back"
    return "good" if release.good else "replaced"


def history_json(view: View, service: str) -> list[dict[str, Any]]:
    return [
        {
            "release": entry.release.number,
            "created": entry.release.created,
            "cause": entry.release.cause,
            "outcome": entry.outcome,
            "good": entry.release.good,
            "rollback_of": entry.release.rollback_of,
            "hash": entry.release.hash,
            "changes": [{"path": field.path, "before": field.before, "after": field.after} for field in entry.changes],
            "spec": entry.release.spec,
        }
        for entry in entries(view, service)
    ]


def show_history(view: View, service: str, *, patch: bool) -> None:
    found, now = entries(view, service), time.time()
    if not found:
        console.note(f"{service} has no release yet: mesh status {service}")
        return
    if not patch:
        console.print_table(
            ["release", "outcome", "age", "cause", "changed"],
            [[entry.release.number, entry.outcome, console.age(now - entry.release.created), entry.release.cause,
              ", ".join(field.path for field in entry.changes)] for entry in found],
        )  # fmt: skip
        return
    for entry in found:
        release = entry.release
        age = console.age(now - release.created)
        console.say(f"release {release.number} ({entry.outcome}, {age} ago): {release.cause}")
        for field in entry.changes:
            show_field(field)
