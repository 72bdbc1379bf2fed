"""A virtual environment with pip, also where Debian's python3-venv is missing and nobody is root.

python3 -m tools.venv .venv
"""

from __future__ import annotations

import importlib.util
import os
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
    """pip out of Debian's own wheels, which run from where they lie."""
    packages = ["python3-pip-whl", "python3-setuptools-whl"]
    wheels = debs.unpacked(debs.machine_apt(), packages, "pip") / "usr" / "share" / "python-wheels"
    pip, setuptools = (str(next(wheels.glob(f"{name}-*.whl"))) for name in ("pip", "setuptools"))
    # Ubuntu's Python 3.11 has no distutils, which its pip wants: setuptools brings one.
    program = "import sys, runpy, setuptools; sys.argv[0] = 'pip'; runpy.run_module('pip', run_name='__main__')"
    os.environ |= {"PYTHONPATH": f"{pip}:{setuptools}", "SETUPTOOLS_USE_DISTUTILS": "local"}
    _run(str(folder / "bin" / "python"), "-c", program, "install", "--quiet", "--upgrade", "pip")


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
