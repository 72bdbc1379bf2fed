"""docs/settings.md and docs/json.md say what the code does."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import msgspec

from mesh.cli.cluster_file import cluster_of
from mesh.cli.forecasts import forecast_json, warnings
from mesh.cli.status import NodeStatus, ServiceStatus
from mesh.cli.top import ServiceTop
from mesh.scheduler.forecast.end_state import forecast
from mesh.settings import AgentSettings
from mesh.settings.sources import Sources

DOCS = Path(__file__).parents[2] / "docs"


def fenced(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_config_file_shown_is_one(tmp_path: Path) -> None:
    (example,) = fenced("settings.md", "toml")
    token = tmp_path / "token"
    token.write_text("secret")
    config = tmp_path / "config.toml"
    config.write_text(example.replace("/etc/mesh/token", str(token)))
    sources = Sources.read(config, {"XDG_STATE_HOME": str(tmp_path)})
    agent = sources.agent(sources.store())
    assert (agent.node, agent.store.token, agent.proxy_workers) == ("n1", "secret", 2)
    assert agent.dns_listen == ("127.0.0.1:53", "10.77.0.11:53")


def test_every_variable_named_is_read() -> None:
    text = (DOCS / "settings.md").read_text()
    special = {"MESH_STORE", "MESH_TOKEN_FILE", "MESH_CONFIG", "MESH_ADMIN_TOKEN", "MESH_TOKEN", "MESH_CA_FILE",
               "MESH_CERT_FILE", "MESH_KEY_FILE", "MESH_VERIFY", "MESH_ROOT"}  # fmt: skip
    known = special | {f"MESH_{field.name.upper()}" for field in fields(AgentSettings)}
    known |= {"MESH_SCHEDULER_ADMIN_LISTEN", "MESH_DEV_STATE", "MESH_EMBEDDED_DATA", "MESH_EMBEDDED_LISTEN"}
    assert set(re.findall(r"MESH_[A-Z_]*[A-Z]", text)) <= known


def test_the_shapes_shown_have_every_field_and_no_other() -> None:
    service, node, top = map(json.loads, fenced("json.md", "json"))
    assert msgspec.to_builtins(msgspec.convert(service, ServiceStatus)) == service
    assert msgspec.to_builtins(msgspec.convert(node, NodeStatus)) == node
    assert msgspec.to_builtins(msgspec.convert(top, ServiceTop)) == top


def test_the_simulation_shown_has_the_answer_shown() -> None:
    question, answer = map(json.loads, fenced("simulate.md", "json"))
    cluster = cluster_of(question)
    assert forecast_json(cluster, forecast(cluster), warnings(cluster)) == answer
