"""How endpoints are chosen: turns, loads, weights, hashes, nearness, slow start."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from mesh.proxy.balance import FIRST_GUESS, Balancer, Tier, observe, tiers_of
from mesh.proxy.headers import Origin
from mesh.proxy.http1 import parse_request
from mesh.proxy.ring import Ring, hash_key
from mesh.table import Table
from tests.proxy_server.wire import Mesh, answering, endpoint

BALANCES = ["round-robin", "least-request", "ewma"]


@dataclass(eq=False)
class Fake:
    id: str = ""
    weight: int = 100
    in_flight: int = 0
    avoid_until: float = 0.0
    joined: float = 0.0
    ewma: float = FIRST_GUESS
    ewma_at: float = field(default=0.0)


def _shares(balance: str, endpoints: list[Fake], picks: int = 3000, now: float = 0.0) -> Counter[str]:
    balancer, tier = Balancer(balance), Tier(endpoints)
    return Counter(picked.id for _ in range(picks) if (picked := balancer.pick([tier], (), now)))


@pytest.mark.parametrize("balance", ["round-robin", "least-request"])
def test_idle_endpoints_take_turns(balance: str) -> None:
    assert _shares(balance, [Fake(name) for name in "abc"], 300) == {"a": 100, "b": 100, "c": 100}


def test_least_request_spares_the_busy() -> None:
    """The two that are compared are never the same one: also of two endpoints the busy one gets nothing."""
    for others in (["a"], ["a", "b"], ["a", "b", "c", "d"]):
        shares = _shares("least-request", [Fake("busy", in_flight=50), *map(Fake, others)])
        assert set(shares) == set(others)


@pytest.mark.parametrize("balance", BALANCES)
def test_weights(balance: str) -> None:
    shares = _shares(balance, [Fake("heavy", weight=300), Fake("light")], 4000)
    assert 2800 < shares["heavy"] < 3300


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8))
def test_turns_follow_weights_over_any_stretch(weights: list[int]) -> None:
    balancer = Balancer("round-robin")
    tier = Tier([Fake(str(number), weight=weight) for number, weight in enumerate(weights)])
    for _ in range(3):
        picked = Counter(each.id for _ in range(1000) if (each := balancer.pick([tier], (), 0)))
        for number, weight in enumerate(weights):
            assert abs(picked[str(number)] - 1000 * weight / sum(weights)) <= 4


@pytest.mark.parametrize("balance", ["least-request", "ewma"])
def test_a_heavy_endpoint_may_have_more_in_flight(balance: str) -> None:
    shares = _shares(balance, [Fake("heavy", weight=300, in_flight=3), Fake("light", in_flight=2)], 1000)
    assert shares["heavy"] > 850


def test_ewma_takes_who_answers_sooner() -> None:
    slow, quick = Fake("slow"), Fake("quick")
    for now in range(1, 20):
        observe(slow, 0.2, now)
        observe(quick, 0.01, now)
    assert quick.ewma < 0.02
    assert slow.ewma == pytest.approx(0.2)
    assert _shares("ewma", [slow, quick], 1000, now=20.0)["quick"] > 700
    observe(quick, 1.0, 20.0)
    assert quick.ewma == 1.0, "a peak counts at once"
    assert _shares("ewma", [slow, quick], 1000, now=20.0)["slow"] > 700
    observe(slow, 0.2, 120.0)
    assert _shares("ewma", [slow, quick], 1000, now=120.0)["quick"] > 700, "what is not used is tried again"


def test_slow_start() -> None:
    old, new = Fake("old", joined=-1000), Fake("new", joined=100)
    balancer, tier = Balancer("round-robin"), Tier([old, new], slow_start=50.0)

    def share(now: float) -> int:
        return Counter(each.id for _ in range(1000) if (each := balancer.pick([tier], (), now)))["new"]

    assert 85 < share(101.0) < 95  # a tenth beside the whole
    assert 320 < share(125.0) < 340  # a half
    assert share(150.0) == share(200.0) == 500


def test_all_new_is_nobody_new() -> None:
    tier = Tier([Fake(name, joined=5) for name in "ab"], slow_start=60.0)
    balancer = Balancer("round-robin")
    assert Counter(each.id for _ in range(10) if (each := balancer.pick([tier], (), 6))) == {"a": 5, "b": 5}


# ── tiers


def _members(tiers: list[Tier[Fake]]) -> list[list[str]]:
    return [[each.id for each in tier.members] for tier in tiers]


def test_tiers() -> None:
    ready, suspect, running = Fake("ready"), Fake("suspect"), Fake("running")
    states = [("running", running), ("suspect", suspect), ("ready", ready), ("ready", Fake("none", weight=0))]
    assert _members(tiers_of(states, 1)) == [["ready"], ["suspect"], ["running"]]
    assert _members(tiers_of(states, 0)) == [["ready"], ["suspect"]]
    balancer, tiers = Balancer("round-robin"), tiers_of(states, 1)
    assert balancer.pick(tiers, (), 0) is ready
    assert balancer.pick(tiers, [ready], 0) is suspect
    assert balancer.pick(tiers, [ready, suspect], 0) is running
    assert balancer.pick(tiers, [ready, suspect, running], 0) is None


def test_what_is_near_comes_first() -> None:
    near, far, unready = Fake("near"), Fake("far"), Fake("unready")
    tiers = tiers_of([("ready", far), ("ready", near), ("running", unready)], 3, near={near, unready})
    assert _members(tiers) == [["near"], ["far"], ["unready"]]
    near.avoid_until = 9.0
    assert Balancer("least-request").pick(tiers, (), 1.0) is far


def test_an_endpoint_that_refused_is_the_last_choice_for_a_while() -> None:
    balancer = Balancer("round-robin")
    refused, running = Fake("refused", avoid_until=5.0), Fake("running")
    tiers = [Tier([refused]), Tier([running])]
    assert balancer.pick(tiers, (), 4.9) is running
    assert balancer.pick(tiers, [running], 4.9) is refused
    assert balancer.pick(tiers, (), 5.0) is refused


@given(
    st.lists(st.tuples(st.sampled_from(["ready", "suspect", "running"]), st.integers(0, 3), st.booleans())),
    st.integers(0, 2),
    st.sampled_from(BALANCES),
    st.sampled_from([None, b"key"]),
)
def test_every_endpoint_of_weight_is_tried_once(
    states: list[tuple[str, int, bool]], desired: int, balance: str, key: bytes | None
) -> None:
    """Those to be avoided come last, the others by their states."""
    endpoints = [(state, Fake(f"{state} {number}", weight=weight, avoid_until=9.0 if avoid else 0.0))
                 for number, (state, weight, avoid) in enumerate(states)]  # fmt: skip
    tiers, tried = tiers_of(endpoints, desired), list[Fake]()
    balancer = Balancer(balance)
    while (picked := balancer.pick(tiers, tried, 1.0, key)) is not None:
        assert picked not in tried
        tried.append(picked)
    order = ["ready", "suspect", "running"]
    assert tried == sorted(tried, key=lambda each: (each.avoid_until > 0, order.index(each.id.split()[0])))
    assert len(tried) == sum(weight > 0 and (state != "running" or desired > 0) for state, weight, _ in states)


# ── hashing

KEYS = [b"key-%d" % number for number in range(2000)]


def _owners(ring: Ring[Fake]) -> dict[bytes, str]:
    return {key: ring.owner(key).id for key in KEYS}


@given(st.integers(2, 20), st.integers(0, 10**6))
@settings(max_examples=20)
def test_few_keys_move_when_an_endpoint_goes_or_comes(count: int, seed: int) -> None:
    members = [Fake(f"web-{number}-{seed}") for number in range(count)]
    before, after = _owners(Ring(members)), _owners(Ring(members[1:]))
    gone = members[0].id
    assert all(after[key] == owner for key, owner in before.items() if owner != gone), "only its own keys move"
    assert sum(owner == gone for owner in before.values()) < 2.2 * len(KEYS) / count
    assert _owners(Ring(members[1:] + members[:1])) == before, "the order does not matter"


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5))
@settings(max_examples=20)
def test_keys_follow_weights(weights: list[int]) -> None:
    members = [Fake(f"web-{number}", weight=weight) for number, weight in enumerate(weights)]
    owned = Counter(_owners(Ring(members)).values())
    for member in members:
        share = len(KEYS) * member.weight / sum(weights)
        assert 0.5 * share < owned[member.id] < 1.6 * share


def test_every_member_takes_over_once() -> None:
    members = [Fake(str(number)) for number in range(9)]
    ring = Ring(members)
    owners = list(ring.owners(b"key"))
    assert owners[0] is ring.owner(b"key")
    assert sorted(each.id for each in owners) == sorted(each.id for each in members)


def _key(hash_of: str, *fields: str, trusted: bool = False) -> bytes | None:
    request = parse_request("\r\n".join(["GET / HTTP/1.1", "Host: web:80", *fields, "", ""]).encode())
    return hash_key(hash_of, request, Origin(b"10.0.0.9", b"http", trusted=trusted))


def test_what_is_hashed() -> None:
    assert _key("client") == b"10.0.0.9"
    assert _key("client", "X-Forwarded-For: 1.1.1.1, 2.2.2.2") == b"10.0.0.9"
    assert _key("client", "X-Forwarded-For: 1.1.1.1, 2.2.2.2", trusted=True) == b"2.2.2.2"
    assert _key("header:X-User", "x-user: me") == b"me"
    assert _key("header:host") == b"web:80"
    assert _key("header:x-user") is None
    assert _key("cookie:id", "Cookie: a=1; id=7; idx=8") == b"7"
    assert _key("cookie:id", "Cookie: a=1", "Cookie: id=x=y") == b"x=y"
    assert _key("cookie:id", "Cookie: ids=1") is None


async def test_requests_alike_go_to_the_same_endpoint(mesh: Mesh) -> None:
    mesh.traffic = {"balance": {"hash": "header:x-user"}}
    for name in (b"web-1", b"web-2", b"web-3"):
        await mesh.add(name.decode(), answering(name))

    async def ask(user: int) -> bytes:
        return (await mesh.ask(b"GET / HTTP/1.1\r\nHost: web\r\nX-User: %d\r\n\r\n" % user))[1]

    first = [await ask(user) for user in range(20)]
    assert len(set(first)) == 3
    assert [await ask(user) for user in range(20)] == first
    left = mesh.upstreams.pop()
    await mesh.update()
    again = [await ask(user) for user in range(20)]
    assert all(new == old for old, new in zip(first, again, strict=True) if old != left.name.encode())
    await left.stop()


async def test_endpoints_on_this_node_come_first(mesh: Mesh) -> None:
    mesh.traffic = {"prefer": "node"}
    mesh.proxy.node = "n1"
    near = await mesh.add("web-1", answering(b"near"))
    far = await mesh.add("web-2", answering(b"far"))

    def table(state: str) -> Table:
        web = mesh.table().services["web"]
        endpoints = [endpoint(near, state), structs.replace(endpoint(far), node="n2")]
        return Table(services={"web": structs.replace(web, endpoints=endpoints)})

    await mesh.update(table("ready"))
    assert {(await mesh.ask())[1] for _ in range(6)} == {b"near"}
    await mesh.update(table("running"))
    assert {(await mesh.ask())[1] for _ in range(6)} == {b"far"}
