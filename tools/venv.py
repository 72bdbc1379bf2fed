"""A virtual environment with pip, also where Debian's python3-venv is missing and nobody is root.

python3 -m tools.venv .venv
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from tools import debs


def make(folder: Path) -> None:
    """Makes the environment, by the first way that this machine allows."""
    if importlib.util.find_spec("ensurepip"):
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
    elif importlib.util.find_spec("virtualenv"):
        _run(sys.executable, "-m", "virtualenv", "--quiet", str(folder))
    else:
        _run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder))
        _bring_pip(folder)


def _bring_pip(folder: Path) -> None:
    """pip out of Debian's own wheel, which is a program when put on the path."""
    package = debs.unpacked(debs.machine_apt(), ["python3-pip-whl"], "pip")
    wheels = sorted(package.glob("usr/share/python-wheels/pip-*.whl"))
    _run(str(folder / "bin" / "python"), f"{wheels[-1]}/pip", "install", "--quiet", str(wheels[-1]))


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def main() -> None:
    folder = Path(sys.argv[1])
    try:
        make(folder)
    except (debs.DebsError, IndexError, OSError, subprocess.CalledProcessError) as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        sys.exit(
            f"No virtual environment could be made ({error}).\n"
            f"Install Debian's package and try again: sudo apt-get install python{version}-venv"
        )


if __name__ == "__main__":
    main()
