"""The questions that `mesh simulate` answers about one cluster."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mesh import console, units
from mesh.cli import forecasts
from mesh.cli.base import Invalid
from mesh.scheduler.forecast.cluster import Cluster
from mesh.scheduler.forecast.end_state import Forecast, engine_nodes, forecast, waiting_slots
from mesh.scheduler.forecast.whatif import LoseAny, UntilFull, lose_any, until_full
from mesh.scheduler.repack import Move, repack
from mesh.suggestion import suggestion

FITS = 0
DOES_NOT_FIT = 3


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked beside the end state. `rebalance`: at most this share of the replicas may move."""

    lose: Sequence[str] = ()
    lose_any: int | None = None
    until_full: str | None = None
    rebalance: str | None = None


def simulate(cluster: Cluster, questions: Questions, *, as_json: bool) -> int:
    """Prints the answers; returns the exit code.

    Raises:
        Invalid: for a question that the cluster cannot be asked.
    """
    share = _checked(cluster, questions)
    cluster = cluster.without(questions.lose)
    outcome = forecast(cluster)
    warnings = forecasts.warnings(cluster)
    any_lost = lose_any(cluster, questions.lose_any) if questions.lose_any is not None else None
    full = until_full(cluster, outcome, questions.until_full) if questions.until_full is not None else None
    moves = planned_moves(cluster, outcome, share) if share is not None else None
    if moves is not None:
        outcome = moved(outcome, moves)
    if as_json:
        console.print_json({
            **forecasts.forecast_json(cluster, outcome, warnings),
            **({"moves": moves_json(moves)} if moves is not None else {}),
            **({"lose_any": _lose_any_json(any_lost)} if any_lost else {}),
            **({"until_full": _until_full_json(full)} if full else {}),
        })  # fmt: skip
    else:
        forecasts.show_forecast(cluster, outcome, warnings)
        if moves is not None:
            show_moves(moves)
        console.say(f"\n{summary(outcome)}")
        if any_lost:
            _show_lose_any(any_lost)
        if full:
            _show_until_full(full)
    return FITS if not outcome.waiting and (any_lost is None or any_lost.fits) else DOES_NOT_FIT


def _checked(cluster: Cluster, questions: Questions) -> float | None:
    """The share to rebalance, once all questions are sound."""
    for name in questions.lose:
        if name not in cluster.sites:
            raise Invalid(f"--lose: there is no node {name!r}{suggestion(name, cluster.sites)}")
    living = sum(not site.lost for name, site in cluster.sites.items() if name not in questions.lose)
    if questions.lose_any is not None and not 1 <= questions.lose_any <= living:
        raise Invalid(f"--lose-any: must be 1..{living}, as many nodes as there are, got {questions.lose_any}"
                      if living else "--lose-any: there are no nodes to lose")  # fmt: skip
    if (grows := questions.until_full) is not None:
        if grows not in cluster.services:
            raise Invalid(f"--until-full: there is no service {grows!r}{suggestion(grows, cluster.services)}")
        if (kind := cluster.services[grows].kind) != "service":
            raise Invalid(f"--until-full: only kind service can grow, {grows} is of kind {kind}")
    return None if questions.rebalance is None else _share("--rebalance", questions.rebalance)


def _share(flag: str, text: str) -> float:
    """Of `5%` or `0.05`."""
    try:
        return units.parse_share(text if text.endswith("%") else float(text))
    except ValueError:
        raise Invalid(f"{flag}: must be a share such as 5% or 0.05, got {text!r}") from None


def show_rebalance(cluster: Cluster, share: str, *, as_json: bool) -> None:
    """What `mesh rebalance --plan` prints."""
    outcome = forecast(cluster)
    moves = planned_moves(cluster, outcome, _share("--share", share))
    if as_json:
        console.print_json(
            {"moves": moves_json(moves), "nodes": forecasts.nodes_json(cluster, moved(outcome, moves).replicas)}
        )
        return
    show_moves(moves)
    if moves:
        console.say(f"\nafter {len(moves)} moves:")
        forecasts.show_nodes(cluster, moved(outcome, moves).replicas)


def planned_moves(cluster: Cluster, outcome: Forecast, share: float) -> list[Move]:
    """What a rebalance would move once everything else is done."""
    blueprints = {replica.id: service.blueprint for replica in outcome.replicas
                  if (service := cluster.services.get(replica.service)) and service.blueprint}  # fmt: skip
    return repack(engine_nodes(cluster, outcome.replicas), blueprints, share=share, strategy=cluster.strategy)


def moved(outcome: Forecast, moves: Sequence[Move]) -> Forecast:
    """The end state after these moves."""
    target = {move.id: move.target for move in moves}
    return replace(outcome, replicas=[replace(replica, node=target.get(replica.id, replica.node))
                                      for replica in outcome.replicas])  # fmt: skip


def moves_json(moves: Sequence[Move]) -> list[dict[str, Any]]:
    return [{"service": move.service, "slot": move.slot, "from": move.source, "to": move.target} for move in moves]


def show_moves(moves: Sequence[Move]) -> None:
    if not moves:
        console.say("nothing would be moved")
        return
    console.print_table(
        ["service", "slot", "from", "to"], [[move.service, move.slot, move.source, move.target] for move in moves]
    )


def _lose_any_json(answer: LoseAny) -> dict[str, Any]:
    worst = {"lose": list(answer.lose), "pending": forecasts.waiting_json(answer.waiting)}
    return {"k": answer.k, "fits": answer.fits, "exhaustive": answer.exhaustive, "worst": worst}


def _show_lose_any(answer: LoseAny) -> None:
    nodes = "any node" if answer.k == 1 else f"any {answer.k} nodes"
    tried = "" if answer.exhaustive else " (as far as tried: there are too many sets of nodes to try all)"
    if answer.fits:
        console.say(f"\nwithout {nodes} everything still fits{tried}")
        return
    console.say(f"\nwithout {', '.join(answer.lose)} not everything fits any more{tried}")
    forecasts.show_waiting(answer.waiting)


def _until_full_json(answer: UntilFull) -> dict[str, Any]:
    found = {"service": answer.service, "more": answer.more, "reasons": dict(answer.reasons)}
    return {**found, "why": answer.why} if answer.why else found


def _show_until_full(answer: UntilFull) -> None:
    console.say(f"\n{answer.more} more of {answer.service} fit, then:")
    for sentence in forecasts.reasons_text(answer.reasons, answer.why):
        console.say(f"  {sentence}")


def summary(outcome: Forecast) -> str:
    """What became of it, in a sentence."""
    done = f"{len(outcome.placed)} placed, {len(outcome.stopped)} stopped"
    waiting = waiting_slots(outcome)
    return f"{done}: everything fits" if not waiting else (
        f"{done}, {'1 slot waits' if waiting == 1 else f'{waiting} slots wait'}"
    )  # fmt: skip
