"""The proxy compiled by mypyc does all that the interpreted one does: the same tests, run from a compiled copy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import compiled


@pytest.mark.gcc
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_compiled_proxy_passes_the_proxys_tests(tmp_path: Path) -> None:
    compiled.build(tmp_path)
    surroundings = {**os.environ, "PYTHONPATH": str(tmp_path)}
    loaded = subprocess.run(
        [sys.executable, "-c", "import mesh.proxy.exchange as it; print(it.__file__)"],
        cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert loaded.stdout.startswith(str(tmp_path))
    assert loaded.stdout.strip().endswith(".so")
    files = sorted(str(file.relative_to(tmp_path)) for file in (tmp_path / "tests" / "proxy_server").glob("test_*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    halves = [  # side by side: they wait more than they compute
        subprocess.Popen(
            [*command, *files[first::2]], cwd=tmp_path, env=surroundings, stdout=subprocess.PIPE, text=True
        )
        for first in (0, 1)
    ]
    said = [half.communicate()[0] for half in halves]
    assert [half.returncode for half in halves] == [0, 0], "\n".join(each[-6000:] for each in said)
