"""`make demo` itself, from the outside: every step holds, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def tour(*arguments: str, path: str = os.environ["PATH"]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "guestbook.tour", "--once", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=110,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}", "PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_with_plain_processes() -> None:
    said = tour("--process")
    assert "The replicas are plain processes." in said
    assert said.count(" 0 failed") == 2
    assert "Every step held." in said


@pytest.mark.docker
@pytest.mark.root
@pytest.mark.timeout(240)
def test_with_containers() -> None:
    said = tour()
    assert "the replicas are containers" in said
    assert said.count(" 0 failed") == 2
    assert "Every step held." in said
