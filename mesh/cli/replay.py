"""What `mesh autoscale --replay` prints."""

from __future__ import annotations

from typing import Any

from mesh import console
from mesh.cli.replay_file import read_script
from mesh.scheduler.autoscale.model import Decision
from mesh.scheduler.autoscale.replay import replay


def show_replay(file: str, *, as_json: bool) -> None:
    """A decision for each point of the series in a file.

    Raises:
        SpecError: with every fault of the file.
    """
    decisions = replay(read_script(file))
    if as_json:
        console.print_json({"decisions": [_json(decision) for decision in decisions]})
        return
    for decision in decisions:
        change = f"{decision.current} → {decision.replicas}" if decision.current != decision.replicas else ""
        console.say(f"{decision.time:>12.12g}  {decision.replicas:>6}  {change:<14}{decision.why}")


def _json(decision: Decision) -> dict[str, Any]:
    time = decision.time
    return {
        "time": int(time) if time.is_integer() else time,
        "current": decision.current,
        "replicas": decision.replicas,
        "recommendation": decision.recommendation,
        "metric": decision.metric or None,
        "window": decision.window or None,
        "limit": decision.limit or None,
        "why": decision.why,
        "metrics": [
            {"metric": one.metric, "value": one.value, "target": one.target, "recommendation": one.recommendation,
             **({"fault": one.fault} if one.fault else {}), **({"note": one.note} if one.note else {})}
            for one in decision.metrics
        ],
    }  # fmt: skip
