"""Back-off, virtual IPs, allowances."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.model import Release, Rollout, RolloutState, SlotState
from mesh.scheduler import backoff
from mesh.scheduler.service.rollout import Allowance, Progress, advance, allowance, fail, next_deadline
from mesh.scheduler.vips import VipPool
from mesh.spec.service import Restart, Update

RESTART = Restart()


def failing(times: int, *, lives: float = 0.0) -> list[float]:
    """How long a slot waits after each failure, if each attempt begins when it may and lives that long."""
    state: SlotState | None = None
    placed, waits = 1000.0, []
    for _ in range(times):
        now = placed + lives
        state = backoff.after_failure(
            state, RESTART, release=1, node="n1", placed=placed, unready_since=placed, now=now
        )
        placed = backoff.retry_at(state, now)
        waits.append(placed - now)
    return waits


def test_a_slot_that_dies_at_once_waits_twice_as_long_each_time_up_to_a_minute() -> None:
    assert failing(9) == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_replica_that_lived_for_a_while_is_replaced_at_once() -> None:
    assert failing(1, lives=20) == [0]
    assert failing(6, lives=20) == [0, 0, 0, 0, 0, 12]


def test_ten_good_minutes_and_another_release_reset_it() -> None:
    first = backoff.after_failure(None, RESTART, release=1, node="n1", placed=0, unready_since=0, now=1)
    second = backoff.after_failure(first, RESTART, release=1, node="n1", placed=1, unready_since=1, now=2)
    assert second.failures == 2
    for release, now in ((1, 602), (2, 3)):
        later = backoff.after_failure(second, RESTART, release=release, node="n2", placed=2, unready_since=2, now=now)
        assert later.failures == 1


def test_a_clock_that_was_set_back_does_not_make_a_slot_wait() -> None:
    state = backoff.after_failure(None, RESTART, release=1, node="n1", placed=5000, unready_since=5000, now=5000)
    assert backoff.retry_at(state, 1000) == 1000


def test_vips_are_the_lowest_free_ones_without_network_and_broadcast() -> None:
    pool = VipPool("10.96.0.0/29")
    assert pool.keep("10.96.0.2")
    assert [pool.take() for _ in range(6)] == ["10.96.0.1", "10.96.0.3", "10.96.0.4", "10.96.0.5", "10.96.0.6", None]
    assert "widen vip_range" in pool.fault


def test_a_vip_is_kept_once_and_only_inside_the_range() -> None:
    pool = VipPool("10.96.0.0/16")
    assert pool.keep("10.96.1.1")
    assert not pool.keep("10.96.1.1")
    assert not pool.keep("10.97.0.1")
    assert not pool.keep("")


def test_a_range_that_is_none_has_no_addresses_and_says_so() -> None:
    pool = VipPool("10.96.0.0/99")
    assert pool.take() is None
    assert "vip_range" in pool.fault
    assert not pool.keep("10.96.0.1")


@given(st.integers(0, 200), st.integers(0, 100), st.integers(0, 100), st.booleans())
def test_an_allowance_is_never_zero_and_shares_round_apart(desired: int, up: int, down: int, stop_first: bool) -> None:
    if (up, down) == (0, 0):
        return
    may = allowance(Update(max_surge=f"{up}%", max_unavailable=f"{down}%"), desired, stop_first=stop_first)
    assert may.at_once >= 1
    assert may.surge * 100 <= desired * up + 100
    if stop_first:
        assert may.surge == 0
    elif may != Allowance(1, 0):
        assert may.surge * 100 >= desired * up
        assert may.unavailable * 100 <= desired * down


def test_seven_percent_of_a_hundred_is_seven() -> None:
    assert allowance(Update(max_surge="7%"), 100, stop_first=False) == Allowance(7, 0)


def test_a_deadline_counts_from_when_the_leader_began_to_watch() -> None:
    rolling = Rollout(state=RolloutState.ROLLING, release=2, since=0, progress=0)
    late = Progress(healthy=0, desired=3, trying_since=[0.0], watched_since=10_000.0)
    assert advance(rolling, Update(), late, 10_000.0) == (rolling, "")
    assert next_deadline(rolling, Update(), late) == 10_300.0
    assert advance(rolling, Update(), late, 10_300.0)[1] == "a replica was not healthy within 5m"


def test_only_new_heights_of_health_are_progress() -> None:
    rolling = Rollout(state=RolloutState.ROLLING, release=2, since=0, progress=0)
    once, _ = advance(rolling, Update(), Progress(1, 3, [], 0.0), 100.0)
    assert (once.healthy, once.progress) == (1, 100.0)
    fallen, _ = advance(once, Update(), Progress(0, 3, [], 0.0), 200.0)
    again, _ = advance(fallen, Update(), Progress(1, 3, [], 0.0), 300.0)
    assert again.progress == 100.0


def test_a_failed_rollout_goes_on_when_what_it_still_tried_comes_to_life() -> None:
    update = Update(healthy_deadline=15.0, progress_deadline=30.0)
    begun = Rollout(state=RolloutState.ROLLING, release=2, healthy=2)
    state, why = advance(begun, update, Progress(1, 3, [0.0], 0.0), 16.0)
    assert why
    release = Release(number=2, hash="a", spec={})
    failed = fail(state, update, release, None, why, 16.0)
    assert failed.state is RolloutState.FAILED
    assert advance(failed, update, Progress(1, 3, [0.0], 0.0), 50.0) == (failed, "")
    again, why = advance(failed, update, Progress(2, 3, [49.0], 0.0), 50.0)
    assert (again.state, again.since, why) == (RolloutState.ROLLING, 50.0, "")
