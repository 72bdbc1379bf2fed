"""The end state: where everything will be once all that is decided has been carried out.

Stops count as done and new replicas as ready, and it is decided again until nothing changes: so the answer, carried
out and asked again, is empty. The places are chosen by the same engine as in the running scheduler.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mesh.model import Slot
from mesh.scheduler.forecast.cluster import Cluster, Replica, Room
from mesh.scheduler.forecast.seating import Seating, seat
from mesh.scheduler.placement import Holding, Node, Placement, Refusal, Request, place

MAX_ROUNDS = 100
"""Evictions only go down in priority, so a few rounds do; this bounds what a mistake of ours could cost."""

MAX_TRIES = 8
"""Of placing anew because a predecessor must stay; then all keep their room until their successors have theirs."""


@dataclass(frozen=True, slots=True)
class Stopped:
    replica: Replica
    why: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Slots of a service that nothing can be placed in: a sentence per node, or `why` where no node is at fault."""

    service: str
    slots: Sequence[Slot]
    reasons: Mapping[str, str] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What would be placed and stopped, what would wait, and all replicas that there would be."""

    placed: Sequence[Replica]
    stopped: Sequence[Stopped]
    waiting: Sequence[Waiting]
    replicas: Sequence[Replica]


def waiting_slots(outcome: Forecast) -> int:
    """How many slots wait; a service that waits as a whole counts as one."""
    return sum(max(1, len(waiting.slots)) for waiting in outcome.waiting)


class Rest:
    """A cluster in which nothing is left to do, looked at once for many questions about the loss of nodes."""

    def __init__(self, cluster: Cluster) -> None:
        living = [one for one in cluster.replicas if one.holds_room and cluster.lives(one.node)]
        self.nodes = engine_nodes(cluster, living)
        self.services_on: dict[str, set[str]] = defaultdict(set)
        for replica in living:
            self.services_on[replica.node].add(replica.service)

    def touched(self, cluster: Cluster) -> set[str]:
        """The services that lose replicas, in a cluster that lost nodes meanwhile."""
        lost = [name for name in self.services_on if not cluster.lives(name)]
        return {service for name in lost for service in self.services_on[name]}


def forecast(cluster: Cluster, rest: Rest | None = None) -> Forecast:
    """The end state of a cluster; `rest`: what it was when nothing was left to do, before it lost nodes."""
    return _Course(cluster, rest).run()


def engine_nodes(
    cluster: Cluster,
    replicas: Iterable[Replica],
    without: Collection[str] = (),
    outgoing: Collection[str] = (),
    *,
    evictable: bool = True,
) -> list[Node]:
    """The living nodes as the engine takes them, with these replicas on them.

    Args:
        cluster: the nodes, and the priorities of services.
        replicas: what lies on the nodes.
        without: ids of those that do not count.
        outgoing: ids of those that hold their room, but are about to go.
        evictable: whether any may have to go for a request of higher priority. What has no usable spec never does: it
            would not come back.
    """
    priorities = {name: service.priority for name, service in cluster.services.items() if service.blueprint}
    holdings: dict[str, list[Holding]] = defaultdict(list)
    for replica in replicas:
        if replica.id not in without:
            stays = replica.holds_slot and replica.id not in outgoing
            holdings[replica.node].append(Holding(
                replica.service, replica.demand, stays, replica.id, replica.slot,
                priorities.get(replica.service, 50), evictable and stays and replica.service in priorities,
            ))  # fmt: skip
    return [Node(name, site.capacity, site.attributes, holdings[name], site.barred)
            for name, site in sorted(cluster.sites.items()) if not site.lost]  # fmt: skip


def slot_order(slot: Slot) -> tuple[int, str]:
    """Sort key of a service's slots."""
    return (slot, "") if isinstance(slot, int) else (0, slot)


# ── the way there ────────────────────────────────────────────────────────────────────────────

_Seat = tuple[str, Slot]
"""A service's slot."""


@dataclass(slots=True)
class _Round:
    """What one look at the whole cluster decides. `settled`: carried out, another look would decide nothing more."""

    placed: list[Replica] = field(default_factory=list)
    stopped: list[Stopped] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    settled: bool = True


