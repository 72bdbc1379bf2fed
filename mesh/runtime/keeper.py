"""The keeper of a replica: a shell that starts the program in a session of its own, waits, and notes how it ended.

It writes into the replica's folder: `keeper` and `program`, each the line of /proc/<pid>/stat at the start (pid and
start time together name a process for good), and `exit`, the exit status. So nothing is lost while the agent is away.
Signals go to the program's group and never reach the keeper. Its own memory is some 0.1 MB.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mesh.runtime.process_table import ProcessId, readable

SETSID = shutil.which("setsid") or "/usr/bin/setsid"
SCRIPT = f"""\
read -r stat </proc/self/stat && echo "$stat" >"$0/keeper"
(read -r stat </proc/self/stat && echo "$stat" >"$0/program" && echo >&3 && exec 3>&- {SETSID} -- "$@" 2>&1)
echo $? >"$0/exit"
"""
"""`sh -c SCRIPT <folder> <program> <argument>…`; descriptor 3 tells the agent that the program has begun."""

DEFAULT_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that the agent, or Python, may ignore, and a program expects not to."""


async def run(folder: Path, command: Sequence[str], env: Mapping[str, str]) -> None:
    """Starts a keeper and waits until it has started the program (or has ended). Raises `OSError`."""
    begun, begin = os.pipe()
    try:
        _spawn(folder, command, env, begin)
        await readable(begun)
    finally:
        os.close(begun)


def _spawn(folder: Path, command: Sequence[str], env: Mapping[str, str], begin: int) -> None:
    """Hands the descriptor `begin` over to it."""
    try:
        os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", SCRIPT, str(folder), *command],
            env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(folder / "output.log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
                (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, begin, 3),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=DEFAULT_SIGNALS,
        )
    finally:
        os.close(begin)


def process(folder: Path, which: str) -> ProcessId | None:
    """The `keeper` or the `program`, if it was ever started."""
    with suppress(FileNotFoundError, ValueError):
        return ProcessId.parse((folder / which).read_text())
    return None


def exit_status(folder: Path) -> int | None:
    """None while the program runs, and for good if its keeper was killed."""
    with suppress(FileNotFoundError, ValueError):
        return int((folder / "exit").read_text())
    return None
