"""Where replicas go, and why: from a batch of requests and the nodes to placements and refusals.

    model.py     what is asked and answered         engine.py      requests → runs of like requests → answers
    live.py      live objects as arrays             cluster.py     the arrays
    rules.py     hard rules as masks                reasons.py     hard rules as sentences
    wishes.py    wishes as arrays                   advice.py      wishes that come to nothing, as sentences
    kinds.py     what every node is worth to a      scores.py      that worth as one integer, least is best
                 kind of replica, kept up to date   worth.py       what a named resource is worth to others
    terms.py     what a service asks beyond that    search.py      greedy, one look at all nodes after the other
    batch.py     greedy in one go for many          preemption.py  who must go

numpy is imported with the first request, not before: a tenth of a second that a command line does not need.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mesh.scheduler.placement.advice import warnings
from mesh.scheduler.placement.model import Holding, Node, Placement, Refusal, Request, Verdict

__all__ = ["Holding", "Node", "Placement", "Refusal", "Request", "Verdict", "explain", "place", "warnings"]


def place(requests: Sequence[Request], nodes: Iterable[Node], strategy: str = "spread") -> list[Placement | Refusal]:
    """An answer for each request, in their order; see `engine.place`."""
    from mesh.scheduler.placement import engine

    return engine.place(requests, nodes, strategy)


def explain(request: Request, nodes: Iterable[Node], strategy: str = "spread") -> list[Verdict]:
    """What each node is for a request, the best first, then those that will not do and why."""
    from mesh.scheduler.placement import engine

    return engine.explain(request, nodes, strategy)
