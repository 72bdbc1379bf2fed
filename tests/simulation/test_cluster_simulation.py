"""The simulation finds nothing, replays exactly, and would find what is planted: the prover is proven too."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.agent import needs
from mesh.agent.events import Action, Moment, Signal
from mesh.agent.replica import Replica
from mesh.agent.state import AgentState
from mesh.scheduler.classify import Seat
from mesh.scheduler.service import decide as service
from mesh.scheduler.service import rollout, slots
from mesh.scheduler.service.slots import Moves, Rules
from mesh.spec.service import Update
from mesh.store import Op, lease
from tests.simulation.clock import Process, Stuck, VirtualLoop, virtual_time
from tests.simulation.run import Run, Schedule

ROOT = Path(__file__).parents[2]
SEEDS = 200

REGRESSIONS = {
    402: "an engine that hung carries out a start that was asked for twice: the second comes after the stop",
    453: "an agent is killed while its engine starts a replica that its next life is to drop",
    547: "a scale-down takes away the only slot in which a failed rollback is tried",
    637: "a container vanishes while its stop is waited for",
}
"""Seeds that once showed something that nobody had thought of, run plain as they were then, and what."""

REMEMBERED = (738, 1105, 1713, 1979, 2072, 2291, 2600, 2617)
"""More of them."""

REGRESSIONS_WITH_EXTRAS = {
    410: "a node returns with the report of before its power cut: its dead replica is kept instead of the living one",
    953: "a session is ended early, and its node cannot take its key again: its singleton runs on beside another",
    1114: "an agent that slept tells what it saw before it slept: its dead replica is kept instead of the living one",
    3524: "an agent that starts anew and reaches no store answers probes: what died with its host is still offered",
}
"""The same, with everything that a cluster may have."""


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.timeout(400)
def test_200_seeds_violate_nothing() -> None:
    done = simulate("--seeds", f"1..{SEEDS}")
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5000:]


def test_what_was_found_once_is_mended() -> None:
    for extras, seeds in (["--plain"], (*REGRESSIONS, *REMEMBERED)), ([], REGRESSIONS_WITH_EXTRAS):
        done = simulate(*extras, "--seeds", ",".join(map(str, seeds)))
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5000:]


def test_a_seed_replays_exactly_also_in_another_process_and_with_its_story() -> None:
    first, second = (simulate("--seed", "7", "--story").stdout for _ in range(2))
    assert first == second
    assert "▼" in first
    verdicts = {simulate("--seed", "7").stdout.splitlines()[-1], first.splitlines()[-1]}
    assert len(verdicts) == 1


def test_many_nodes() -> None:
    assert not Run(3, nodes=20)().violations


# ── planted mistakes ─────────────────────────────────────────────────────────────────────────


def found_within(seeds: int, extra: str = "", likely: int = 1) -> list[str]:
    """The rules that the first violation in so many seeds breaks: in plain runs, or in those that have this extra.

    `likely`: the seed that found it last, tried first.
    """
    for seed in (likely, *range(1, seeds + 1)):
        if extra and extra not in Schedule.of(seed).extras:
            continue
        if found := Run(seed, plain=not extra)().violations:
            return sorted({violation.rule for violation in found})
    return []


@pytest.mark.timeout(400)
def test_a_skipped_fence_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease.Lock, "fence", lambda lock: Op("set", "mesh/unfenced", b"x"))
    assert "e" in found_within(SEEDS, likely=96)


def test_stopping_before_starting_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    allowance = rollout.allowance

    def hasty(update: Update, desired: int, *, stop_first: bool) -> rollout.Allowance:
        return allowance(update, desired, stop_first=True)

    monkeypatch.setattr(rollout, "allowance", hasty)
    assert "f" in found_within(SEEDS)


def test_a_signal_before_the_withdrawal_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    retire = needs._retire

    def hasty(replica: Replica, now: Moment) -> Action | None:
        action = retire(replica, now)
        return Signal(replica.id, "SIGTERM", 2.0) if action is not None else None

    monkeypatch.setattr(needs, "_retire", hasty)
    assert "d" in found_within(SEEDS)


def test_a_forgotten_slot_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = slots.settle

    def forgetful(seats: list[Seat], rules: Rules) -> Moves:
        moves = settle(seats, rules)
        if any(seat.slot == 2 and not seat.live for seat in seats):
            moves.fill.pop(2, None)
        return moves

    monkeypatch.setattr(service, "settle", forgetful)
    assert "a" in found_within(SEEDS)


@pytest.mark.timeout(400)
def test_a_singleton_that_goes_on_where_it_is_cut_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AgentState, "_end_singletons", lambda state: None)
    assert "k" in found_within(SEEDS, "singletons", likely=50)


# ── the loop ─────────────────────────────────────────────────────────────────────────────────


def run(work: Callable[[VirtualLoop], Any], seed: int = 1) -> Any:
    with virtual_time(seed) as loop:
        return loop.run_until_complete(work(loop))


def test_time_jumps_to_the_next_timer() -> None:
    async def sleep(loop: VirtualLoop) -> float:
        before = loop.time()
        await asyncio.sleep(100_000)
        return loop.time() - before

    assert run(sleep) == 100_000


def test_the_order_of_what_is_ready_together_is_the_seeds() -> None:
    async def order(loop: VirtualLoop) -> list[int]:
        seen: list[int] = []

        async def step(number: int) -> None:
            await asyncio.sleep(1)
            seen.append(number)

        await asyncio.gather(*(step(number) for number in random.Random(1).sample(range(8), 8)))
        return seen

    assert run(order, 1) == run(order, 1)
    assert len({tuple(run(order, seed)) for seed in range(5)}) > 1


def test_who_is_paused_does_nothing_and_then_catches_up() -> None:
    async def pause(loop: VirtualLoop) -> list[float]:
        process = Process("p")
        ticks: list[float] = []

        async def tick() -> None:
            for _ in range(3):
                await asyncio.sleep(1)
                ticks.append(loop.time())

        begun = loop.time()
        task = loop.spawn(process, tick(), "tick")
        await asyncio.sleep(1.5)
        process.paused = True
        await asyncio.sleep(10)
        loop.resume(process)
        await task
        return [at - begun for at in ticks]

    assert run(pause) == [1.0, 11.5, 12.5]


def test_who_is_killed_tidies_nothing_up() -> None:
    async def kill(loop: VirtualLoop) -> list[str]:
        process = Process("p")
        said: list[str] = []

        async def work() -> None:
            try:
                await asyncio.sleep(1)
                await asyncio.sleep(1)
            finally:
                said.append("tidied up")

        loop.spawn(process, work(), "work")
        process.ambush = (2, lambda: setattr(process, "dead", True))
        await asyncio.sleep(5)
        before = list(said)
        await loop.bury()
        return before

    assert run(kill) == []


def test_who_is_spared_is_not_killed_even_where_it_was_about_to_be() -> None:
    async def spare(loop: VirtualLoop) -> bool:
        process = Process("p")

        async def work() -> None:
            process.ambush = None  # its last step

        process.ambush = (1, lambda: setattr(process, "dead", True))
        loop.spawn(process, work(), "work")
        await asyncio.sleep(5)
        return process.dead

    assert not run(spare)


def test_a_loop_with_nothing_to_wait_for_says_so() -> None:
    async def hang(loop: VirtualLoop) -> None:
        await loop.create_future()

    with pytest.raises(Stuck):
        run(hang)
