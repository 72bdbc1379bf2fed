"""What the CLI prints: tables on a terminal, aligned plain text when piped, JSON when asked."""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

_STYLES = {
    "ready": "green", "active": "green", "idle": "green", "ok": "green",
    "running": "yellow", "starting": "yellow", "pulling": "yellow", "assigned": "yellow", "rolling": "yellow",
    "draining": "yellow", "warn": "yellow", "paused": "yellow", "pause": "yellow", "drain": "yellow",
    "failed": "red", "lost": "red", "fail": "red", "down": "red",
}  # fmt: skip
"""The colour of a word that stands alone in a cell."""

_PREFIXES = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")
_ANSI = {"cyan": 36, "magenta": 35, "green": 32, "yellow": 33, "blue": 34, "red": 31,
         "bright_cyan": 96, "bright_magenta": 95, "bright_green": 92}  # fmt: skip
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
"""ECMA-48 5.4: colours and the like."""


def colours(stream: TextIO | None = None) -> bool:
    """True if `stream` (standard output) is a terminal that wants colours (https://no-color.org)."""
    return (stream or sys.stdout).isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, stream: TextIO | None = None) -> str:
    """`text` in a colour, where `stream` shows colours."""
    return f"\x1b[{_ANSI[style]}m{text}\x1b[0m" if style and colours(stream) else text


def prefix_style(number: int) -> str:
    """The colour of the n-th source of interleaved lines."""
    return _PREFIXES[number % len(_PREFIXES)]


def printable(text: str) -> str:
    """`text` from elsewhere, without what would steer a terminal."""
    text = _CONTROL_SEQUENCE.sub("", text)
    return "".join(char if char.isprintable() or char in "\t\n" else "�" for char in text)


def foreign(text: str) -> str:
    """Somebody else's output: as it is when piped, `printable` on a terminal."""
    return printable(text) if sys.stdout.isatty() else text


def say(text: str = "") -> None:
    """One line of a result."""
    print(printable(text), flush=True)


def note(text: str) -> None:
    """One line beside the result: progress, hints."""
    print(printable(text), file=sys.stderr)


def error(text: str) -> None:
    """`error: what, where, what to do`."""
    print(f"{paint('error:', 'red', sys.stderr)} {printable(text)}", file=sys.stderr)


def clear() -> None:
    """An empty screen, on a terminal; what is piped goes on growing."""
    if sys.stdout.isatty():
        print("\x1b[H\x1b[2J\x1b[3J", end="")


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows under their columns; an empty cell shows as `-`."""
    cells = [[_cell(value) for value in row] for row in rows]
    if colours():
        _rich_table(columns, cells)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in ([column.upper() for column in columns], *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def _cell(value: object) -> str:
    return " ".join(printable(str(value)).split()) or "-" if value is not None else "-"


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.upper(), overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console(highlight=False).print(table)


def age(seconds: float) -> str:
    """How long ago, in one or two letters' worth: `5s`, `12m`, `3h`, `9d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"
