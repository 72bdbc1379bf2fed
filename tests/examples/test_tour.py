"""`make demo` itself, from the outside: every step holds, and nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def start(*arguments: str, path: str = os.environ["PATH"]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "guestbook.tour", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}", "PATH": path},
    )  # fmt: skip


def tour(*arguments: str, path: str = os.environ["PATH"]) -> str:
    """What a tour that ends by itself says; every step of it held."""
    process = start("--once", *arguments, path=path)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert said.count(" 0 failed") == 2
    assert "Every step held." in said
    return said


def test_with_plain_processes() -> None:
    assert "The replicas are plain processes." in tour("--process")


def test_on_a_machine_that_has_next_to_nothing(tmp_path: Path) -> None:
    """Neither Docker, nor redis-server, nor apt to fetch it: the stand-in serves, and the tour says so."""
    for program in ("sh", "setsid", "python3"):
        (tmp_path / program).symlink_to(shutil.which(program) or program)
    said = tour(path=str(tmp_path))
    assert "There is no Docker here." in said
    assert "the example's own small server takes its place" in said


@pytest.mark.docker
@pytest.mark.root
def test_with_containers() -> None:
    assert "the replicas are containers" in tour()


def test_it_stays_up_until_ctrl_c() -> None:
    process = start("--process")
    assert process.stdout is not None
    said = ""
    while "In a browser:" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    assert "mesh status web --watch" in said
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate()
    assert "Removing all of it" in rest
    assert process.returncode == 0, rest
