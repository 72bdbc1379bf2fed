"""The bound that `bench/packing` judges by: stored certificates, checked in integers, and the LP on small cases.

`azure_certificates.json`: the first 60,000 requests of Azure's stream (AzurePublicDataset V1, CC-BY-4.0) by class, and
the prices that `python -m bench.packing` found for them.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.packing.bound import Grid, certify

STORED = json.loads((Path(__file__).parent / "azure_certificates.json").read_text())


@pytest.mark.parametrize("stored", STORED, ids=lambda one: f"{one['capacity'][1] // 1024}GiB")
def test_stored_prices_prove_the_stored_bound(stored: dict[str, Any]) -> None:
    sizes, counts, prices = (np.array(stored[key]) for key in ("sizes", "counts", "prices"))
    assert counts.sum() == 60_000
    pattern, worth = Grid(sizes, np.array(stored["capacity"])).best(prices)
    assert (pattern @ sizes <= stored["capacity"]).all()
    assert pattern @ prices == worth <= stored["worth"]
    assert -(-int(prices @ counts) // stored["worth"]) == stored["nodes"]


@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=3, unique=True),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_the_search_for_the_best_pattern_is_exact(sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    prices = [data.draw(st.integers(0, 9)) for _ in sizes]
    capacity = np.array([12, 12])
    worths = [
        int(np.array(many) @ prices)
        for many in itertools.product(range(13), repeat=len(sizes))
        if (np.array(many) @ np.array(sizes) <= capacity).all()
    ]
    # one of each more, so that the common divisors are one and the room stays what it is
    grid = Grid(np.array([*sizes, (13, 1), (1, 13)]), capacity)
    assert grid.best(np.array([*prices, 0, 0]))[1] == max(worths)


@given(st.lists(st.tuples(st.integers(1, 10), st.integers(1, 10)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_no_packing_beats_the_bound(replicas: list[tuple[int, int]]) -> None:
    capacity = np.array([10, 10])
    bound = certify(np.array(replicas), capacity)
    assert bound.nodes <= first_fit(replicas)
    assert bound.nodes >= -(-max(sum(one[0] for one in replicas), sum(one[1] for one in replicas)) // 10)


def first_fit(replicas: list[tuple[int, int]]) -> int:
    nodes: list[list[int]] = []
    for cpu, memory in sorted(replicas, reverse=True):
        for node in nodes:
            if node[0] + cpu <= 10 and node[1] + memory <= 10:
                node[0] += cpu
                node[1] += memory
                break
        else:
            nodes.append([cpu, memory])
    return len(nodes)


def test_a_mix_that_wastes_in_any_pattern_costs_more_than_its_sum() -> None:
    bound = certify(np.array([[6, 1]] * 10), np.array([10, 10]))
    assert bound.nodes == 10
    assert bound.value > 6.0
