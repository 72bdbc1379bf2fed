"""Pure parts: retry budget, policy, routes, the timer wheel."""

from __future__ import annotations

import asyncio
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.proxy.breaker import BreakerPolicy
from mesh.proxy.policy import Limits, Policy, parse_policy
from mesh.proxy.retry import FLOOR, WINDOW, RetryBudget, may_retry
from mesh.proxy.timers import NEVER, TICK, Timed, Wheel
from mesh.spec.traffic import Traffic

# ── retries


def test_the_budget_is_a_share_of_the_last_ten_seconds() -> None:
    budget = RetryBudget(0.2)
    for _ in range(1000):
        budget.request(100.0)
    assert sum(budget.spend(105.0) for _ in range(1000)) == FLOOR * WINDOW + 200
    assert not budget.spend(109.9)
    assert sum(budget.spend(115.0) for _ in range(1000)) == FLOOR * WINDOW  # the requests and retries have aged out


def test_the_budget_survives_a_long_pause() -> None:
    budget = RetryBudget(0.5)
    budget.request(1.0)
    assert sum(budget.spend(1e9) for _ in range(1000)) == FLOOR * WINDOW


@pytest.mark.parametrize(
    ("failure", "method", "tries", "replayable", "sent", "again"),
    [
        ("connect-failure", b"POST", 1, True, False, True),
        ("connect-failure", b"GET", 3, True, False, False),  # two retries were made
        ("reset", b"GET", 1, True, True, True),
        ("reset", b"POST", 1, True, True, False),
        ("reset", b"PUT", 1, False, True, False),
        ("timeout", b"GET", 1, True, True, False),  # not among the default reasons
        (503, b"GET", 1, True, True, True),
        (503, b"PATCH", 1, True, True, False),
        (500, b"GET", 1, True, True, False),
        ("protocol", b"GET", 1, True, True, False),
    ],
)
def test_what_may_be_tried_again(
    failure: str | int, method: bytes, tries: int, replayable: bool, sent: bool, again: bool
) -> None:
    assert may_retry(Policy(), failure, method, tries, replayable=replayable, sent=sent) is again


# ── policy


def test_the_operator_s_notation() -> None:
    policy, problems = parse_policy({
        "balance": {"hash": "cookie:id"}, "prefer": "node", "slow_start": "30s",
        "timeout": "30s", "connect_timeout": "250ms", "idle_timeout": "1h",
        "retries": {"attempts": 0, "on": ["timeout", 500], "budget": "10%", "per_try_timeout": "2s"},
        "breaker": {"consecutive": 3, "success_ratio": 0.5, "window": "20s", "open": "2s", "max_open": "1m",
                    "max_ejected": "25%"},
        "limits": {
            "in_flight": 8, "queue": 0, "queue_timeout": "1s", "held": 3, "held_timeout": "2s", "rate": 2.5,
            "connections": 100,
        },
    })  # fmt: skip
    assert problems == []
    assert policy == Policy(
        hash_of="cookie:id", prefer="node", slow_start=30, timeout=30, connect_timeout=0.25, idle_timeout=3600,
        retries=0, retry_on=frozenset({"timeout", 500}), retry_budget=0.1, per_try_timeout=2,
        breaker=BreakerPolicy(3, 0.5, 20, 2, 60, 0.25), limits=Limits(8, 0, 1, 3, 2, 2.5, 100),
    )  # fmt: skip


def test_defaults_are_the_spec_s() -> None:
    assert parse_policy(Traffic().model_dump(mode="json")) == (Policy(), [])


SETTINGS = st.none() | st.integers() | st.text() | st.lists(st.integers())
PARTS = ["attempts", "on", "budget", "consecutive", "window", "open", "success_ratio", "in_flight", "rate", "hash"]
NAMES = ["balance", "prefer", "slow_start", "timeout", "idle_timeout", "retries", "breaker", "limits"]


@given(st.dictionaries(st.sampled_from(NAMES), SETTINGS | st.dictionaries(st.sampled_from(PARTS), SETTINGS)))
def test_no_setting_stops_the_worker(traffic: dict[str, object]) -> None:
    policy, _ = parse_policy(traffic)
    assert policy.timeout >= 0


# ── the timer wheel


class Alarm(Timed):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop = loop
        self.rang: list[float] = []
        self.heard = asyncio.Event()

    def expire(self) -> None:
        self.rang.append(self.loop.time())
        self.heard.set()


async def test_deadlines_fire_once_and_never_early() -> None:
    loop = asyncio.get_running_loop()
    wheel, start = Wheel(), loop.time()
    alarms = [Alarm(loop) for _ in range(5)]
    for number, alarm in enumerate(alarms):
        wheel.watch(alarm, wheel.now + number * 0.7 * TICK)
    await asyncio.wait_for(asyncio.gather(*[alarm.heard.wait() for alarm in alarms]), 10)
    for number, alarm in enumerate(alarms):
        assert len(alarm.rang) == 1
        assert alarm.rang[0] - start >= number * 0.7 * TICK - 0.005  # the loop's clock counts in milliseconds
    wheel.close()


async def test_deadlines_may_move_and_vanish() -> None:
    loop = asyncio.get_running_loop()
    wheel = Wheel()
    sooner, later, never = Alarm(loop), Alarm(loop), Alarm(loop)
    now = wheel.now
    wheel.watch(sooner, now + 1000)
    wheel.watch(sooner, now + TICK)
    wheel.watch(later, now + TICK)
    later.deadline = now + 8 * TICK
    wheel.watch(never, now + TICK)
    never.deadline = NEVER
    await asyncio.wait_for(sooner.heard.wait(), 10)
    assert later.rang == []
    await asyncio.wait_for(later.heard.wait(), 10)
    assert never.rang == []
    wheel.close()


async def test_the_wheel_lets_go_of_what_is_forgotten() -> None:
    loop = asyncio.get_running_loop()
    wheel, gone, forgetful = Wheel(), Alarm(loop), Alarm(loop)
    wheel.watch(gone, wheel.now + TICK)
    wheel.forget(gone)
    assert sys.getrefcount(gone) == 2, "nobody else has it any more"
    wheel.watch(gone, wheel.now + TICK)
    wheel.watch(gone, wheel.now + 8 * TICK)
    wheel.watch(forgetful, wheel.now)
    await asyncio.wait_for(forgetful.heard.wait(), 10)
    wheel.forget(gone)
    wheel.watch(forgetful, wheel.now + 10 * TICK)
    forgetful.heard.clear()
    await asyncio.wait_for(forgetful.heard.wait(), 10)
    assert gone.rang == []
    assert wheel._timer is None


async def test_the_wheel_rests_when_nothing_is_watched() -> None:
    wheel, alarm = Wheel(), Alarm(asyncio.get_running_loop())
    wheel.watch(alarm, wheel.now)
    await asyncio.wait_for(alarm.heard.wait(), 10)
    assert wheel._timer is None
    wheel.watch(alarm, wheel.now)
    alarm.heard.clear()
    await asyncio.wait_for(alarm.heard.wait(), 10)
    wheel.close()
