"""A copy of the project with the proxy's hot path compiled by mypyc: what `make wheel` installs, ready to run from.

    python -m tools.compiled FOLDER          (needs gcc and Python's headers; half a minute)

`PYTHONPATH=FOLDER` then runs it, as the proxy's tests and benchmarks do. The project's own folders stay interpreted:
an edit always counts there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("mesh", "dns", "proxy", "scheduler", "tests", "tools", "bench", "examples")
FILES = ("pyproject.toml", "setup.py", "README.md")


class CompileError(Exception):
    """The compiler's last words."""


def build(folder: Path) -> None:
    """Copies the project to `folder` and compiles it there.

    Raises:
        CompileError: if that fails.
    """
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored, dirs_exist_ok=True)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace", "--parallel", str(os.cpu_count() or 1)],
        cwd=folder, env={**os.environ, "MESH_COMPILE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise CompileError((done.stdout + done.stderr)[-3000:])


def main() -> None:
    try:
        build(Path(sys.argv[1]))
    except CompileError as error:
        sys.exit(
            f"{error}\ncould not compile; it needs gcc and Python's headers (Debian: apt-get install gcc python3-dev)"
        )


if __name__ == "__main__":
    main()
