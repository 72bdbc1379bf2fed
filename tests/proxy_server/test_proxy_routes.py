"""Which rule a request meets, which of its targets gets it, and what rules make of requests."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.proxy.http1 import Request, parse_request
from mesh.proxy.route import Meeting, Router, Split, compared_host, compared_path
from mesh.proxy.server import ProxyServer
from mesh.table import Endpoint, RateLimit, Redirect, Rewrite, Rule, Table, TablePort, TableRoute, TableService, Target
from tests.parts.ports import free_port
from tests.proxy_server.wire import GET, OK, Head, Mesh, Peer, Upstream, answering


@dataclass(eq=False)
class Member:
    """A target with a weight."""

    name: str
    weight: int = 1
    present: bool = True


def to(service: str) -> list[Target]:
    return [Target(service=service)]


def rule(service: str, host: str = "", path: str = "/", methods: str = "", **headers: str) -> Rule:
    return Rule(host=host, path=path, methods=methods.split(), headers=headers, to=to(service))


def router(*rules: Rule) -> Router[Member]:
    return Router(Meeting("r", each, [Member(target.service) for target in each.to]) for each in rules)


def asked(host: str, target: str = "/", *fields: str, method: str = "GET") -> Request:
    return parse_request("\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode())


def service(rules: Router[Member], request: Request) -> str | None:
    path = compared_path(request.target)
    assert path is not None
    meeting = rules.find(compared_host(request.host), path, request)
    return meeting.rule.to[0].service if meeting else None


# ── the order of rules

RULES = [
    rule("fallback"),
    rule("wild", "*.example.com"),
    rule("wild-api", "*.example.com", "/api"),
    rule("deep", "*.b.example.com"),
    rule("shop", "shop.example.com"),
    rule("api", "shop.example.com", "/api"),
    rule("api-2", "shop.example.com", "/api/v2/"),
    rule("beta", "shop.example.com", "/api", **{"X-Beta": "1"}),
    rule("beta-de", "shop.example.com", "/api", **{"X-Beta": "1", "Accept-Language": "de"}),
    rule("write", "shop.example.com", "/api", "POST PUT"),
    rule("case", "CASE.example.com"),
    rule("only", "only.example.com", "/only"),
    rule("odd", "odd.example.com", "//od%64/caf%c3%a9/"),
    rule("socket", "case.example.com", Upgrade="websocket"),
    rule("secure", "case.example.com", **{"X-Forwarded-Proto": "https"}),
    rule("traced", "case.example.com", **{"X-Request-Id": "7"}),
]

ASKED = [
    ("shop.example.com", "/", [], "shop"),
    ("SHOP.example.com:8080", "/apis", [], "shop"),
    ("shop.example.com.", "/", [], "shop"),
    ("shop.example.com", "/api", [], "api"),
    ("shop.example.com", "/api/", [], "api"),
    ("shop.example.com", "/api?x=/api/v2", [], "api"),
    ("shop.example.com", "/api/v2", [], "api-2"),
    ("shop.example.com", "/api/v2/x", [], "api-2"),
    ("shop.example.com", "/api/v22", [], "api"),
    ("shop.example.com", "/API/v2", [], "shop"),
    ("shop.example.com", "/api/x", ["x-beta: 1"], "beta"),
    ("shop.example.com", "/api/x", ["x-beta: 2"], "api"),
    ("shop.example.com", "/api/x", ["x-beta: 0", "X-BETA: 1"], "beta"),
    ("shop.example.com", "/api/x", ["accept-language: de", "x-beta: 1"], "beta-de"),
    ("shop.example.com", "/%61pi/x", [], "api"),
    ("shop.example.com", "//api//v2", [], "api-2"),
    ("shop.example.com", "/api%2Fv2", [], "shop"),
    ("shop.example.com", "/.well-known/x", [], "shop"),
    ("case.example.com", "/", [], "case"),
    ("case.example.com", "/", ["Connection: Upgrade", "Upgrade: websocket"], "socket"),
    ("case.example.com", "/", ["x-forwarded-proto: https"], "secure"),
    ("case.example.com", "/", ["x-request-id: 7"], "traced"),
    ("a.example.com", "/", [], "wild"),
    ("a.example.com", "/api/v2/x", [], "wild-api"),
    ("a.b.example.com", "/", [], "deep"),
    ("a.b.example.com", "/api", [], "deep"),
    ("only.example.com", "/only/x", [], "only"),
    ("odd.example.com", "/odd/caf%C3%A9/x", [], "odd"),
    ("odd.example.com", "/odd/caf%c3%a9", [], "odd"),
    ("odd.example.com", "/odd/caf%2F", [], "wild"),
    ("only.example.com", "/api", [], "wild-api"),
    ("example.com", "/", [], "fallback"),
    (".example.com", "/", [], "fallback"),
    ("xexample.com", "/", [], "fallback"),
    ("[::1]:80", "/", [], "fallback"),
    ("a." * 5000 + "example.com", "/" * 20_000, [], "fallback"),
]


@pytest.mark.parametrize(("host", "target", "fields", "expected"), ASKED, ids=[each[3] for each in ASKED])
def test_the_most_specific_rule_wins(host: str, target: str, fields: list[str], expected: str) -> None:
    request = asked(host, target, *fields)
    assert service(router(*RULES), request) == expected
    assert service(router(*RULES[::-1]), request) == expected


@pytest.mark.parametrize("path", ["/caf%C3%A9", "/café"])
@pytest.mark.parametrize("target", ["/caf%c3%a9/x", "/café"])
def test_a_path_beyond_ascii_is_one_however_it_is_written(path: str, target: str) -> None:
    request = parse_request(f"GET {target} HTTP/1.1\r\nHost: shop\r\n\r\n".encode())
    assert service(router(rule("cafe", path=path)), request) == "cafe"


def test_methods() -> None:
    rules = router(*RULES)
    assert service(rules, asked("shop.example.com", "/api", method="POST")) == "write"
    assert service(rules, asked("shop.example.com", "/api", "X-Beta: 1", method="PUT")) == "write"
    assert service(rules, asked("shop.example.com", "/api", method="PATCH")) == "api"
    assert service(router(rule("read", methods="GET")), asked("a", method="HEAD")) is None


def test_without_a_rule_for_all_some_requests_match_none() -> None:
    rules = router(*RULES[1:])
    assert service(rules, asked("other.org")) is None
    assert service(rules, asked("example.com")) is None
    assert service(router(rule("a", path="/a")), asked("x", "/")) is None
    assert service(router(rule("a", host="*")), parse_request(b"GET / HTTP/1.0\r\n\r\n")) == "a"


@given(st.randoms(use_true_random=False), st.sampled_from(ASKED))
def test_the_order_is_total(shuffle: random.Random, asking: tuple[str, str, list[str], str]) -> None:
    host, target, fields, expected = asking
    rules = RULES.copy()
    shuffle.shuffle(rules)
    assert service(router(*rules), asked(host, target, *fields)) == expected


@pytest.mark.parametrize("target", ["/a/../b", "/a/./b", "/..", "/.", "/a/%2e%2e/b", "/%2E", "/a/.%2e/b", "/.//x"])
def test_dot_segments_are_no_path(target: str) -> None:
    assert compared_path(target.encode()) is None


@pytest.mark.parametrize("target", ["/a..b", "/.a", "/a.", "/a/..b", "/...", "/?a=/../b"])
def test_dots_in_names_are_fine(target: str) -> None:
    assert compared_path(target.encode()) == target.partition("?")[0].encode()


# ── the split


def test_weights_are_exact() -> None:
    split = Split([Member("old", 90), Member("new", 10), Member("off", 0)])
    for _ in range(3):
        assert Counter(split.next().name for _ in range(1000)) == {"old": 900, "new": 100}


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(0, 200))
def test_any_run_of_a_thousand_is_exact(weights: list[int], skipped: int) -> None:
    """Wherever it begins: the weights are made to sum to 1,000."""
    weights[0] += 1000 - sum(weights)
    split = Split([Member(str(index), weight) for index, weight in enumerate(weights)])
    for _ in range(skipped):
        split.next()
    assert Counter(split.next().name for _ in range(1000)) == {str(i): weight for i, weight in enumerate(weights)}


def test_one_in_a_thousand() -> None:
    split = Split([Member("new", 1), Member("old", 999)])
    for _ in range(5):
        assert Counter(split.next().name for _ in range(1000)) == {"old": 999, "new": 1}


def test_what_is_absent_hands_its_share_to_the_others() -> None:
    a, b, c = Member("a", 20), Member("b", 30), Member("c", 50)
    split = Split([a, b, c])
    c.present = False
    split.follow()
    assert Counter(split.next().name for _ in range(1000)) == {"a": 400, "b": 600}
    c.present = True
    split.follow()
    for _ in range(100):
        split.next()
    assert Counter(split.next().name for _ in range(1000)) == {"a": 200, "b": 300, "c": 500}
    a.present = b.present = c.present = False
    split.follow()
    assert Counter(split.next().name for _ in range(1000)) == {"a": 200, "b": 300, "c": 500}


# ── redirects and rewrites


def moved(path: str, change: Rewrite, target: str) -> str:
    meeting = Meeting("r", Rule(path=path, to=to("web"), rewrite=change), [Member("web")])
    seen = compared_path(target.encode())
    assert seen is not None
    return meeting.moved(change, seen, target.encode()).decode()


@pytest.mark.parametrize(
    ("path", "prefix", "target", "expected"),
    [
        ("/api", "/", "/api", "/"),
        ("/api", "/", "/api/", "/"),
        ("/api", "/", "/api/x/y?q=/api", "/x/y?q=/api"),
        ("/api/", "/v2/", "/api/x", "/v2/x"),
        ("/api", "/v2", "/api", "/v2"),
        ("/api", "/v2", "/api/", "/v2/"),
        ("/api", "/v2", "/api?", "/v2?"),
        ("/", "/app", "/x", "/app/x"),
        ("/", "/app", "/", "/app/"),
        ("/api", "/v2", "/%61pi/b%2Fc", "/v2/b%2Fc"),
        ("/api", "/", "/api//evil.example", "/evil.example"),
        ("/", "/app", "*", "*"),
    ],
)
def test_a_prefix_is_rewritten_on_its_border(path: str, prefix: str, target: str, expected: str) -> None:
    assert moved(path, Rewrite(prefix=prefix), target) == expected


def test_a_whole_path_is_rewritten() -> None:
    assert moved("/api", Rewrite(path="/other"), "/api/x?q=1") == "/other?q=1"
    assert moved("/api", Rewrite(host="elsewhere"), "/api/x?q=1") == "/api/x?q=1"


def location(redirect: Redirect, host: str, target: str, *, path: str = "/", scheme: bytes = b"http") -> str:
    meeting = Meeting("r", Rule(path=path, redirect=redirect), list[Member]())
    request = asked(host, target)
    seen = compared_path(request.target)
    assert seen is not None
    return meeting.location(redirect, seen, request, scheme).decode()


@pytest.mark.parametrize(
    ("redirect", "expected"),
    [
        (Redirect(scheme="https"), "https://shop.example/old/x?q=1"),
        (Redirect(scheme="http"), "http://shop.example:8080/old/x?q=1"),
        (Redirect(host="new.example"), "http://new.example/old/x?q=1"),
        (Redirect(scheme="https", host="new.example:8443"), "https://new.example:8443/old/x?q=1"),
        (Redirect(prefix="/new"), "/new/x?q=1"),
        (Redirect(prefix="/"), "/x?q=1"),
        (Redirect(path="/"), "/?q=1"),
        (Redirect(scheme="https", host="a.example", path="/b"), "https://a.example/b?q=1"),
    ],
)
def test_what_a_redirect_does_not_name_stays(redirect: Redirect, expected: str) -> None:
    assert location(redirect, "shop.example:8080", "/old/x?q=1", path="/old") == expected


def test_the_server_as_a_whole_is_redirected_as_its_root() -> None:
    request = asked("shop.example", "*", method="OPTIONS")
    meeting = Meeting("r", Rule(redirect=Redirect()), list[Member]())
    assert meeting.location(Redirect(scheme="https"), b"*", request, b"http") == b"https://shop.example/"
    assert meeting.location(Redirect(prefix="/app"), b"*", request, b"http") == b"/app/"


@pytest.mark.parametrize(
    "target", ["/old//evil.example", "/old/%2F/evil", "/old/\\evil.example", "/old/\\/evil.example"]
)
@pytest.mark.parametrize("redirect", [Redirect(prefix="/"), Redirect(scheme="https", prefix="/")])
def test_no_redirect_leads_to_a_host_that_the_client_chose(redirect: Redirect, target: str) -> None:
    """As browsers read it: a backslash is a slash."""
    got = location(redirect, "shop.example", target, path="/old").replace("\\", "/")
    assert not got.startswith("//")
    assert got.startswith("https://shop.example/" if redirect.scheme else "/")


# ── through a listener


class Routed:
    """A proxy with a route; `ask` gives the status and the head and body of the answer."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.port = free_port()

    async def serve(self, *rules: Rule, **services: TableService) -> None:
        table = self.mesh.table()
        route = TableRoute(listen=f"127.0.0.1:{self.port}", rules=list(rules))
        await self.mesh.update(Table(services={**table.services, **services}, routes={"shop": route}))

    async def dial(self) -> Peer:
        return await self.mesh.dial(self.port)

    async def ask(
        self, target: str = "/", host: str = "shop", method: str = "GET", *fields: str
    ) -> tuple[str, Head, str]:
        client = await self.dial()
        await client.send("\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode())
        head = await client.head()
        body = b"" if method == "HEAD" else await client.body(head)
        client.close()
        return head.start.split()[1], head, body.decode()


@pytest.fixture
def routed(mesh: Mesh) -> Routed:
    return Routed(mesh)


def tagged(*upstreams: tuple[Upstream, str], desired: int = 2, **more: Any) -> TableService:
    endpoints = [
        Endpoint(id=each.name, slot=1, node="n1", address="127.0.0.1", ports={"http": each.port}, tags=tags.split())
        for each, tags in upstreams
    ]
    return TableService(
        desired=desired, ports={"http": TablePort(port=80, protocol="http")}, endpoints=endpoints, **more
    )


async def test_where_no_rule_matches(routed: Routed) -> None:
    upstream = await routed.mesh.add("web-1", answering(b"1"))
    await routed.serve(rule("web", "shop"), rule("none", "shop", "/gone"))
    assert (await routed.ask())[::2] == ("200", "1")
    assert (await routed.ask(host="other"))[::2] == ("404", "no route for this host and path\n")
    assert (await routed.ask("/gone/x"))[::2] == ("503", "none.http: no such service and port\n")
    assert (await routed.ask("/a/../b"))[::2] == ("400", "a path with . or .. segments\n")
    assert upstream.accepted == 1
    assert routed.mesh.proxy.problems() == ["route shop: there is no port none.http"]
    assert routed.mesh.count("route_requests", route="shop", code="2xx") == 1
    assert routed.mesh.count("route_refused", code="4xx") == 2


async def test_an_answer_of_our_own_leaves_the_connection_open(routed: Routed) -> None:
    await routed.mesh.add("web-1", answering(b"1"))
    await routed.serve(rule("web", "shop"))
    client = await routed.dial()
    await client.send(b"GET / HTTP/1.1\r\nHost: other\r\n\r\nHEAD / HTTP/1.1\r\nHost: other\r\n\r\n" * 2)
    for _ in range(2):
        assert (await client.answer())[0].start == "HTTP/1.1 404 Not Found"
        assert (await client.head()).start == "HTTP/1.1 404 Not Found"
    await client.send(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
    assert (await client.answer())[1] == b"1"
    await client.send(b"POST / HTTP/1.1\r\nHost: other\r\nContent-Length: 3\r\n\r\nGET")
    answer, _ = await client.answer()
    assert (answer.start, answer["Connection"]) == ("HTTP/1.1 404 Not Found", "close")
    await client.closed()


async def test_routes_share_a_listener_in_one_order(mesh: Mesh) -> None:
    await mesh.add("web-1", answering(b"web"))
    other = await Upstream("api-1").start(answering(b"api"))
    port = free_port()
    listen = f"127.0.0.1:{port}"
    routes = {
        "b": TableRoute(listen=listen, rules=[rule("web")]),
        "a": TableRoute(listen=listen, rules=[rule("api", path="/api"), rule("api", "same")]),
        "c": TableRoute(listen=listen, rules=[rule("web", "same")]),
    }
    services = {**mesh.table().services, "api": tagged((other, ""))}
    await mesh.update(Table(services=services, routes=routes))
    routed = Routed(mesh)
    routed.port = port
    assert [(await routed.ask(path, host))[2] for path, host in [("/", "x"), ("/api", "x"), ("/", "same")]] == [
        "web", "api", "api",
    ]  # fmt: skip
    del routes["a"]
    await mesh.update(Table(services=services, routes=routes))
    assert (await routed.ask("/api", "same"))[2] == "web"
    await other.stop()


async def test_a_route_that_left_serves_its_open_connections_no_more(routed: Routed) -> None:
    upstream = await routed.mesh.add("web-1")
    await routed.serve(rule("web"))
    idle, busy = await routed.dial(), await routed.dial()
    await busy.send(GET)
    server = await upstream.accept()
    await server.head()
    await routed.mesh.update(routed.mesh.table())
    await server.send(OK)
    assert (await busy.answer())[1] == b"ok"
    for client in (idle, busy):
        await client.send(GET)
        answer, body = await client.answer()
        assert (answer.start, answer["Connection"], body) == ("HTTP/1.1 404 Not Found", "close", b"the route is gone\n")


async def test_a_canary_gets_its_share_and_the_rest_none_of_its_endpoints(routed: Routed) -> None:
    old, new = Upstream("web-1"), Upstream("web-2")
    await old.start(answering(b"old"))
    await new.start(answering(b"new"))
    split = Rule(to=[Target(service="web", tag="v2", weight=10), Target(service="web", weight=90)])
    both = tagged((old, "v1"), (new, "v2"))
    await routed.serve(split, web=both)
    client = await routed.dial()

    async def answers(count: int) -> Counter[bytes]:
        got: Counter[bytes] = Counter()
        for _ in range(count):
            await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            got[(await client.answer())[1]] += 1
        return got

    assert await answers(100) == {b"old": 90, b"new": 10}
    assert await answers(15) == {b"old": 13, b"new": 2}
    await routed.serve(split, web=tagged((old, "v1"), (new, "v2"), desired=3))  # keeps its place in the split
    assert await answers(85) == {b"old": 77, b"new": 8}
    await routed.serve(split, web=tagged((old, "v1")))
    assert await answers(20) == {b"old": 20}
    await routed.serve(split, web=tagged((new, "v2")))
    assert await answers(20) == {b"new": 20}
    only = Rule(to=[Target(service="web", tag="v2")])
    await routed.serve(only, web=tagged((old, "v1"), desired=1))
    assert (await routed.ask())[::2] == ("503", "web.http: no endpoint with tag v2 is up, 1 wanted\n")
    await old.stop()
    await new.stop()


async def test_redirects(routed: Routed) -> None:
    upstream = await routed.mesh.add("web-1")
    await routed.serve(
        Rule(host="shop", redirect=Redirect(code=301, scheme="https")),
        Rule(host="shop", path="/old", redirect=Redirect(code=308, prefix="/new")),
    )
    status, head, _ = await routed.ask("/a?b=c", "shop:8080")
    assert (status, head["Location"]) == ("301", "https://shop/a?b=c")
    status, head, body = await routed.ask("/old/x?y", method="HEAD")
    assert (status, head["Location"], body) == ("308", "/new/x?y", "")
    assert upstream.accepted == 0
    assert routed.mesh.count("route_requests", route="shop", code="3xx") == 2


async def test_a_rewrite_reaches_the_service(routed: Routed) -> None:
    await routed.mesh.add("web-1")
    await routed.serve(Rule(host="shop", path="/api", to=to("web"), rewrite=Rewrite(prefix="/", host="inner.example")))
    client = await routed.dial()
    await client.send(b"GET /api/x?q=1 HTTP/1.1\r\nHost: shop\r\n\r\n")
    request = await (await routed.mesh.upstream.accept()).head()
    assert request.start == "GET /x?q=1 HTTP/1.1"
    assert (request["Host"], request["X-Forwarded-Host"]) == ("inner.example", "shop")


async def test_a_rule_s_own_time_out_and_retries(routed: Routed) -> None:
    await routed.mesh.add("web-1")
    await routed.serve(
        Rule(path="/slow", to=to("web"), timeout="200ms", retries={"attempts": 0}),
        Rule(path="/odd", to=to("web"), timeout="soon", retries={"on": 5}),
    )
    assert (await routed.ask("/slow"))[0] == "504"
    assert routed.mesh.upstream.accepted == 1
    first, second = routed.mesh.proxy.problems()
    assert first.startswith("route shop: timeout: ")
    assert second.startswith("route shop: retries.on: ")


async def test_a_rule_s_rate_is_limited_for_each_client(routed: Routed) -> None:
    await routed.mesh.add("web-1", answering(b"1"))
    await routed.serve(
        Rule(path="/a", to=to("web"), limits=RateLimit(rate=0.01, burst=2)),
        Rule(path="/b", to=to("web"), limits=RateLimit(rate=0.01, burst=1, per="header:X-Key")),
        Rule(path="/c", to=to("web"), limits=RateLimit(rate=0.01, burst=1, per="rule")),
    )
    assert [(await routed.ask("/a"))[0] for _ in range(3)] == ["200", "200", "429"]
    status, head, body = await routed.ask("/a")
    assert (status, body) == ("429", "too many requests\n")
    assert 0 < int(head["Retry-After"]) <= 100
    assert [(await routed.ask("/b", "x", "GET", f"x-key: {key}"))[0] for key in "112"] == ["200", "429", "200"]
    assert [(await routed.ask("/c", "x", "GET", f"x-key: {key}"))[0] for key in "12"] == ["200", "429"]
    assert routed.mesh.count("route_requests", route="shop", code="4xx") == 4


async def test_a_trusted_proxy_names_the_client_and_how_it_asked() -> None:
    trusting = Mesh(ProxyServer(trust=["127.0.0.0/8"]))
    await trusting.proxy.start()
    routed = Routed(trusting)
    try:
        await trusting.add("web-1", answering(b"1"))
        await routed.serve(
            Rule(to=to("web"), limits=RateLimit(rate=0.01, burst=1)),
            Rule(path="/old", redirect=Redirect(host="new.example")),
        )
        seen = [await routed.ask("/", "x", "GET", f"X-Forwarded-For: 9.9.9.9, 192.0.2.{key}") for key in "112"]
        assert [status for status, _, _ in seen] == ["200", "429", "200"]
        _, head, _ = await routed.ask("/old", "x", "GET", "X-Forwarded-Proto: https")
        assert head["Location"] == "https://new.example/old"
    finally:
        await trusting.close()
