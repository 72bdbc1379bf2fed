"""Which replicas go when a service is to have fewer."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence

from mesh.scheduler.forecast.cluster import Replica, Room, Site


def first_to_go(
    replicas: Sequence[Replica], count: int, label: str, sites: Mapping[str, Site], room: Room
) -> Iterator[Replica]:
    """`count` of a service's replicas, one per slot: those on draining nodes, then not ready, not the last ready one in
    a zone (a value of `label`), on the emptiest node, newest.

    Their release is of no matter: what is ready serves, and what a new release has started may never be ready. Each
    that goes changes what is left for the next: `room` is given back.
    """
    queues: dict[str, deque[Replica]] = defaultdict(deque)
    for replica in sorted(replicas, key=lambda one: (one.ready, -one.since, _backwards(one))):
        queues[replica.node].append(replica)
    zones = {node: sites[node].attributes.get(label) for node in queues}
    ready = Counter(zones[replica.node] for replica in replicas if replica.ready)

    def rank(node: str) -> tuple[object, ...]:
        head, zone = queues[node][0], zones[node]
        last = head.ready and zone is not None and ready[zone] == 1
        return not sites[node].draining, head.ready, last, room.load(node), -head.since, _backwards(head)

    heap = [(rank(node), node) for node in queues]
    heapq.heapify(heap)
    while count and heap:
        known, node = heapq.heappop(heap)
        if (now := rank(node)) != known:  # another went from its zone; ranks only grow, but for the node just chosen
            heapq.heappush(heap, (now, node))
            continue
        going = queues[node].popleft()
        count -= 1
        ready[zones[node]] -= going.ready
        room.give_back(going)
        if queues[node]:
            heapq.heappush(heap, (rank(node), node))
        yield going


def _backwards(replica: Replica) -> tuple[int, str]:
    """High slots before low ones, where age does not tell."""
    return (-replica.slot, "") if isinstance(replica.slot, int) else (0, replica.slot)
