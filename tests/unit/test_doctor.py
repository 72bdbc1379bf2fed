"""Each check says what it found, and what to do where something is to be done."""

import errno
from pathlib import Path

import pytest

from mesh.cli import doctor
from mesh.cli.doctor import Finding
from mesh.settings import AgentSettings, StoreSettings
from mesh.store.diagnosis import StoreDiagnosis

ALL_CAPABILITIES = 0x3FFFFFFFFF
HEALTHY = StoreDiagnosis("http://c:8500", version="1.8.7", leader="10.0.0.1:8300", write_seconds=0.002,
                         short_sessions=True, raft_multiplier=1, max_connections_per_client=200)  # fmt: skip


def levels(*findings: Finding) -> list[str]:
    return [finding.level for finding in findings]


def test_python_must_be_new_enough() -> None:
    assert levels(doctor.python((3, 10, 2)), doctor.python((3, 11, 0)), doctor.python((4, 0, 0))) == [
        "fail",
        "ok",
        "ok",
    ]


@pytest.mark.parametrize(
    ("answer", "runtime", "level"),
    [
        ({"Version": "20.10.24+dfsg1", "ApiVersion": "1.41"}, "auto", "ok"),
        ({"Version": "18.09"}, "auto", "warn"),
        ({}, "auto", "warn"),
        ("no answer", "auto", "warn"),
        ("no answer", "docker", "fail"),
        ("Permission denied", "auto", "fail"),
        ("not asked", "process", "ok"),
    ],
)
def test_the_engine(answer: dict[str, str] | str, runtime: str, level: str) -> None:
    assert doctor.engine(answer, runtime).level == level


async def test_the_advice_fits_where_the_engine_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    async def advice(docker_host: str, runtime: str = "docker") -> str:
        settings = AgentSettings(node="n1", store=StoreSettings(), state=tmp_path, runtime=runtime,
                                 docker_host=docker_host)  # fmt: skip
        [found] = [one for one in await doctor.examine(settings) if one.check == "engine"]
        assert found.level == "fail"
        return found.mend

    assert "start Docker (Debian" in await advice(f"unix://{tmp_path}/docker.sock")
    for elsewhere in ("tcp://127.0.0.1:9", "ssh://bob@127.0.0.1"):
        assert "see that it runs on its host" in await advice(elsewhere)
    barred = doctor.engine("through ssh (bob@h1: Permission denied (publickey).): put a key", "docker", here=False)
    assert "group docker" not in barred.mend


@pytest.mark.parametrize(
    ("number", "ours", "level"),
    [(None, False, "ok"), (errno.EADDRINUSE, True, "ok"), (errno.EADDRINUSE, False, "fail"),
     (errno.EACCES, False, "fail"), (errno.EACCES, True, "fail"), (errno.EADDRNOTAVAIL, False, "fail")],
)  # fmt: skip
def test_ports(number: int | None, ours: bool, level: str) -> None:
    refused = OSError(number, "") if number else None
    assert doctor.port("DNS", "--dns-listen", "127.0.0.1:53", refused, ours=ours).level == level


def test_privileges() -> None:
    assert doctor.privileges(0, ALL_CAPABILITIES, 1024).level == "ok"
    assert doctor.privileges(1000, 1 << doctor.CAP_NET_ADMIN, 0).level == "ok"
    weak = doctor.privileges(1000, 0, 1024)
    assert weak.level == "warn"
    assert "CAP_NET_ADMIN" in weak.what
    assert "below 1024" in weak.what


def test_the_vip_route() -> None:
    assert levels(*(doctor.vip_route("10.96.0.0/16", accepted, root) for accepted, root in
                    [(True, False), (False, True), (False, False)])) == ["ok", "ok", "warn"]  # fmt: skip
    assert levels(doctor.vip_route("10.96.0.0/16", False, False, "loopback")) == ["ok"]


def test_the_clock() -> None:
    assert levels(*map(doctor.clock, [0.4, -3.0, 90.0, None])) == ["ok", "warn", "fail", "warn"]
    assert "3 s behind" in doctor.clock(-3.0).what


def test_a_good_store_is_good() -> None:
    assert levels(*doctor.store(HEALTHY, 10.0)) == ["ok", "ok"]


@pytest.mark.parametrize(
    ("found", "ttl", "check", "level"),
    [
        (StoreDiagnosis("http://c:8500", error="cannot reach the store"), 10.0, "store", "fail"),
        (StoreDiagnosis("c", leader="l", write_seconds=0.2), 10.0, "store writes", "warn"),
        (StoreDiagnosis("c", leader="l", raft_multiplier=5), 10.0, "store elections", "warn"),
        (StoreDiagnosis("c", leader="l", short_sessions=False), 5.0, "store sessions", "fail"),
        (StoreDiagnosis("c", leader="l", max_connections_per_client=10), 10.0, "store connections", "warn"),
    ],
)
def test_a_store_that_needs_care(found: StoreDiagnosis, ttl: float, check: str, level: str) -> None:
    (finding,) = [one for one in doctor.store(found, ttl) if one.level != "ok"]
    assert (finding.check, finding.level) == (check, level)
    assert finding.mend


def test_space() -> None:
    free = [10 * 2**30, 2**29, 2**20]
    assert levels(*(doctor.space(Path("/x"), size) for size in free)) == ["ok", "warn", "fail"]


@pytest.mark.parametrize(
    ("resolv_conf", "upstreams", "level"),
    [
        ("nameserver 10.0.0.2\n", [], "ok"),
        ("# nothing\n", [], "warn"),
        ("nameserver 127.0.0.1\n", [], "fail"),
        ("nameserver 127.0.0.1\nnameserver 9.9.9.9\n", [], "ok"),
        ("nameserver 127.0.0.1\n", ["9.9.9.9:53"], "ok"),
        ("nameserver 10.0.0.2\n", ["127.0.0.1:53"], "fail"),
    ],
)
def test_resolvers(resolv_conf: str, upstreams: list[str], level: str) -> None:
    assert doctor.resolvers(resolv_conf, ["127.0.0.1:53"], upstreams, []).level == level
    on_every_address = doctor.resolvers(resolv_conf, ["0.0.0.0:53"], upstreams, ["127.0.0.1"])
    assert on_every_address.level == level
    assert doctor.resolvers("nameserver 127.0.0.1\n", ["127.0.0.1:5353"], [], []).level == "ok"


def test_whatever_is_not_ok_says_what_to_do() -> None:
    findings = [doctor.python((3, 9)), doctor.engine("no", "docker"), doctor.clock(9.0), doctor.space(Path("/"), 1),
                doctor.privileges(1, 0, 1024), doctor.vip_route("10.96.0.0/16", False, False)]  # fmt: skip
    assert all(finding.mend for finding in findings)
