"""Commands in README and docs marked `sh run` work, one block after the other, beside a `mesh dev`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestbook.cluster import BIN, Cluster

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```sh run\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = [pytest.mark.slow, pytest.mark.dig]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("m")
    cluster = Cluster(home, "process", f"{BIN}:{os.environ['PATH']}")
    cluster.start()
    cluster.mesh("apply", "examples/guestbook/web.yaml", "examples/guestbook/stand-in", "--wait")
    yield cluster
    cluster.stop()


def blocks() -> list[tuple[Path, str]]:
    return [(page, block) for page in PAGES for block in BLOCK.findall(page.read_text())]


@pytest.mark.parametrize(("page", "block"), blocks(), ids=lambda part: part.name if isinstance(part, Path) else "")
def test_the_commands_work(cluster: Cluster, page: Path, block: str) -> None:
    for command in block.strip().splitlines():
        done = cluster.run(["bash", "-ec", here(command, cluster)])
        assert done.returncode == 0, f"{page.name}: {command}\n{done.stdout}{done.stderr}"


def here(command: str, cluster: Cluster) -> str:
    """The command with this mesh's own addresses in place of the usual ones."""
    dns_host, _, dns_port = str(cluster.info["dns"]).rpartition(":")
    return command.replace("@127.0.0.1 -p 5353", f"@{dns_host} -p {dns_port}").replace(
        "http://127.0.0.1:7070", cluster.info["admin"]
    )


def test_the_metrics_page_names_every_metric(cluster: Cluster) -> None:
    body = cluster.run(["curl", "-sf", f"{cluster.info['admin']}/metrics"]).stdout
    served = set(re.findall(r"^# TYPE (mesh_\w+)", body, re.MULTILINE))
    written = set(re.findall(r"^\| `(mesh_\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    assert served
    assert served - written == set()
    assert {name for name in written if not name.startswith("mesh_scheduler_")} - served == set()
