"""Silence, knocks and hearsay become a sign; and real sockets that answer, refuse, or stay silent."""

from __future__ import annotations

import asyncio
import random
import socket
import time

import msgspec
import pytest
import uvloop

from mesh.hearing import PACES, Ear, Sign
from mesh.probing import Echo, Ping, Prober
from tests.patience import until

NORMAL = PACES["normal"]


def sign(ear: Ear, now: float) -> Sign | None:
    sight = ear.sight(now, NORMAL)
    return sight.sign if sight else None


def heard(at: float = 100.0) -> Ear:
    ear = Ear()
    ear.sent(1, [], at, NORMAL)
    assert ear.answered(1, at, NORMAL) == []
    return ear


def test_one_that_was_never_heard_is_not_judged() -> None:
    ear = Ear()
    ear.sent(1, [], 0.0, NORMAL)
    assert ear.sight(60.0, NORMAL) is None
    assert not ear.wants_knock(60.0, NORMAL)


def test_an_answer_to_nothing_that_was_asked_is_no_sign_of_life() -> None:
    ear = heard()
    assert ear.answered(2, 150.0, NORMAL) is None
    assert sign(ear, 150.0) is Sign.SILENT


def test_silence_is_suspected_and_measured_from_the_last_answer() -> None:
    ear = heard()
    assert sign(ear, 100.7) is Sign.ANSWERS
    sight = ear.sight(101.1, NORMAL)
    assert sight
    assert (sight.sign, sight.since) == (Sign.SILENT, 100.0)


def test_others_who_hear_it_vouch_for_it() -> None:
    ear = heard()
    ear.vouch(103.0)
    ear.vouch(102.0)
    assert sign(ear, 103.5) is Sign.ANSWERS
    sight = ear.sight(110.0, NORMAL)
    assert sight
    assert sight.since == 103.0


def test_signs_that_are_told_apart() -> None:
    refusing, accepting, deaf = heard(), heard(), heard()
    refusing.refused = 101.0
    accepting.accepted = 101.0
    deaf.incoming = 101.4
    assert [sign(one, 101.5) for one in (refusing, accepting, deaf)] == [Sign.REFUSES, Sign.ACCEPTS, Sign.DEAF]
    assert not Sign.REFUSES.doubtful


def test_probes_hurry_while_there_is_doubt_and_knocks_become_rare() -> None:
    ear = heard()
    assert ear.probe_at == 100.0 + NORMAL.interval
    ear.sent(2, [], 100.25, NORMAL)
    assert ear.probe_at == 100.25 + NORMAL.hurry
    knocks = [now / 10 for now in range(1000, 1600) if ear.wants_knock(now / 10, NORMAL)]
    assert len(knocks) < 12


@pytest.mark.parametrize("seed", range(20))
def test_a_fifth_of_all_packets_lost_is_no_silence_but_is_noticed(seed: int) -> None:
    chance = random.Random(seed)
    ear, now, silent, lossy = heard(0.0), 0.0, 0, False
    for number in range(2, 4000):
        now = ear.probe_at
        ear.sent(number, [], now, NORMAL)
        if chance.random() < 0.8 and chance.random() < 0.8:
            ear.answered(number, now + 0.001, NORMAL)
        sight = ear.sight(ear.probe_at, NORMAL)
        assert sight
        silent += sight.sign is not Sign.ANSWERS
        lossy = lossy or sight.lossy
    assert silent < 40  # of 4000: an endpoint that is doubted for a tenth of a second loses nothing
    assert lossy


def test_silence_is_no_loss() -> None:
    ear, now = heard(0.0), 0.0
    for number in range(2, 400):
        now = ear.probe_at
        ear.sent(number, [], now, NORMAL)
    assert ear.answered(399, now, NORMAL) is not None
    for number in range(400, 420):
        ear.sent(number, [], ear.probe_at, NORMAL)
        ear.answered(number, ear.probe_at, NORMAL)
    assert not ear.lossy


def test_a_blip_of_three_seconds_ends_before_anything_is_given_up() -> None:
    assert 3.0 + NORMAL.interval + NORMAL.hurry < NORMAL.give_up


# ── on sockets ───────────────────────────────────────────────────────────────────────────────


def _listens(port: int) -> bool:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


async def test_an_agent_that_answers_then_ends_is_told_from_one_that_hangs() -> None:
    echo, hangs = Echo(), Echo()
    await echo.start("127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", 0)) as accepts, socket.socket(type=socket.SOCK_DGRAM) as mute:
        port = accepts.getsockname()[1]
        await hangs.start("127.0.0.1", port)
        prober = Prober("@s:1")
        prober.follow({"n1": echo.address, "n2": hangs.address})
        running = asyncio.create_task(prober.run())
        try:
            await until(lambda: len(prober.sights) == 2, "both answer")
            assert echo.called("@s:1") is not None
            echo.close()
            hangs.close()
            await until(lambda: not _listens(port), "its socket is free")
            mute.bind(("127.0.0.1", port))
            await until(lambda: prober.sights["n1"].sign is Sign.REFUSES, "the kernel says that nobody listens")
            await until(lambda: prober.sights["n2"].sign is Sign.ACCEPTS, "connections are taken, nothing is said")
        finally:
            running.cancel()
            await prober.close()


