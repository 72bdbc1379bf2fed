"""`mesh apply`, `delete`, `scale`: what they write, and what they refuse."""

from __future__ import annotations

import json
import threading
import urllib.request
from pathlib import Path

import msgspec
import pytest

from mesh.model import NodePlan, NodeReport, Release, ReplicaReport, ReplicaState, Rollout, RolloutState, ServicePlan
from mesh.spec.service import parse_spec
from tests.cli.conftest import Kv, Mesh

WEB = "name: web\nimage: web:1\nreplicas: 2\nports: {http: {port: 80, protocol: http}}\n"


def files(folder: Path, **contents: str) -> list[str]:
    for name, text in contents.items():
        (folder / f"{name}.yaml").write_text(text)
    return [f"{name}.yaml" for name in contents]


def test_apply_says_what_became_of_each_service(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    paths = files(tmp_path, web=WEB, redis="name: redis\nimage: redis\n")
    assert mesh("apply", *paths).out == "web: created\nredis: created\n"
    assert mesh("apply", tmp_path).out == "redis: unchanged\nweb: unchanged\n"
    files(tmp_path, web=WEB.replace("web:1", "web:2"))
    assert mesh("apply", *paths, "--json").json == [
        {"service": "web", "result": "changed"}, {"service": "redis", "result": "unchanged"},
    ]  # fmt: skip
    assert kv.get(kv.keys.service("web"))["image"] == "web:2"


def test_apply_writes_nothing_if_anything_is_wrong(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    result = mesh("apply", *files(tmp_path, web=WEB, bad="name: bad\nimage: x\nreplcias: 2\n"))
    assert result.code == 2
    assert result.err == "error: bad.yaml:3: replcias: unknown field (did you mean 'replicas'?)\n"
    assert kv.get(kv.keys.service("web")) is None


def test_apply_refuses_what_only_the_scheduler_can_tell(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    result = mesh("apply", *files(tmp_path, web=f"{WEB}placement:\n  constraints:\n    - '=='\n"))
    assert result.code == 2
    assert result.err.startswith("error: web.yaml:7: placement.constraints.0: ")


def test_apply_compares_meanings_with_what_others_wrote(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    kv.put(kv.keys.service("web"), b"{ broken")
    paths = files(tmp_path, web=WEB)
    assert mesh("apply", *paths).out == "web: changed\n"
    ports = {"http": {"port": 80, "protocol": "http", "target": None}}
    kv.put(kv.keys.service("web"), {"image": "web:1", "replicas": 2, "ttl": "5000ms", "ports": ports})
    assert mesh("apply", *paths).out == "web: unchanged\n"


def test_more_services_than_one_transaction_takes(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    large = f"env: {{A: {'x' * 50_000}}}\n"
    many = "---\n".join(f"name: s{number}\nimage: x\n{large if number < 10 else ''}" for number in range(150))
    assert mesh("apply", *files(tmp_path, many=many)).out.count(": created") == 150
    assert len(mesh("status", "--json").json) == 150


def test_delete_takes_spec_and_scale_away(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    mesh("apply", *files(tmp_path, web=WEB))
    mesh("scale", "web=5")
    assert mesh("delete", "web").out == "web: deleted\n"
    assert kv.get(kv.keys.service("web")) is None
    assert kv.get(kv.keys.scale("web")) is None


@pytest.mark.parametrize("command", [["delete", "wbe"], ["scale", "wbe=1"], ["status", "wbe"], ["events", "wbe"]])
def test_an_unknown_service_is_an_error_with_a_suggestion(
    mesh: Mesh, kv: Kv, tmp_path: Path, command: list[str]
) -> None:
    mesh("apply", *files(tmp_path, web=WEB))
    result = mesh(*command)
    assert (result.code, result.err) == (1, "error: there is no service 'wbe' (did you mean 'web'?)\n")


def test_scale_overrides_the_spec_until_it_is_given_back(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    paths = files(tmp_path, web=WEB, worker="name: worker\nimage: x\n")
    mesh("apply", *paths)
    assert mesh("scale", "web=5", "worker=1").out == "web: 5 replicas\nworker: 1 replica\n"
    assert kv.get(kv.keys.scale("web")) == 5
    again = mesh("apply", *paths)
    assert "`mesh scale` holds it at 5 replicas" in again.err
    assert mesh("scale", "web=spec").out == "web: as its spec says\n"
    assert kv.get(kv.keys.scale("web")) is None


@pytest.mark.parametrize("argument", ["web", "web=", "web=x", "web=-1", "web=9999999", "web=100001", "=3"])
def test_scale_refuses_what_is_no_count(mesh: Mesh, kv: Kv, argument: str) -> None:
    result = mesh("scale", argument)
    assert result.code == 2
    assert result.err.startswith(f"error: {argument}: ")


def test_two_counts_for_one_service_are_refused(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    mesh("apply", *files(tmp_path, web=WEB))
    assert mesh("scale", "web=1", "web=5").code == 2
    assert kv.get(kv.keys.scale("web")) is None


def test_only_a_service_can_be_scaled(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    mesh("apply", *files(tmp_path, all="name: every\nimage: x\nkind: global\n"))
    assert mesh("scale", "every=2").err == "error: every: only kind service can be scaled, it is of kind global\n"


def test_on_a_terminal_delete_and_scale_to_zero_ask(
    mesh: Mesh, kv: Kv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh("apply", *files(tmp_path, web=WEB))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda _: False)
    for command in (["delete", "web"], ["scale", "web=0"]):
        assert mesh(*command).err == "error: nothing was changed\n"
    assert kv.get(kv.keys.service("web")) is not None
    assert mesh("scale", "web=0", "--yes").code == 0
    assert mesh("delete", "web", "--yes").code == 0


# ── routes

SHOP = """
name: shop
listen: 0.0.0.0:80
rules:
  - host: shop.example.com
    to: [{service: web, port: http}]
  - redirect: {scheme: https}
"""


def test_routes_are_applied_with_services(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    paths = files(tmp_path, all=f"{WEB}---{SHOP}")
    applied = mesh("apply", *paths)
    assert (applied.out, applied.err) == ("web: created\nroute/shop: created\n", "")
    assert mesh("apply", *paths, "--json").json == [
        {"service": "web", "result": "unchanged"}, {"route": "shop", "result": "unchanged"},
    ]  # fmt: skip
    assert kv.get(kv.keys.route("shop"))["rules"][0]["to"] == [{"service": "web"}]
    files(tmp_path, all=f"{WEB}---{SHOP.replace('https', 'http')}")
    assert mesh("apply", *paths).out == "web: unchanged\nroute/shop: changed\n"
    assert mesh("delete", "shop").err == "error: shop is a route, no service: mesh delete route/shop\n"
    assert mesh("delete", "route/shp").err == "error: there is no route 'shp' (did you mean 'shop'?)\n"
    assert mesh("delete", "route/shop", "web", "--json").json == [
        {"service": "web", "result": "deleted"}, {"route": "shop", "result": "deleted"},
    ]  # fmt: skip
    assert kv.get(kv.keys.route("shop")) is None
    assert kv.get(kv.keys.service("web")) is None


def test_apply_warns_of_routes_that_lead_nowhere_yet(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    result = mesh("apply", *files(tmp_path, shop=SHOP.replace("web, port: http", "wbe"), web=WEB))
    assert result.code == 0
    assert result.err == (
        "warning: route shop: rules.0: there is no service 'wbe' (did you mean 'web'?); "
        "until there is, it answers 503\n"
    )
    again = mesh("apply", *files(tmp_path, shop=SHOP.replace("port: http", "port: htpp")))
    assert "there is no port web.htpp (did you mean 'http'?)" in again.err


def test_apply_writes_no_service_if_a_route_is_wrong(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    result = mesh("apply", *files(tmp_path, web=WEB, shop=SHOP.replace("0.0.0.0:80", "80").replace("https", "ftp")))
    assert result.code == 2
    assert result.err.splitlines() == [
        "error: shop.yaml:3: listen: must be an address of the host and a port, such as 0.0.0.0:80 or [::]:80, got 80",
        "error: shop.yaml:7: rules.1.redirect.scheme: must be http or https, got 'ftp'",
    ]
    assert kv.get(kv.keys.service("web")) is None


def test_a_route_that_someone_broke_is_shown(mesh: Mesh, kv: Kv) -> None:
    kv.put(kv.keys.route("shop"), {"listen": "0.0.0.0:80", "rules": [{"path": "x"}]})
    assert "/desired/routes/shop: rules.0.path: must be a path that begins with /" in mesh("status").err


# ── --wait ───────────────────────────────────────────────────────────────────────────────────


def plan(*, number: int = 1, errors: list[str] | None = None, rollout: Rollout | None = None) -> ServicePlan:
    spec = parse_spec(
        {"name": "web", "image": "web:1", "replicas": 2, "ports": {"http": {"port": 80, "protocol": "http"}}}
    )
    release = Release(number=number, hash=spec.digest(), spec=spec.canonical())
    return ServicePlan(service="web", desired=2, releases=[release], rollout=rollout or Rollout(), errors=errors or [])


def report(*states: ReplicaState) -> NodeReport:
    replicas = [ReplicaReport(id=f"web-{slot}-aaaa", service="web", slot=slot, release=1, state=state)
                for slot, state in enumerate(states, 1)]  # fmt: skip
    return NodeReport(node="n1", address="10.0.0.1", replicas=replicas)


def test_wait_follows_until_every_replica_is_ready(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    kv.put(kv.keys.service_plan("web"), plan(rollout=Rollout(state=RolloutState.ROLLING)))
    kv.put(kv.keys.node_report("n1"), report(ReplicaState.READY, ReplicaState.STARTING))

    def finish() -> None:
        kv.put(kv.keys.node_report("n1"), report(ReplicaState.READY, ReplicaState.READY))
        kv.put(kv.keys.service_plan("web"), plan())

    later = threading.Timer(0.2, finish)
    later.start()
    result = mesh("apply", *files(tmp_path, web=WEB), "--wait", "--timeout", "20s")
    later.join()
    assert (result.code, result.out) == (0, "web: created\n")
    assert result.err.splitlines()[-1] == "web: release 1: 2/2 ready"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (plan(errors=["image: no such image"]), "web: image: no such image"),
        (plan(rollout=Rollout(state=RolloutState.FAILED, message="1 of 2 never became ready")),
         "web: rollout failed: 1 of 2 never became ready"),
    ],
)  # fmt: skip
def test_wait_fails_with_the_reasons(mesh: Mesh, kv: Kv, tmp_path: Path, found: ServicePlan, reason: str) -> None:
    mesh("apply", *files(tmp_path, web=WEB))
    (spec,) = json.load(urllib.request.urlopen(f"{kv.store}/v1/kv/{kv.keys.service('web')}"))
    kv.put(kv.keys.service_plan("web"), msgspec.structs.replace(found, spec_index=spec["ModifyIndex"]))
    result = mesh("apply", *files(tmp_path, web=WEB), "--wait", "--timeout", "10s")
    assert result.code == 1
    assert f"error: {reason}" in result.err


def test_wait_gives_up_and_says_how_far_it_came(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    result = mesh("apply", *files(tmp_path, web=WEB), "--wait", "--timeout", "100ms")
    assert result.code == 1
    assert "error: web: waits for the scheduler" in result.err
    assert "error: not done after 0.1 s; it goes on: mesh status" in result.err


def test_delete_can_wait_too(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    mesh("apply", *files(tmp_path, web=WEB))
    assert mesh("delete", "web", "--wait").code == 0
    mesh("apply", *files(tmp_path, web=WEB))
    kv.put(kv.keys.node_report("n1"), report(ReplicaState.READY))
    kv.put(kv.keys.node_plan("n1"), NodePlan(node="n1"))
    result = mesh("delete", "web", "--wait", "--timeout", "100ms")
    assert result.code == 1
    assert "still there: web-1-aaaa" in result.err


def test_a_bad_timeout_is_a_sentence(mesh: Mesh, kv: Kv, tmp_path: Path) -> None:
    result = mesh("apply", *files(tmp_path, web=WEB), "--wait", "--timeout", "soon")
    assert (result.code, kv.get(kv.keys.service("web"))) == (2, None)
    assert result.err.startswith("error: --timeout: must be a duration such as")
