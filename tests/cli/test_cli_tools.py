"""`mesh validate`, `schema`, `version`, `doctor`, `resolve`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mesh import __version__
from tests.cli.conftest import Kv, Mesh

TABLE = {
    "index": 1,
    "nodes": {"n1": {"address": "10.0.0.1"}},
    "services": {"web": {"vip": "10.96.0.7", "desired": 1, "ports": {"http": {"port": 80, "protocol": "http"}},
                         "endpoints": [{"id": "web-1-aaaa", "slot": 1, "node": "n1", "address": "10.0.0.1",
                                        "ports": {"http": 31001}}]}},
}  # fmt: skip


def test_validate_names_each_service(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text("services:\n  web: {image: x}\n  every: {image: x, kind: global}\n")
    assert mesh("validate", tmp_path).out == "web: valid (service)\nevery: valid (global)\n"
    assert mesh("validate", "all.yaml", "--json").json["services"][0] == {"name": "web", "image": "x"}


def test_validate_tells_every_fault_of_every_file(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: all\nimage: x\nports: {http: {port: 0}}\n")
    (tmp_path / "b.toml").write_text("name = \n")
    result = mesh("validate", "a.yaml", "b.toml", "no.json")
    assert result.code == 2
    assert result.err.splitlines() == [
        "error: a.yaml:3: ports.http.port: must be 1..65535, got 0",
        "error: a.yaml:1: name: 'all' is a reserved name",
        "error: b.toml: not TOML: Invalid value (at line 1, column 8)",
        "error: no.json: cannot read it: No such file or directory",
    ]
    again = mesh("validate", "a.yaml", "--json")
    assert (again.code, again.json["valid"], len(again.json["errors"])) == (2, False, 2)


def test_schema_is_json_schema(mesh: Mesh) -> None:
    assert mesh("schema").json["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert mesh("schema", "route").json["title"] == "mesh route"
    assert mesh("schema", "rout").err == "error: there is no schema of 'rout': it is service or route\n"


def test_validate_reads_routes(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(
        "services: {web: {image: x}}\nroutes: {shop: {listen: '[::]:80', rules: [{to: [{service: web}]}]}}\n"
    )
    assert mesh("validate", "all.yaml").out == "web: valid (service)\nroute/shop: valid (1 rule)\n"
    routes = mesh("validate", "all.yaml", "--json").json["routes"]
    assert routes == [{"name": "shop", "listen": "[::]:80", "rules": [{"to": [{"service": "web"}]}]}]


def test_version(mesh: Mesh) -> None:
    assert mesh("version").out.startswith(f"mesh {__version__} (Python 3.")
    assert mesh("version", "--json").json["mesh"] == __version__
    assert mesh("--version").out == f"mesh {__version__}\n"


def test_resolve_answers_and_explains(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(json.dumps(TABLE))
    result = mesh("resolve", "web", "--table", "table.json")
    assert result.code == 0
    assert "web.svc.cluster A: NOERROR" in result.out
    assert "10.96.0.7" in result.out
    found = mesh("resolve", "_http._tcp.web.svc.cluster", "srv", "--table", "table.json", "--json").json
    assert (found["outcome"], found["type"]) == ("NOERROR", "SRV")
    assert "31001" in found["answer"][0]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["web", "--table", "no.json"], 2, "cannot read no.json: No such file or directory"),
        (["web", "--table", "bad.json"], 2, "bad.json: services.web.ports.http.port: must be 1..65535, got 0"),
        (["web", "NOPE", "--table", "table.json"], 2, "no type of record: 'NOPE'"),
        (["web", "--admin", "127.0.0.1:9"], 1, "no agent answers at http://127.0.0.1:9 ("),
        (["web", "--admin", "ftp://x"], 1, "no agent answers at ftp://x ("),
    ],
)
def test_resolve_says_what_it_needs(mesh: Mesh, tmp_path: Path, arguments: list[str], code: int, sentence: str) -> None:
    (tmp_path / "table.json").write_text(json.dumps(TABLE))
    (tmp_path / "bad.json").write_text('{"services": {"web": {"ports": {"http": {"port": 0}}}}}')
    result = mesh("resolve", *arguments)
    assert result.code == code
    assert result.err.startswith(f"error: {sentence}")


def test_doctor_says_what_to_do_and_fails_without_a_store(mesh: Mesh) -> None:
    result = mesh("doctor", "--store", "127.0.0.1:9", "--runtime", "process", "--json")
    assert result.code == 1
    findings = {finding["check"]: finding for finding in result.json}
    assert findings["store"]["level"] == "fail"
    assert "mesh dev" in findings["store"]["mend"]
    assert findings["engine"]["level"] == "ok"
    assert {"python", "privileges", "vip route", "clock", "disk", "resolvers"} <= findings.keys()


def test_doctor_is_content_with_a_good_store(mesh: Mesh, store_url: str, tmp_path: Path) -> None:
    listens = ["--dns-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--upstream", "192.0.2.1"]
    result = mesh("doctor", "--store", store_url, "--runtime", "process", *listens, "--state", tmp_path / "state")
    assert (result.code, result.err) == (0, "")
    assert "answers, leader" in result.out


def test_doctor_looks_at_the_clusters_virtual_ips(mesh: Mesh, kv: Kv) -> None:
    kv.put(kv.keys.config, {"vip_range": "127.7.0.0/16"})
    [found] = [finding for finding in mesh("doctor", "--runtime", "process", "--json").json
               if finding["check"] == "vip route"]  # fmt: skip
    assert (found["level"], found["what"]) == ("ok", "this host accepts 127.7.0.0/16")


def test_cron_next_lists_the_due_runs(mesh: Mesh) -> None:
    night = ("--zone", "Europe/Berlin", "--from", "2026-10-25T00:30Z", "--to", "2026-10-25T02:30:00Z")
    assert mesh("cron", "next", "30 * * * *", *night, "--json").json == [
        {"time": 1792888200, "local": "2026-10-25T02:30:00+02:00"},
        {"time": 1792895400, "local": "2026-10-25T03:30:00+01:00"},
    ]
    seconds = ("--zone", "Europe/Berlin", "--from", "1792888200", "--to", "1792888200")
    assert mesh("cron", "next", "30 * * * *", *seconds).out == "2026-10-25T02:30:00+02:00\n"
    assert len(mesh("cron", "next", "@daily").out.splitlines()) == 10


def test_cron_next_says_what_is_wrong(mesh: Mesh) -> None:
    for arguments, fault in [
        (["0 0 31 2 *"], "February has no day 31"),
        (["* *"], "EXPR: must have five fields"),
        (["@daily", "--zone", "Mars/Olympus"], "--zone: must be a time zone"),
        (["@daily", "--from", "tomorrow"], "--from: must be a time"),
        (["@daily", "--to", "yesterday"], "--to: must be a time"),
    ]:
        result = mesh("cron", "next", *arguments)
        assert (result.code, result.out) == (2, "")
        assert fault in result.err
