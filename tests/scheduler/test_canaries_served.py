"""Canaries are judged by what the proxies got of them."""

from typing import Any

import pytest

from mesh.model import RolloutState
from tests.scheduler.test_canaries import by_release, state, with_canaries


def test_canaries_that_answer_with_errors_are_taken_back() -> None:
    world = with_canaries()
    world.compared = True
    world.run(5)
    world.serve(2, requests=40, failures=12)
    world.settle()
    assert by_release(world) == {1: 3} or by_release(world) == {3: 3}
    assert world.plans["web"].releases[-1].rollback_of == 2
    why = "release 2: its canaries answered 70% of 40 requests well, 95% should be (update.success_ratio); rolled back"
    assert world.plans["web"].rollout.message == why


@pytest.mark.parametrize(
    ("update", "requests", "failures"),
    [
        ({}, 100, 5),
        ({}, 9, 9),  # too few to tell
        ({"success_ratio": 0}, 100, 100),
        ({"success_ratio": 0.5}, 100, 50),
        ({"min_requests": 200}, 199, 199),
    ],
)
def test_canaries_that_do_well_or_of_which_too_little_is_known_are_promoted(
    update: dict[str, Any], requests: int, failures: int
) -> None:
    world = with_canaries(auto_promote=True, **update)
    world.run(1)
    world.serve(2, requests, failures)
    world.settle()
    assert by_release(world) == {2: 3}


def test_bad_canaries_are_not_promoted_also_when_an_operator_has_asked_for_it() -> None:
    world = with_canaries(min_healthy="5s")
    world.run(1)
    world.command("promote")
    world.run(1)
    world.serve(2, 50, 50)
    world.settle()
    assert world.plans["web"].releases[-1].rollback_of == 2


def test_what_several_canaries_were_sent_counts_together() -> None:
    world = with_canaries(4, 2)
    world.run(5)
    world.serve(2, 6, 6)
    world.settle()
    assert world.plans["web"].releases[-1].rollback_of == 2


def test_errors_of_the_old_release_are_not_the_canaries_fault() -> None:
    world = with_canaries()
    world.run(5)
    world.serve(1, 1000, 1000)
    world.run(60)
    assert state(world) == (RolloutState.CANARY, 2)


@pytest.mark.parametrize(("on_failure", "then"), [("pause", RolloutState.PAUSED), ("continue", RolloutState.CANARY)])
def test_on_failure_says_what_becomes_of_bad_canaries(on_failure: str, then: RolloutState) -> None:
    world = with_canaries(on_failure=on_failure)
    world.run(5)
    world.serve(2, 50, 50)
    world.run(20)
    assert state(world) == (then, 2)
    assert "its canaries answered 0% of 50 requests well" in world.plans["web"].rollout.message


def test_after_the_promotion_errors_are_for_health_checks_to_find() -> None:
    world = with_canaries(auto_promote=True)
    world.run(3)
    world.serve(2, 50, 50)
    world.settle()
    assert world.plans["web"].releases[-1].number == 2