def test_one_that_comes_back_at_its_old_address_is_heard_again() -> None:
    """On uvloop, which stops hearing a socket that had an error."""

    async def scene() -> None:
        prober = Prober("@s:1")
        running = asyncio.create_task(prober.run())
        first, second = Echo(), Echo()
        try:
            await first.start("127.0.0.1", 0)
            prober.follow({"n1": first.address})
            await until(lambda: "n1" in prober.sights, "it answers")
            first.close()
            await until(lambda: prober.sights["n1"].sign is Sign.REFUSES, "it refuses")
            await second.start("127.0.0.1", int(first.address.rpartition(":")[2]))
            await until(lambda: prober.sights["n1"].sign is Sign.ANSWERS, "it answers again")
        finally:
            running.cancel()
            await prober.close()
            second.close()

    uvloop.run(scene())


async def test_a_broken_link_is_no_death_where_a_peer_hears_the_node() -> None:
    echoes = {name: Echo() for name in ("n1", "n2")}
    for echo in echoes.values():
        await echo.start("127.0.0.1", 0)
    peer = Prober("n1", echoes["n1"])
    peer.follow({name: echo.address for name, echo in echoes.items()})
    scheduler = Prober("@s:1")
    scheduler.follow({name: echo.address for name, echo in echoes.items()})
    tasks = [asyncio.create_task(one.run()) for one in (peer, scheduler)]
    try:
        await until(lambda: len(scheduler.sights) == 2 and "n2" in peer.sights, "all hear each other")
        with socket.socket(type=socket.SOCK_DGRAM) as nobody:
            nobody.bind(("127.0.0.1", 0))
            broken = f"127.0.0.1:{nobody.getsockname()[1]}"
            scheduler.follow({"n1": echoes["n1"].address, "n2": broken})
            last = scheduler._ears["n2"].heard
            await until(lambda: scheduler._ears["n2"].vouched is not None, "the peer vouches")
            deadline = time.monotonic() + 1.5
            while time.monotonic() < deadline:
                assert scheduler.sights["n2"].sign is Sign.ANSWERS
                await asyncio.sleep(0.02)
            assert scheduler._ears["n2"].heard == last
    finally:
        for task in tasks:
            task.cancel()
        for prober in (peer, scheduler):
            await prober.close()
        for echo in echoes.values():
            echo.close()


async def test_a_peer_tells_of_a_node_that_sends_and_does_not_answer() -> None:
    peer, deaf = Echo(), Echo()
    await peer.start("127.0.0.1", 0)
    await deaf.start("127.0.0.1", 0)
    sender, scheduler = Prober("n2"), Prober("@s:1")
    sender.follow({"n1": peer.address})
    scheduler.follow({"n1": peer.address, "n2": deaf.address})
    tasks = [asyncio.create_task(one.run()) for one in (sender, scheduler)]
    try:
        await until(lambda: len(scheduler.sights) == 2, "both answer")
        with socket.socket(type=socket.SOCK_DGRAM) as mute:
            mute.bind(("127.0.0.1", 0))
            scheduler.follow({"n1": peer.address, "n2": f"127.0.0.1:{mute.getsockname()[1]}"})
            scheduler._ears["n2"].knock_at = float("inf")  # this machine's kernel would refuse
            await until(lambda: scheduler.sights["n2"].sign is Sign.DEAF, "it is told to be deaf")
    finally:
        for task in tasks:
            task.cancel()
        await sender.close()
        await scheduler.close()
        peer.close()
        deaf.close()


async def test_a_leader_that_no_node_hears_is_missed() -> None:
    echo = Echo()
    await echo.start("127.0.0.1", 0)
    leader, standby = Prober("@a:1"), Prober("@b:1")
    leader.follow({"n1": echo.address})
    standby.follow({"n1": echo.address}, leader="@a:1")
    tasks = [asyncio.create_task(one.run()) for one in (leader, standby)]
    try:
        await until(lambda: standby.leader_silence is not None, "the standby hears of the leader")
        tasks[0].cancel()
        await until(lambda: (standby.leader_silence or 0) > 1.0, "the leader falls silent")
    finally:
        for task in tasks:
            task.cancel()
        await leader.close()
        await standby.close()
        echo.close()


async def test_an_answer_is_shorter_than_its_question_and_nonsense_gets_none() -> None:
    echo = Echo()
    await echo.start("127.0.0.1", 0)
    with socket.socket(type=socket.SOCK_DGRAM) as caller:
        caller.setblocking(False)
        host, port = echo.address.split(":")
        caller.connect((host, int(port)))
        loop = asyncio.get_running_loop()
        for nonsense in (b"", b"{", b"[1]", b"\xff" * 1000, b'{"ping":"x","from":1}', b"x" * 9000):
            caller.send(nonsense)
        question = msgspec.json.encode(Ping(7, "@s:1", ["a"] * 8))
        caller.send(question)
        answer = await asyncio.wait_for(loop.sock_recv(caller, 2000), 5)
        assert b'"pong":7' in answer
        assert len(answer) <= len(question)
    echo.close()
