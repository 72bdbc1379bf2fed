"""A Consul that denies by default and speaks TLS both ways: the mesh needs no more than docs/keys.md says, and tells
nobody its token."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import events, parts, security, store
from tests.lab.host import Host
from tests.lab.lab import Lab, remove
from tests.lab.operator import Operator, eventually

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.consul, pytest.mark.openssl, pytest.mark.slow]


@pytest.fixture(scope="module")
def operator() -> Iterator[Operator]:
    operator = Operator(Lab.up(hosts=3, servers=3, secure=True), count=3)
    try:
        operator.load_image()
        yield operator
    finally:
        remove()


@pytest.fixture
def host(operator: Operator) -> Host:
    return operator.lab.hosts[0]


def status(host: Host, **variables: str) -> str:
    """What `mesh status` says to who sets some variables otherwise."""
    changed = [f"{name}={value}" for name, value in variables.items()]
    return host.run("env", *changed, "sh", "-c", f"{sys.executable} -m mesh.cli status 2>&1", check=False)


def test_a_service_runs_and_every_host_answers_for_it(operator: Operator) -> None:
    events.serve(operator)
    for host in operator.lab.hosts:
        asked = ["dig", f"@{host.address}", "+short", "web.svc.cluster"]
        eventually(f"{host.name} answers", lambda: _said(*asked).split() == [operator.vip()])  # noqa: B023
        assert host.run("curl", "--silent", "--max-time", "5", f"http://{operator.vip()}/healthz")
    assert '"web"' in operator.mesh("h2", "status", "--json")


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout


def test_marks_may_be_written_and_read(operator: Operator) -> None:
    """Who watches the reports has read them one by one, and none as a whole."""
    assert len(operator.read_names("observed/nodes.marks/")) == 3


def test_an_agent_that_starts_again_finds_its_node_and_replicas(operator: Operator) -> None:
    before = operator.running(operator.names())
    events.restart_an_agent(operator)
    events.settled(operator, "all replicas are ready")
    assert operator.running(operator.names()) == before


def test_consuls_leader_dies(operator: Operator) -> None:
    before, leader = operator.running(operator.names()), operator.consul_leader()
    operator.lab.host(leader).stop("consul", signal.SIGKILL)
    eventually("another leads", lambda: operator.consul_leader() != leader)
    parts.start_consul(operator.lab.host(leader), operator.lab.servers)
    events.heard(operator)
    events.settled(operator, "all replicas are ready")
    assert operator.running(operator.names()) == before


def test_agents_and_schedulers_may_not_wish(operator: Operator) -> None:
    """Their token is no operator's."""
    with pytest.raises(OSError, match="403"):
        store.asked_as(security.MESH, "h1", "/v1/kv/mesh/desired/services/evil", {"name": "evil"}, method="PUT")
    with pytest.raises(OSError, match="403"):
        store.ask("h1", "/v1/kv/others", {}, method="PUT")


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """A token that nobody was given."""
    file = tmp_path / "token"
    file.write_text("11111111-2222-3333-4444-555555555555")
    return file


def test_a_wrong_token_and_none_are_told(host: Host, wrong: Path) -> None:
    for file in (f"{wrong}", ""):
        said = status(host, CONSUL_HTTP_TOKEN_FILE=file)
        assert "denies this" in said
        assert "check CONSUL_HTTP_TOKEN" in said
        assert wrong.read_text() not in said


@pytest.mark.parametrize("command", [["agent", "--node", "other"], ["scheduler"]], ids=lambda command: command[0])
def test_a_daemon_with_a_wrong_token_says_so(host: Host, tmp_path: Path, wrong: Path, command: list[str]) -> None:
    state = ["--state", f"{tmp_path}/state"] if "agent" in command else []
    host.start("wrong", [sys.executable, "-m", "mesh.cli", *command, *state, "--admin-listen", "127.0.0.1:0"],
               {**security.variables(security.MESH, host.name), "CONSUL_HTTP_TOKEN_FILE": f"{wrong}"})  # fmt: skip
    eventually("it says so", lambda: "denies this" in (said := host.log("wrong")) and "CONSUL_HTTP_TOKEN" in said)
    host.stop("wrong")
    assert wrong.read_text() not in host.log("wrong")


def test_a_wrong_authority_is_told(host: Host, tmp_path: Path) -> None:
    security.make_authority(tmp_path / "other.pem")
    said = status(host, CONSUL_CACERT=f"{tmp_path}/other.pem")
    assert "no trust between this client and the store" in said
    assert "check CONSUL_CACERT" in said


def test_no_token_is_on_a_command_line_or_in_a_log(operator: Operator) -> None:
    """Of any process of the machine, which sees all hosts'; after all that the others have done."""
    shown = _said("ps", "-eww", "-o", "args")
    assert "mesh.cli agent" in shown
    logs = [file for host in operator.lab.hosts for file in host.folder.glob("*.log")]
    assert logs
    for who in (security.MESH, security.OPERATOR, security.ROOT):
        assert security.token(who) not in shown
        assert not [file for file in logs if security.token(who) in file.read_text(errors="replace")]
