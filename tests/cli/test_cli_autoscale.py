"""`mesh autoscale`: what the leader says; what the store says where the leader cannot be asked; who holds a count."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mesh.autoscaling.telling import Explanation
from mesh.model import Leader, Release, ScaleChange, ScaleState, ServicePlan
from mesh.scheduler.autoscale.model import MetricDecision
from mesh.spec.service import parse_spec
from tests.cli.conftest import Kv, Mesh
from tests.cli.live import answering
from tests.parts.ports import free_port

WHY = "25 requests in flight per replica, 10 are wanted: 2 -> 5; max is 5"
CHANGE = ScaleChange(time=1000.0, current=2, replicas=5, recommendation=6, metric="in_flight", limit="max", why=WHY)
TOLD = Explanation(
    service="web", time=2000.0, current=5, replicas=5, recommendation=6, metric="in_flight", window="stable 60s",
    metrics=[MetricDecision(metric="in_flight", value=11.5, target=10.0, recommendation=6),
             MetricDecision(metric="prometheus: q", value=None, target=3.0, recommendation=None, fault="is down")],
    limit="max", why=WHY, changes=[CHANGE],
)  # fmt: skip


@pytest.fixture
def web(kv: Kv) -> Kv:
    """A service that the autoscaler holds at five."""
    spec = parse_spec({"name": "web", "image": "web", "scale": {"max": 5, "metrics": [{"in_flight": 10}]}})
    kv.put(kv.keys.service("web"), spec.canonical())
    release = Release(number=1, hash=spec.digest(), spec=spec.canonical(), good=True)
    kv.put(
        kv.keys.service_plan("web"), ServicePlan(service="web", desired=5, releases=[release], warnings=["p is down"])
    )
    kv.put(kv.keys.scale_state("web"), ScaleState(replicas=5, changes=[CHANGE], problems=["p is down"]))
    return kv


@pytest.fixture
def leader(web: Kv) -> Iterator[str]:
    """The leader's admin HTTP."""
    with answering("/v1/autoscale/web", TOLD) as url:
        web.put(web.keys.leader, Leader(name="s1", process="h:1", admin=url))
        yield url


def test_the_leader_says_what_is_measured_asked_for_and_what_limits_it(mesh: Mesh, leader: str) -> None:
    shown = mesh("autoscale", "web")
    assert shown.code == 0, shown.err
    assert "web: 5 replicas, 6 asked for by in_flight over stable 60s, limit: max" in shown.out
    assert WHY in shown.out
    assert "is down" in shown.out
    told = mesh("autoscale", "web", "--json").json
    assert (told["source"], told["replicas"], told["recommendation"], told["limit"]) == ("leader", 5, 6, "max")
    assert told["metrics"][0] == {"metric": "in_flight", "value": 11.5, "target": 10.0, "recommendation": 6}


def test_following_tells_each_new_decision_once_until_ctrl_c(mesh: Mesh, web: Kv, leader: str) -> None:
    command = [sys.executable, "-m", "mesh.cli", "autoscale", "web", "-f"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        assert WHY in process.stdout.readline()
        other = msgspec.structs.replace(TOLD, replicas=3, why="3 in flight: 5 -> 3")
        with answering("/v1/autoscale/web", other) as url:
            web.put(web.keys.leader, Leader(name="s2", process="h:2", admin=url))
            assert "3 in flight: 5 -> 3" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert (process.stdout.read(), process.wait(30)) == ("", 130)
        said = process.stderr.read()
    assert "Traceback" not in said
    assert said.count("no scheduler leads") == 1, "a warning is news once"


def test_without_the_leader_the_store_says_what_was_last_and_it_says_so(mesh: Mesh, web: Kv) -> None:
    web.put(web.keys.leader, Leader(name="s1", process="h:1", admin=f"http://127.0.0.1:{free_port()}"))
    shown = mesh("autoscale", "web", "--json")
    assert shown.code == 0
    assert (shown.json["source"], shown.json["replicas"], shown.json["why"]) == ("store", 5, WHY)
    assert "this is what was written last, the leader cannot be asked" in shown.err


def test_what_does_not_follow_its_load_is_refused(mesh: Mesh, kv: Kv) -> None:
    kv.put(kv.keys.service("db"), {"image": "db"})
    shown = mesh("autoscale", "db")
    assert (shown.code, "db does not follow its load" in shown.err) == (1, True)
    assert "there is no service 'dv'" in mesh("autoscale", "dv").err


def test_status_says_who_holds_the_count_and_what_keeps_the_autoscaler_from_its_work(mesh: Mesh, web: Kv) -> None:
    told = mesh("status", "web", "--json").json
    assert told["scaling"] == f"autoscaler, 1 to 5: {WHY}"
    assert "autoscaler: p is down" in told["problems"]
    assert f"scaling: autoscaler, 1 to 5: {WHY}" in mesh("status", "web").out
    held = mesh("scale", "web=2", "--yes")
    assert "the autoscaler leaves it alone until `mesh scale web=spec`" in held.err
    assert mesh("status", "web", "--json").json["scaling"].startswith("held at 2 by hand")
    assert mesh("scale", "web=spec").out == "web: the autoscaler decides\n"


def test_an_applied_spec_leaves_the_autoscalers_count(mesh: Mesh, web: Kv, tmp_path: Path) -> None:
    file = tmp_path / "web.json"
    file.write_bytes(msgspec.json.encode({**web.get(web.keys.service("web")), "replicas": 2}))
    applied = mesh("apply", file)
    assert applied.code == 0
    assert "web: the autoscaler holds it at 5 replicas; see mesh autoscale web" in applied.err
