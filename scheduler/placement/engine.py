"""Where replicas go: one function from a batch of requests to placements with reasons.

The hard rules come first: a node that is barred, refuses a constraint or has no room is no candidate. Among the
candidates the wishes decide, in this order: not the node that failed the slot last; replicas of a service apart; then
less load (`spread`), or more load and only then apart (`binpack`). Ties go to the name, so the same input has the
same answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from mesh.scheduler.blueprint import HostPort
from mesh.scheduler.placement.model import Holding, Node, Placement, Reasons, Refusal, Request, Verdict
from mesh.scheduler.sentences import size_text
from mesh.units import format_cpu


def place(requests: Sequence[Request], nodes: Iterable[Node], strategy: str = "spread") -> list[Placement | Refusal]:
    """An answer for each request, in their order; higher priority chooses first.

    No node ends up with more than it has, counting everything that lies on it already. `max_per_node` counts the
    replicas that stay: a replica about to be replaced does not keep its successor away.
    """
    tallies = {node.name: _Tally(node) for node in nodes}
    feasible = _Feasibility(tallies)
    chosen: dict[int, str] = {}
    full: set[tuple[int, str | None]] = set()  # what found no place: nodes only fill up, so its like will not either
    for position in sorted(range(len(requests)), key=lambda at: -requests[at].blueprint.spec.placement.priority):
        request = requests[position]
        kind = (id(request.blueprint), request.only)
        candidates = [] if kind in full else [tally for tally in feasible.of(request) if not tally.lacks(request)]
        if not candidates:
            full.add(kind)
            continue
        packing = (request.blueprint.spec.placement.strategy or strategy) == "binpack"
        best = min(candidates, key=lambda tally: tally.rank(request, packing=packing))
        best.take(request)
        chosen[position] = best.node.name
    return [
        Placement(request, chosen[position]) if position in chosen else feasible.refusal(request)
        for position, request in enumerate(requests)
    ]


def explain(request: Request, nodes: Iterable[Node], strategy: str = "spread") -> list[Verdict]:
    """What each node is for a request, the best first, then those that will not do."""
    tallies = {node.name: _Tally(node) for node in nodes}
    feasible = _Feasibility(tallies)
    packing = (request.blueprint.spec.placement.strategy or strategy) == "binpack"
    fit = [tally for tally in feasible.of(request) if not tally.lacks(request)]
    fit.sort(key=lambda tally: tally.rank(request, packing=packing))
    verdicts = [Verdict(tally.node.name, score=tally.score(request, packing=packing)) for tally in fit]
    named = {verdict.node for verdict in verdicts}
    refusal = feasible.refusal(request)
    return [*verdicts, *(Verdict(node, why) for node, why in refusal.reasons.items() if node not in named)]


class _Tally:
    """One node's account while a batch is placed."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._cpu = self._memory = 0
        self._resources: dict[str, int] = defaultdict(int)
        self._ports: dict[HostPort, str] = {}
        self._staying: dict[str, int] = defaultdict(int)
        for holding in node.holdings:
            self._add(holding)

    def _add(self, holding: Holding) -> None:
        demand = holding.demand
        self._cpu += demand.cpu
        self._memory += demand.memory
        for name, count in demand.resources.items():
            self._resources[name] += count
        for port in demand.ports:
            self._ports[port] = holding.service
        if holding.stays:
            self._staying[holding.service] += 1

    def take(self, request: Request) -> None:
        self._add(Holding(request.service, request.blueprint.demand))

    def lacks(self, request: Request) -> str:
        """What it has too little of; empty if there is room."""
        demand, capacity = request.blueprint.demand, self.node.capacity
        if demand.cpu > (free := capacity.cpu - self._cpu):
            return f"needs {format_cpu(demand.cpu)} cpu, {format_cpu(max(free, 0))} free"
        if demand.memory > (free := capacity.memory - self._memory):
            return f"needs {size_text(demand.memory)} memory, {size_text(max(free, 0))} free"
        for name, count in demand.resources.items():
            if count > (free := capacity.resources.get(name, 0) - self._resources[name]):
                return f"needs {count} {name}, {max(free, 0)} free"
        for port in demand.ports:
            if holder := self._ports.get(port):
                return f"host port {port[0]}/{port[1]} is taken by {holder}"
        most = request.blueprint.spec.placement.max_per_node
        if most is not None and self._staying[request.service] >= most:
            return f"already has {most} of {request.service} (max_per_node)"
        return ""

    def rank(self, request: Request, *, packing: bool) -> tuple[bool, float, float, str]:
        """Least is best."""
        failed, own, load = self.node.name in request.avoid, self._staying[request.service], self._load(request)
        return (failed, -load, own, self.node.name) if packing else (failed, own, load, self.node.name)

    def score(self, request: Request, *, packing: bool) -> tuple[tuple[str, float], ...]:
        """The parts of its rank, by name."""
        failed, *rest, _ = self.rank(request, packing=packing)
        names = ("load", "own replicas") if packing else ("own replicas", "load")
        return (("failed before", float(failed)), *zip(names, map(float, rest), strict=True))

    def _load(self, request: Request) -> float:
        """The fullest of its dimensions with the replica on it, 0..1."""
        demand, capacity = request.blueprint.demand, self.node.capacity
        cpu = (self._cpu + demand.cpu) / capacity.cpu if capacity.cpu else 0.0
        memory = (self._memory + demand.memory) / capacity.memory if capacity.memory else 0.0
        return max(cpu, memory)


class _Feasibility:
    """The rules that do not change while a batch is placed, asked once for each blueprint."""

    def __init__(self, tallies: Mapping[str, _Tally]) -> None:
        self._tallies = tallies
        self._refused: dict[int, dict[str, str]] = {}
        self._allowed: dict[int, list[_Tally]] = {}
        self._refusals: dict[tuple[int, str | None], tuple[str, Reasons]] = {}

    def of(self, request: Request) -> list[_Tally]:
        """The nodes that may be asked for room."""
        key = id(request.blueprint)
        if key not in self._allowed:
            refused = {name: why for name, tally in self._tallies.items() if (why := _bars(request, tally.node))}
            self._refused[key] = refused
            self._allowed[key] = [tally for name, tally in self._tallies.items() if name not in refused]
        if request.only is not None:
            return [tally for tally in self._allowed[key] if tally.node.name == request.only]
        return self._allowed[key]

    def refusal(self, request: Request) -> Refusal:
        """Why no node will do, after everything else has been placed."""
        key = (id(request.blueprint), request.only)
        if key not in self._refusals:
            self._refusals[key] = (self._why(request), Reasons(lambda: self._reasons(request)))
        why, reasons = self._refusals[key]
        return Refusal(request, why, {} if why else reasons)

    def _why(self, request: Request) -> str:
        if request.only is not None and request.only not in self._tallies:
            return (f"its volumes are on {request.only}, which is unknown" if request.blueprint.spec.volumes
                    else f"there is no node {request.only}")  # fmt: skip
        return "" if self._tallies else "there are no nodes"

    def _reasons(self, request: Request) -> dict[str, str]:
        refused = self._refused[id(request.blueprint)]
        return {
            name: refused.get(name) or tally.lacks(request)
            for name, tally in self._tallies.items()
            if request.only in (None, name)
        }


def _bars(request: Request, node: Node) -> str:
    if node.barred:
        return node.barred
    if refusal := request.blueprint.refuses(node.attributes.get("runtime", "")):
        return refusal
    for constraint in request.blueprint.constraints:
        if not constraint.allows(node.attributes):
            return constraint.why_not(node.attributes)
    return ""
