"""How many of openb's GPUs end up allocated: its own nodes, and more arrivals than there is room for.

The published protocol (FGD, Weng et al., USENIX ATC'23): pods drawn at random from the trace arrive until they have
asked for 130 % of the cluster's GPUs; who finds no place is turned away; at the end the allocated share is read. There,
a share of a GPU is a share of one device. Here, GPUs are what they are in a spec, a count of the node (in thousandths),
so no node is left with shares on devices that only together would do: the figures stand beside the published ones, not
in one column with them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.packing.ours import GPU, blueprints, empty_nodes, place_in_rounds
from bench.traces import GPUCluster

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

ARRIVALS = 1.3
"""Of the GPUs that there are, are asked for."""


def rooms(cluster: GPUCluster) -> Integers:
    """The nodes with GPUs: millicores, MiB, thousandths of GPUs."""
    with_gpus: Integers = cluster.nodes[cluster.nodes[:, 2] > 0] * np.array([1, 1, 1000])
    return with_gpus


def demands(cluster: GPUCluster) -> Integers:
    """What each pod asks for, GPUs pooled."""
    return np.column_stack([cluster.pods[:, :2], cluster.pods[:, 2] * cluster.pods[:, 3]])


def arrivals(cluster: GPUCluster, seed: int) -> Integers:
    """Pods drawn at random, with repetition, until enough is asked for; positions in the trace."""
    asked = demands(cluster)[:, 2]
    drawn = np.random.default_rng(seed).integers(len(asked), size=4 * len(asked))
    return drawn[: int(np.searchsorted(np.cumsum(asked[drawn]), ARRIVALS * rooms(cluster)[:, 2].sum())) + 1]


def ours(cluster: GPUCluster, seed: int) -> float:
    """The allocated share, by our placement."""
    sizes, kinds = np.unique(demands(cluster), axis=0, return_inverse=True)
    nodes, _ = place_in_rounds(empty_nodes(rooms(cluster)), blueprints(sizes), kinds.ravel()[arrivals(cluster, seed)])
    taken = sum(held.demand.resources.get(GPU, 0) for node in nodes for held in node.holdings)
    return taken / int(rooms(cluster)[:, 2].sum())


def best_fit(cluster: GPUCluster, seed: int) -> float:
    """The same by best fit: the node on which the least is left, of what the largest node has in each dimension."""
    room, asked = rooms(cluster), demands(cluster)
    free = room.copy()
    worth = 1.0 / room.max(axis=0)
    for pod in arrivals(cluster, seed):
        left = free - asked[pod]
        fit = np.flatnonzero((left >= 0).all(axis=1))
        if fit.size:
            free[fit[np.argmin(left[fit] @ worth)]] -= asked[pod]
    return 1 - int(free[:, 2].sum()) / int(room[:, 2].sum())
