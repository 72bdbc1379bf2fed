"""What `mesh plan` shows: the end state as it would be with other specs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mesh import console
from mesh.cli import changes, forecasts, wishes
from mesh.cli.base import Mesh
from mesh.cli.simulate import DOES_NOT_FIT, FITS, summary
from mesh.scheduler.forecast.end_state import Forecast, forecast
from mesh.scheduler.forecast.headroom import no_room_to_begin
from mesh.scheduler.forecast.live_cluster import live_cluster
from mesh.spec.route import RouteSpec
from mesh.spec.service import ServiceSpec
from mesh.view import View, Wish


async def show_plan(mesh: Mesh, services: Sequence[ServiceSpec], routes: Sequence[RouteSpec], *, as_json: bool) -> int:
    """Prints the plan; returns the exit code."""
    desired = await changes.desired(mesh)  # first: what is changed after it makes the index old, never the plan
    view = await mesh.view()
    found = changes.changes(mesh, [*services, *routes], desired.entries)
    cluster = live_cluster(_wished(view, services))
    outcome = forecast(cluster)
    warnings = [
        *forecasts.warnings(cluster),
        *no_room_to_begin(cluster, outcome),
        *wishes.lost_targets(routes, services, view),
    ]
    if as_json:
        console.print_json({
            "index": desired.index,
            "changes": [change.json() for change in found],
            "replaced": replaced_json(outcome),
            **forecasts.forecast_json(cluster, outcome, warnings),
        })  # fmt: skip
    else:
        changes.show(found)
        console.say()
        forecasts.show_forecast(cluster, outcome, warnings)
        console.say(f"\n{summary(outcome)}")
        console.say(f"index {desired.index}: mesh apply … --plan {desired.index} writes this if nothing changes before")
    return DOES_NOT_FIT if outcome.waiting else FITS


def _wished(view: View, services: Sequence[ServiceSpec]) -> View:
    """The picture of the store once these specs are written."""
    written = {spec.name: Wish(spec, (), view.index + 1) for spec in services}
    same = {name for name, wish in written.items() if name in view.wishes and view.wishes[name].spec == wish.spec}
    return replace(view, wishes={**view.wishes, **{name: wish for name, wish in written.items() if name not in same}})


def replaced_json(outcome: Forecast) -> list[dict[str, Any]]:
    """The placements and stops that hand a slot over."""
    stopped = {(one.replica.service, one.replica.slot): one for one in outcome.stopped}
    return [
        {"service": new.service, "slot": new.slot, "from": old.replica.node, "to": new.node, "why": old.why}
        for new in outcome.placed
        if (old := stopped.get((new.service, new.slot)))
    ]
