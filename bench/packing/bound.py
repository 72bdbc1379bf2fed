"""How many nodes it takes at least: the configuration LP, with prices that prove its bound.

Every way to fill one node is a *pattern*. The LP chooses how often to use each pattern, in fractions, so that
everything is placed (Gilmore and Gomory, 1961). Its dual gives each class of replicas a price such that no pattern is
worth more than one node. Whatever the prices are: if no pattern is worth more than `worth`, no packing needs fewer
nodes than

    sum(price × count) / worth                                                                (weak duality)

so prices are a certificate: to check one, find the most valuable pattern, exactly and in integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

SCALE = 10**9
"""Prices are kept as integers, in billionths of a node."""
MAX_CELLS = 2_000_000
"""Grids up to this size are searched for the most valuable pattern; it takes seconds."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """`prices` of the classes, and `worth`: the most that a pattern is worth by them, or a bound for it."""

    sizes: Integers  # of each class, in each dimension
    counts: Integers
    capacity: Integers
    prices: Integers
    worth: int
    proof: str

    @property
    def value(self) -> float:
        return int(self.prices @ self.counts) / self.worth

    @property
    def nodes(self) -> int:
        """No packing needs fewer."""
        return -(-int(self.prices @ self.counts) // self.worth)


def certify(demands: Integers, capacity: Integers) -> Certificate:
    """The best certificate that can be had: of the LP where a node's room is a small grid, else of one dimension."""
    sizes, counts = np.unique(demands, axis=0, return_counts=True)
    best = max((_by_dimension(sizes, counts, capacity, one) for one in range(len(capacity))), key=lambda one: one.value)
    grid = Grid(sizes, capacity)
    if grid.cells > MAX_CELLS:
        return best
    solved = solve(sizes, counts, capacity, grid.best)
    prices = np.floor(np.maximum(solved.prices, 0) * SCALE + 1e-6).astype(np.int64)
    _, worth = grid.best(prices)
    found = Certificate(
        sizes, counts, capacity, prices, int(worth), f"{solved.rounds} patterns, priced by exact search"
    )
    return max(best, found, key=lambda one: one.value)


def _by_dimension(sizes: Integers, counts: Integers, capacity: Integers, dimension: int) -> Certificate:
    """What is asked for in one dimension is the price: a node cannot hold more than it has."""
    proof = "the sum over one dimension: no node holds more than its capacity"
    return Certificate(sizes, counts, capacity, sizes[:, dimension], int(capacity[dimension]), proof)


class Grid:
    """A node's room in two dimensions, in steps of the common divisor: for exact search."""

    def __init__(self, sizes: Integers, capacity: Integers) -> None:
        units = [math.gcd(*map(int, sizes[:, one])) for one in range(sizes.shape[1])]
        self._sizes = (sizes // np.maximum(units, 1)).astype(int)
        self._room = [int(most) // max(unit, 1) for most, unit in zip(capacity, units, strict=True)]
        flat = sizes.shape[1] == 2 and bool((self._sizes[:, 0] > 0).all())
        self.cells = math.prod(most + 1 for most in self._room) if flat else MAX_CELLS + 1

    def best(self, prices: NDArray[np.generic]) -> tuple[Integers, float]:
        """The most valuable pattern, and what it is worth: dynamic programming over all amounts of room."""
        rows, columns = self._room
        worth = np.zeros((rows + 1, columns + 1), prices.dtype)
        last = np.full((rows + 1, columns + 1), -1)
        for row in range(1, rows + 1):
            worth[row] = worth[row - 1]
            for one, (height, width) in enumerate(self._sizes):
                if height <= row and width <= columns:
                    with_it = worth[row - height, : columns + 1 - width] + prices[one]
                    better = np.flatnonzero(with_it > worth[row, width:]) + width
                    worth[row, better] = with_it[better - width]
                    last[row, better] = one
        pattern = np.zeros(len(self._sizes), np.int64)
        row, column = rows, columns
        while row > 0:
            one = last[row, column]
            if one < 0:
                row -= 1
                continue
            pattern[one] += 1
            row, column = row - self._sizes[one][0], column - self._sizes[one][1]
        return pattern, worth[rows, columns].item()


@dataclass(frozen=True, slots=True)
class Solution:
    """The LP's optimum, if pricing was exact: patterns (columns), how often each, and the dual prices."""

    patterns: Floats
    uses: Floats
    prices: Floats
    rounds: int


def solve(
    sizes: Integers, counts: Integers, capacity: Integers, price: Callable[[Floats], tuple[Integers, float]]
) -> Solution:
    """Column generation: the revised simplex method, with patterns made when they are worth more than a node."""
    classes = len(sizes)
    alone = np.min(np.where(sizes > 0, capacity // np.maximum(sizes, 1), 2**62), axis=1)
    basis = np.diag(alone.astype(float))
    cost = np.ones(classes)
    wanted = counts + np.random.default_rng(0).random(classes) * 1e-6  # no two bases are equal: it cannot go in circles
    for rounds in range(1, 100_000):
        inverse = np.linalg.inv(basis)
        prices = cost @ inverse
        if prices.min() < -1e-9:  # more of this class than is wanted: a column that takes one away
            column, column_cost = -np.eye(classes)[prices.argmin()], 0.0
        else:
            pattern, worth = price(prices)
            if worth <= 1 + 1e-9:
                return Solution(basis, inverse @ counts, prices, rounds)
            column, column_cost = pattern.astype(float), 1.0
        step = inverse @ column
        uses = inverse @ wanted
        ratio = np.where(step > 1e-9, uses / np.where(step > 1e-9, step, 1.0), np.inf)
        leaving = int(ratio.argmin())
        basis[:, leaving] = column
        cost[leaving] = column_cost
    raise RuntimeError("the LP did not come to an end")