class _Course:
    """The way to the end state: what is there now, and what has been decided so far."""

    def __init__(self, cluster: Cluster, rest: Rest | None) -> None:
        self._cluster = cluster
        self._rest = rest
        self._present = {replica.id: replica for replica in cluster.replicas
                         if replica.holds_room and cluster.lives(replica.node)}  # fmt: skip
        self._placed: dict[str, Replica] = {}
        self._stopped: list[Stopped] = []
        self._pins = _pins(cluster)
        self._avoid = avoided(cluster)

    def run(self) -> Forecast:
        decided = _Round()
        for _ in range(MAX_ROUNDS):
            decided = self._decide()
            self._carry_out(decided)
            if decided.settled:
                break
        return Forecast(
            placed=sorted(self._placed.values(), key=lambda one: (one.service, slot_order(one.slot))),
            stopped=sorted(self._stopped, key=lambda one: (one.replica.service, slot_order(one.replica.slot))),
            waiting=[*self._parked(), *_folded(map(self._with_volumes, decided.refused))],
            replicas=list(self._present.values()),
        )

    def _carry_out(self, decided: _Round) -> None:
        self._rest = None
        for stopped in decided.stopped:
            del self._present[stopped.replica.id]
            if self._placed.pop(stopped.replica.id, None) is None:
                self._stopped.append(stopped)
        ended = {_place_of(one.replica): one for one in self._stopped if one.replica.current} if decided.placed else {}
        for replica in decided.placed:
            if back := ended.pop(_place_of(replica), None):  # it made room, and there was enough: it may as well stay
                self._stopped.remove(back)
                self._present[back.replica.id] = back.replica
            else:
                self._present[replica.id] = self._placed[replica.id] = replica
            self._pin(replica)

    def _pin(self, replica: Replica) -> None:
        """Its volumes, if it has any, are where it is."""
        blueprint = self._cluster.services[replica.service].blueprint
        if blueprint is not None and blueprint.spec.volumes:
            self._pins[replica.service, replica.slot] = replica.node

    def _decide(self) -> _Round:
        services = self._cluster.services
        if self._rest is not None:
            services = {name: services[name] for name in self._rest.touched(self._cluster)}
        held: dict[str, list[Replica]] = defaultdict(list)
        for replica in self._present.values():
            if replica.holds_slot and (self._rest is None or replica.service in services):
                held[replica.service].append(replica)
        room = functools.cache(lambda: Room(self._cluster, self._present.values()))
        seatings = {name: seat(service, held.pop(name, []), self._cluster.sites, room)
                    for name, service in sorted(services.items())}  # fmt: skip
        going = [Stopped(replica, why) for seating in seatings.values() for replica, why in seating.stop]
        going += [Stopped(replica, "the service is gone") for replicas in held.values() for replica in replicas]
        decided = self._place(seatings, {stopped.replica.id for stopped in going})
        decided.stopped += going
        last = [Stopped(replica, why) for seating in seatings.values() for replica, why in seating.after_others]
        if last and (last := self._when_alone(last, {stopped.replica.id for stopped in decided.stopped})):
            decided.stopped += last
            decided.settled = False
        return decided

    def _place(self, seatings: Mapping[str, Seating], gone: Collection[str]) -> _Round:
        """Places all that waits in one batch.

        A predecessor goes if its successor has a place, and stays if not. Those whose predecessors make room come
        first, so that this room is not taken by others. Where nothing else can be placed any more, a successor for
        which others left no room may still take its predecessor's own place.
        """
        leaving = {(name, old.slot): Stopped(old, why)
                   for name, seating in seatings.items() for old, why in seating.hand_over}  # fmt: skip
        for old in leaving.values():
            self._pin(old.replica)
        empty = [(name, slot) for name, seating in seatings.items() for slot in seating.fill]
        gives_room = {seat for seat, old in leaving.items() if not self._cluster.sites[old.replica.node].draining}
        wanted = sorted([*leaving, *empty], key=lambda seat: (seat not in gives_room, seat[0], slot_order(seat[1])))
        answers = self._answers_around([self._request(*seat) for seat in wanted], leaving, gone)
        placed = _placements(answers)
        if not placed and (stuck := [seat for seat in map(_seat, answers) if seat in gives_room]):
            in_place = [self._request(*seat, only=leaving[seat].replica.node) for seat in stuck]
            placed = _placements(self._answers_around(in_place, leaving, gone))
        filled = {_seat(answer) for answer in placed}
        decided = _Round(refused=[answer for answer in answers
                                  if isinstance(answer, Refusal) and _seat(answer) not in filled])  # fmt: skip
        for answer in placed:
            decided.placed.append(_new_replica(answer))
            decided.stopped += [leaving[_seat(answer)]] if _seat(answer) in leaving else []
            decided.stopped += [Stopped(self._present[id], f"makes room for {answer.request.service}")
                                for id in answer.evicts]  # fmt: skip
        decided.settled = not placed or not (leaving or any(answer.evicts for answer in placed))
        return decided

    def _answers_around(
        self, requests: Sequence[Request], leaving: Mapping[_Seat, Stopped], gone: Collection[str]
    ) -> list[Placement | Refusal]:
        """Answers for all; when a predecessor stays after all, the others are placed anew around it."""
        staying: dict[_Seat, Refusal] = {}
        for _ in range(MAX_TRIES):
            asked = [one for one in requests if (one.service, one.slot) not in staying]
            away = {leaving[seat].replica.id for one in asked if (seat := (one.service, one.slot)) in leaving}
            answers = self._answers(asked, {*gone, *away})
            late = {seat: answer for answer in answers
                    if isinstance(answer, Refusal) and (seat := _seat(answer)) in leaving}  # fmt: skip
            staying |= late
            if not late:
                return [*staying.values(), *answers]
        return self._answers(requests, gone, {old.replica.id for old in leaving.values()})

    def _answers(
        self, requests: Sequence[Request], without: Collection[str], outgoing: Collection[str] = ()
    ) -> list[Placement | Refusal]:
        if not requests:
            return []
        if self._rest is not None and not without and not outgoing:
            nodes = [node for node in self._rest.nodes if self._cluster.lives(node.name)]
        else:
            nodes = engine_nodes(self._cluster, self._present.values(), without, outgoing)
        return place(requests, nodes, self._cluster.strategy)

    def _request(self, name: str, slot: Slot, only: str | None = None) -> Request:
        service = self._cluster.services[name]
        assert service.blueprint is not None  # or nothing of it would be placed
        only = str(slot) if service.kind == "global" else self._pins.get((name, slot), only)
        return Request(name, slot, service.blueprint, only=only, avoid=self._avoid.get(name, frozenset()))

    def _when_alone(self, last: Sequence[Stopped], gone: Collection[str]) -> list[Stopped]:
        """Those of a draining node that nothing else is left on."""
        waiting = {stopped.replica.id for stopped in last}
        busy = {replica.node for replica in self._present.values()
                if replica.holds_slot and replica.id not in gone and replica.id not in waiting}  # fmt: skip
        return [stopped for stopped in last if stopped.replica.node not in busy]

    # ── why something waits ──────────────────────────────────────────────────────────────────

    def _parked(self) -> Iterator[Waiting]:
        """Services whose spec is unusable; what they have stays."""
        for name, service in sorted(self._cluster.services.items()):
            if service.why:
                filled = {one.slot for one in self._present.values() if one.service == name and one.holds_slot}
                missing = max(0, service.desired - len(filled)) if service.blueprint is None else 0
                free = (slot for slot in itertools.count(1) if slot not in filled)
                yield Waiting(name, list(itertools.islice(free, missing)), why=service.why)

    def _with_volumes(self, refusal: Refusal) -> Refusal:
        """A slot that its volumes pin has a reason for every node."""
        request = refusal.request
        pinned = self._pins.get((request.service, request.slot))
        if pinned is None:
            return refusal
        elsewhere = f"its volume is on {pinned}"
        reasons = {name: elsewhere for name, site in sorted(self._cluster.sites.items()) if not site.lost}
        if not self._cluster.lives(pinned):
            reasons = dict.fromkeys(reasons, f"{elsewhere}, which is lost")
        reasons[pinned] = f"{refusal.reasons.get(pinned, 'is lost')}; its volume is here"
        return Refusal(request, reasons=reasons)


