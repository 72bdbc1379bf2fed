"""Where replicas go: one function from a batch of requests to placements with reasons.

The hard rules come first: a node that is barred, refuses a constraint or has no room is no candidate. Among the
candidates the wishes decide, in this order: not a node that failed this release; spread labels, each inside the one
before; affinities; then own replicas apart and less load (`spread`), or nothing scarce wasted and more load
(`binpack`; what asks for something scarce itself leaves the most of it of use). Ties go to the name, so the same input
has the same answer.

Requests are answered by priority, then in their order. Consecutive requests of one service are placed as a batch
(`batch.py`), which gives what one at a time would give. What finds no room may evict (`preemption.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import numpy as np

from mesh.scheduler.blueprint import Blueprint
from mesh.scheduler.placement import reasons, rules, scores
from mesh.scheduler.placement.batch import fill
from mesh.scheduler.placement.cluster import Ints, Mask, amount_of
from mesh.scheduler.placement.kinds import Ground, Kind, Needs, Shape
from mesh.scheduler.placement.live import amounts_of, by_name, cluster_of, evictable
from mesh.scheduler.placement.model import Holding, Node, Placement, Reasons, Refusal, Request, Verdict
from mesh.scheduler.placement.preemption import Victims
from mesh.scheduler.placement.terms import first_keys
from mesh.scheduler.placement.wishes import terms_of
from mesh.scheduler.placement.worth import Use, Worth

MAX_FAULT = 300


def place(requests: Sequence[Request], nodes: Iterable[Node], strategy: str = "spread") -> list[Placement | Refusal]:
    """An answer for each request, in their order; higher priority chooses first.

    No node ends up with more than it has, counting everything that lies on it already, less what is evicted.
    `max_per_*`, spread and affinities count the replicas that stay: a replica about to be replaced does not keep its
    successor away. Nothing is raised for what a request or a node says: a request that makes no sense is refused.
    """
    answers: dict[int, Placement | Refusal] = {}
    batch = _Batch(requests, nodes, strategy)
    order = sorted(range(len(requests)), key=lambda at: -_priority(requests[at]))
    for _, run in groupby(order, key=lambda at: _likeness(requests[at])):
        positions = list(run)
        answers.update(zip(positions, batch.answer([requests[at] for at in positions]), strict=True))
    return [answers[at] for at in range(len(requests))]


def explain(request: Request, nodes: Iterable[Node], strategy: str = "spread") -> list[Verdict]:
    """What each node is for a request, the best first, then those that will not do and why."""
    return _Batch([request], nodes, strategy).explain(request)


def _priority(request: Request) -> int:
    return request.blueprint.spec.placement.priority


def _likeness(request: Request) -> tuple[object, ...]:
    """What requests of one batch have in common."""
    return request.service, id(request.blueprint), request.only, request.avoid


class _Batch:
    """The cluster while requests are answered, run by run."""

    def __init__(self, requests: Sequence[Request], nodes: Iterable[Node], strategy: str) -> None:
        self._nodes = by_name(nodes)
        self._strategy = strategy
        self._cluster = cluster_of(self._nodes)
        self._kinds: dict[int, Kind] = {}
        self._shapes: dict[tuple[Needs, bool], Shape] = {}
        self._grounds: dict[tuple[object, ...], Ground] = {}
        self._wanted: list[Mask] | None = None
        self._worth: dict[str, Worth] = {}
        self._requests = requests
        self._victims: Victims | None = None
        self._evicted: set[tuple[int, str]] = set()
        self._ports: dict[tuple[str, str], str] = {}  # taken in this batch: (node, dimension) → by whom
        self._full: dict[tuple[object, ...], int] = {}  # what found no place, and the cluster's version then

    # ── answers ──────────────────────────────────────────────────────────────────────────────

    def answer(self, run: Sequence[Request]) -> list[Placement | Refusal]:
        """Answers for like requests; what is wrong with them stops no others."""
        request = run[0]
        try:
            kind = self._kind(request.blueprint)
        except Exception as error:
            return [Refusal(one, _fault(error)) for one in run]
        if why := self._nobody(request):
            return [Refusal(one, why) for one in run]
        placed: list[Placement] = []
        try:
            while len(placed) < len(run) and (more := self._some(run[len(placed) :], kind)):
                placed += more
        except Exception as error:
            return [*placed, *(Refusal(one, _fault(error)) for one in run[len(placed) :])]
        refused = Reasons(lambda: self._reasons(request, kind))
        return [*placed, *(Refusal(one, reasons=refused) for one in run[len(placed) :])]

    def _some(self, run: Sequence[Request], kind: Kind) -> list[Placement]:
        """As many placements as there is room for, or one that evicts; none if nothing helps."""
        request = run[0]
        key = _likeness(request)
        if self._full.get(key) == self._cluster.version:
            return []
        picks = self._there(request, kind, len(run)) if request.only is not None else self._anywhere(run, kind)
        if picks.size:
            placed = [Placement(one, self._cluster.names[node]) for one, node in zip(run, picks.tolist(), strict=False)]
            self._settle(placed, kind, picks)
            return placed
        if (evicting := self._preempt(request, kind)) is not None:
            return [evicting]
        self._full[key] = self._cluster.version
        return []

    def _anywhere(self, run: Sequence[Request], kind: Kind) -> Ints:
        return fill(self._cluster, kind, terms_of(self._cluster, run[0]), len(run))

    def _there(self, request: Request, kind: Kind, count: int) -> Ints:
        """On the one node that will do."""
        node = self._cluster.position.get(request.only or "")
        if node is None or reasons.why_not_there(self._cluster, request, kind.needs, node, self._holder):
            return np.zeros(0, np.int64)
        pick = np.array([node])
        self._cluster.take(kind.needs, pick)
        return pick

    def _settle(self, placed: Sequence[Placement], kind: Kind, picks: Ints) -> None:
        """Notes who is where, for which the cluster has room already."""
        self._cluster.settle(placed[0].request.service, picks)
        for dimension, _ in kind.needs:
            if dimension.startswith(rules.PORT):
                self._ports.update(((one.node, dimension), _title(one.request)) for one in placed)

    def _preempt(self, request: Request, kind: Kind) -> Placement | None:
        """A place that others of clearly lower priority leave, if that is possible."""
        if self._victims is None:
            self._victims = Victims(self._cluster, evictable(self._nodes))
        if not self._victims.holdings:
            return None
        terms = terms_of(self._cluster, request)
        nodes = kind.ground.allowed.copy()
        if terms.own is not None and terms.max_per_node is not None:
            nodes &= terms.own.counts < terms.max_per_node
        for cap in terms.caps:
            nodes &= cap.left[cap.groups] > 0
        if request.only is not None:
            nodes &= np.arange(self._cluster.size) == self._cluster.position.get(request.only, -1)
        chosen = self._victims.choose(request.service, _priority(request), kind.needs, nodes, terms.last)
        if chosen is None:
            return None
        node, victims = chosen
        pick = np.array([node])
        evicted = [self._victims.holdings[victim] for victim in victims]
        self._victims.evict(victims)
        for holding in evicted:
            self._cluster.take([(name, -amount) for name, amount in amounts_of(holding.demand).items()], pick)
            self._cluster.unsettle(holding.service, node)
            self._evicted.add((node, holding.id))
        self._cluster.take(kind.needs, pick)
        placement = Placement(request, self._cluster.names[node], tuple(holding.id for holding in evicted))
        self._settle([placement], kind, pick)
        return placement

    # ── reasons ──────────────────────────────────────────────────────────────────────────────

    def _nobody(self, request: Request) -> str:
        """Why there is no node to be asked."""
        if not self._nodes:
            return "there are no nodes"
        if request.only is None or request.only in self._cluster.position or request.blueprint.spec.volumes:
            return ""
        return f"there is no node {request.only}"

    def _reasons(self, request: Request, kind: Kind) -> dict[str, str]:
        """Why each node will not do, now that everything else has been placed."""
        why = reasons.why_not(self._cluster, request, kind.needs, self._holder)
        found = dict(zip(self._cluster.names, why, strict=True))
        if request.only in found and not request.blueprint.spec.volumes:
            found = {request.only: found[request.only]}
        return {node: sentence or "had no room when it was asked" for node, sentence in found.items()}

    def _holder(self, node: int, dimension: str) -> str:
        """Who has a host port."""
        for holding in self._nodes[node].holdings:
            if dimension in amounts_of(holding.demand) and (node, holding.id) not in self._evicted:
                return _title(holding)
        return self._ports.get((self._nodes[node].name, dimension), "another")

    def explain(self, request: Request) -> list[Verdict]:
        try:
            kind = self._kind(request.blueprint)
            refused = list(reasons.why_not(self._cluster, request, kind.needs, self._holder))
            terms = terms_of(self._cluster, request)
            keys = first_keys(kind, terms)
        except Exception as error:
            return [Verdict(node.name, _fault(error)) for node in self._nodes]
        packing = kind.packing
        fit: list[tuple[tuple[float, ...], Verdict]] = []
        for node, name in enumerate(self._cluster.names):
            if refused[node]:
                continue
            affinity = 0 if terms.affinity is None else int(terms.affinity[node])
            pull = affinity + terms.to_itself * bool(terms.own is not None and terms.own.counts[node])
            levels = [float(tier.levels(tier.groups.of[[node]])[0]) for tier in terms.tiers]
            there = [float(tier.counts[tier.groups.of[node]]) for tier in terms.tiers]
            late = float(node in terms.last)
            score = (
                ("failed before", late),
                *((f"spread {tier.label}", count) for tier, count in zip(terms.tiers, there, strict=True)),
                *scores.parts(int(keys[node]), packing=packing, affinity=pull, worth=kind.shape.has_worth),
            )
            rest = scores.below_affinity(int(keys[node]), packing=packing)
            fit.append(((late, *levels, -pull, rest), Verdict(name, score=score)))
        fit.sort(key=lambda one: one[0])
        unfit = [Verdict(name, why) for name, why in zip(self._cluster.names, refused, strict=True) if why]
        return [*(verdict for _, verdict in fit), *unfit]

    # ── what a blueprint means here ──────────────────────────────────────────────────────────

    def _kind(self, blueprint: Blueprint) -> Kind:
        known = self._kinds.get(id(blueprint))
        if known is None:
            known = self._kinds[id(blueprint)] = self._new_kind(blueprint)
        return known

    def _new_kind(self, blueprint: Blueprint) -> Kind:
        spec = blueprint.spec
        packing = (spec.placement.strategy or self._strategy) == "binpack"
        needs = rules.needs_of(blueprint.demand, self._cluster)
        shape = self._shapes.get((needs, packing))
        if shape is None:
            worths = self._worths(needs) if packing else None
            shape = self._shapes[needs, packing] = Shape(self._cluster, needs, packing=packing, worths=worths)
        key = (
            packing, spec.image is None, spec.command is None,
            tuple(constraint.text for constraint in blueprint.constraints), tuple(spec.placement.max_per),
        )  # fmt: skip
        ground = self._grounds.get(key)
        if ground is None:
            wanted = self._wanted_labels() if packing else None
            ground = self._grounds[key] = Ground(rules.allowed(self._cluster, blueprint), wanted)
        return Kind(shape, ground)

    def _worths(self, needs: Needs) -> Mapping[str, Worth]:
        """What the named resources that are asked for are worth, to those that have or want some of them."""
        for name in {name for name, _ in needs} & self._cluster.resources - self._worth.keys():
            demands = [held.demand for node in self._nodes for held in node.holdings if held.demand.resources.get(name)]
            demands += [one.blueprint.demand for one in self._requests if one.blueprint.demand.resources.get(name)]
            uses = [Use(amount_of(one.resources[name]), amount_of(one.cpu), amount_of(one.memory)) for one in demands]
            most = int(self._cluster.capacity[name].max(initial=0))
            self._worth[name] = Worth([use for use in uses if use.amount], most)
        return self._worth

    def _wanted_labels(self) -> Sequence[Mask]:
        """The nodes that will do, for each set of constraints among the requests: what binpack keeps for them."""
        if self._wanted is None:
            constrained = {tuple(one.text for one in request.blueprint.constraints): request.blueprint
                           for request in self._requests if request.blueprint.constraints}  # fmt: skip
            masks: dict[bytes, Mask] = {}
            for blueprint in constrained.values():
                mask = np.ones(self._cluster.size, bool)
                for constraint in blueprint.constraints:
                    mask &= rules.holds(self._cluster, constraint)
                masks[mask.tobytes()] = mask
            self._wanted = list(masks.values())
        return self._wanted


def _title(replica: Request | Holding) -> str:
    """`db-1`: the service and the slot."""
    return replica.service if replica.slot is None else f"{replica.service}-{replica.slot}"


def _fault(error: Exception) -> str:
    """What is wrong with a request, as a sentence."""
    what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return f"it cannot be placed: {what}"[:MAX_FAULT]
