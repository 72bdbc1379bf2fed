"""What README and docs show is true: specs are valid, JSON parses, Tables are Tables, links lead somewhere,
the generated parts are current."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from mesh import keys
from mesh.cli.cluster_file import cluster_of
from mesh.spec.files import parse_documents
from mesh.spec.route import RouteSpec, is_route, parse_route
from mesh.spec.service import ServiceSpec, parse_spec
from mesh.table import parse_table
from tools import reference

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")),
         *sorted((ROOT / "examples").glob("*/README.md"))]  # fmt: skip
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[ParameterSet]:
    """The fenced blocks of one language in all pages, each named by its page and line."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in FENCE.finditer(text):
            if match[1] == language:
                line = text.count("\n", 0, match.start()) + 1
                found.append(pytest.param(match[2], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_yaml_block_is_a_valid_spec(block: str) -> None:
    for document in parse_documents(block, ".yaml"):
        parse = parse_route if is_route(document.value) else parse_spec
        parse(document.value)


@pytest.mark.parametrize("block", blocks("json"))
def test_a_json_block_parses_and_a_table_is_a_table(block: str) -> None:
    value = json.loads(block)
    if "replicas" in value and "services" in value:
        cluster_of(value)
    elif "services" in value:
        table = parse_table(block.encode())
        assert table.services["web"].endpoints
        assert table.routes["shop"].rules[0].to
    elif "image" in value:
        parse_spec(value, "web")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("name", reference.PAGES)
def test_generated_parts_are_current(name: str) -> None:
    assert reference.page(name) == (ROOT / "docs" / name).read_text(), "run `make docs`"


def test_every_field_of_the_spec_has_a_meaning() -> None:
    silent = [
        f"{path}.{name}".lstrip(".")
        for spec in (ServiceSpec, RouteSpec)
        for path, part in reference.parts(spec)
        for name, field in part.model_fields.items()
        if not field.description
    ]
    assert not silent


def test_every_prefix_is_documented() -> None:
    page = (ROOT / "docs" / "keys.md").read_text()
    mesh = keys.Keys()
    written = [
        mesh.service("<service>"), mesh.route("<name>"), mesh.node_settings("<node>"), mesh.config,
        mesh.scale("<service>"), mesh.rollout("<service>"), mesh.secret("<name>"), mesh.config_value("<name>"),
        mesh.leader, mesh.service_plan("<service>"), mesh.node_plan("<node>"), mesh.node_report("<node>"),
    ]  # fmt: skip
    assert not [key for key in written if f"`{key}`" not in page]


def test_the_guestbook_is_valid_and_its_stand_in_is_the_same_service() -> None:
    specs = {}
    for path in sorted((ROOT / "examples" / "guestbook").glob("**/*.yaml")):
        (document,) = parse_documents(path.read_text(), ".yaml")
        specs[path.relative_to(ROOT / "examples" / "guestbook").as_posix()] = parse_spec(document.value)
    assert set(specs) == {"web.yaml", "redis.yaml", "stand-in/redis.yaml"}
    assert specs["redis.yaml"].name == specs["stand-in/redis.yaml"].name
    assert specs["redis.yaml"].ports == specs["stand-in/redis.yaml"].ports
