"""What every process needs before it can start: its state folder for itself, and a clear word where it cannot."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class StartError(Exception):
    """A process cannot start; the message says what is wrong and what to do."""


@contextlib.contextmanager
def locked(state: Path, remedy: str) -> Iterator[None]:
    """Holds the state folder for this process alone, until it ends in whatever way.

    Raises:
        StartError: if another process holds it; with `remedy`.
    """
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = open(state / "lock", "a+")  # noqa: SIM115 (held for the life of the process)
    except OSError as error:
        raise StartError(f"state folder {state}: {error.strerror}: choose another with --state") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StartError(f"{state} is in use by process {file.read().strip() or '?'}: {remedy}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
