"""What the free amount of a resource is good for."""

from __future__ import annotations

from functools import cache

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mesh.scheduler.placement.worth import MAX_STEPS, Use, Worth


def worth(asked: dict[int, int], most: int, cpu: int = 0, memory: int = 0) -> Worth:
    """`asked`: how many replicas have which amount, each with that much CPU and memory beside it."""
    return Worth([Use(amount, cpu, memory) for amount, count in asked.items() for _ in range(count)], most)


def left_over(asked: dict[int, int], most: int, *free: int) -> list[int]:
    return [round(share * most) for share in worth(asked, most).left_over(np.array(free))]


def test_what_no_sum_of_the_usual_amounts_fills_is_left_over() -> None:
    asked = {460: 10, 810: 20, 1000: 70}
    assert left_over(asked, 8000, 0, 190, 460, 920, 950, 1000, 1270) == [0, 190, 0, 0, 30, 0, 0]


def test_where_ones_are_usual_nothing_is_left_over() -> None:
    assert left_over({1: 9, 8: 1}, 8, *range(9)) == [0] * 9


def test_rare_amounts_do_not_count() -> None:
    assert left_over({2: 99, 1: 1}, 8, 1, 2, 3) == [1, 0, 1]


def test_an_overcommitted_node_leaves_nothing_over() -> None:
    assert left_over({2: 1}, 8, -3) == [0]


def test_amounts_without_a_coarse_divisor_are_rounded() -> None:
    most = 10 * MAX_STEPS
    (share,) = worth({most // 3: 1}, most).left_over(np.array([most // 3 * 3]))
    assert share < 0.001


@given(
    st.dictionaries(st.integers(1, 40), st.integers(1, 5), min_size=1, max_size=6),
    st.integers(1, 120),
)
def test_it_is_the_least_that_any_filling_leaves(asked: dict[int, int], most: int) -> None:
    @cache
    def least(free: int) -> int:
        return min((least(free - amount) for amount in asked if amount <= free), default=free)

    assert left_over(asked, most, *range(most + 1)) == [least(free) for free in range(most + 1)]


def test_what_lacks_cpu_or_memory_beside_it_counts_for_nothing() -> None:
    each = worth({1: 1}, most=8, cpu=4000, memory=16)
    free, cpu, memory = np.full(5, 8), np.array([32000, 8000, 32000, 0, -1]), np.array([128, 128, 32, 128, 128])
    assert each.of(free, cpu, memory).tolist() == [1.0, 0.25, 0.25, 0.0, 0.0]


def test_users_that_need_nothing_beside_it_need_no_cpu() -> None:
    assert worth({1: 1}, most=4).of(np.array([3]), np.array([0]), np.array([0])).tolist() == [0.75]
