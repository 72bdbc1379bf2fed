"""What the lab asks of the system, and the error that says what it refused."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

NAME = "meshlab"
"""In front of every namespace, link and cgroup that is the lab's."""

FOLDER = Path("/var/lib/mesh-lab")
"""What is up, and each host's files. On a disk: engines keep their images there."""

NETWORK = "10.77.0"
"""Of the switch: the machine is .1, host i is .10+i."""

T = TypeVar("T")


class LabError(Exception):
    """What could not be done, with the system's own words."""


def need_root() -> None:
    """Raises `LabError` if this is not root."""
    if os.geteuid() != 0:
        raise LabError("the lab is made of network namespaces: run it as root")


def run(*command: str | Path, check: bool = True, text: str | None = None, env: Mapping[str, str] | None = None) -> str:
    """What the command says.

    Raises:
        LabError: if it fails, unless `check` is False.
    """
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, input=text, env=env)
    except FileNotFoundError:
        raise LabError(f"there is no `{command[0]}` on this machine; `make test` installs what the lab needs") from None
    if done.returncode and check:
        raise LabError(f"`{' '.join(map(str, command))}`: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def until(found: Callable[[], T | None], what: str, timeout: float = 30.0) -> T:
    """The first thing that `found` finds.

    Raises:
        LabError: if it finds none within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not (result := found()):
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout:g} s")
        time.sleep(0.02)
    return result