def _seat(answer: Placement | Refusal) -> _Seat:
    return answer.request.service, answer.request.slot


def _place_of(replica: Replica) -> tuple[str, Slot, str]:
    return replica.service, replica.slot, replica.node


def _placements(answers: Iterable[Placement | Refusal]) -> list[Placement]:
    return [answer for answer in answers if isinstance(answer, Placement)]


def _new_replica(placement: Placement) -> Replica:
    request = placement.request
    return Replica(
        id=f"{request.service} {request.slot}: new",
        service=request.service,
        slot=request.slot,
        node=placement.node,
        demand=request.blueprint.demand,
    )


def _pins(cluster: Cluster) -> dict[_Seat, str]:
    """The node of the last replica, whatever became of it, of each slot that has volumes."""
    with_volumes = {name for name, service in cluster.services.items()
                    if service.blueprint and service.blueprint.spec.volumes}  # fmt: skip
    last: dict[_Seat, tuple[bool, float, str]] = {}
    for replica in cluster.replicas:
        if replica.service in with_volumes:
            seat, rank = (replica.service, replica.slot), (replica.holds_slot, replica.since)
            if seat not in last or rank >= last[seat][:2]:
                last[seat] = (*rank, replica.node)
    return {seat: node for seat, (_, _, node) in last.items()}


def avoided(cluster: Cluster) -> dict[str, frozenset[str]]:
    """For each service the nodes that failed a replica of its release."""
    failed: dict[str, set[str]] = defaultdict(set)
    for replica in cluster.replicas:
        if replica.failed and replica.current:
            failed[replica.service].add(replica.node)
    return {name: frozenset(nodes) for name, nodes in failed.items()}


def _folded(refusals: Iterable[Refusal]) -> Iterator[Waiting]:
    """Refusals of a service with equal reasons as one."""
    texts: dict[int, tuple[Mapping[str, str], tuple[tuple[str, str], ...]]] = {}  # most share one mapping
    slots: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[Slot]] = defaultdict(list)
    for refusal in refusals:
        if (known := texts.get(id(refusal.reasons))) is None:
            known = texts[id(refusal.reasons)] = (refusal.reasons, tuple(refusal.reasons.items()))
        slots[refusal.request.service, refusal.why, known[1]].append(refusal.request.slot)
    for (service, why, reasons), waiting in sorted(slots.items()):
        yield Waiting(service, sorted(waiting, key=slot_order), dict(reasons), why)
