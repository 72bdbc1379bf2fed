"""The entry point: runs a command, and says what went wrong in a sentence.

Exit codes: 0 it worked, 1 it failed, 2 invalid input or usage, 130 interrupted.
"""

import io
import sys

import typer

from mesh import __version__, console
from mesh.cli.base import Failed
from mesh.cli.base import app as app
from mesh.settings.sources import SettingsError
from mesh.spec.errors import SpecError
from mesh.store import StoreError

# The commands, in the order of the help.
from mesh.cli import daemons, desired, inspection, autoscale, replicas, planning, rollout, nodes, tools, cron  # noqa: F401  # isort: skip


def _show_version(wanted: bool) -> None:
    if wanted:
        console.say(f"mesh {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def main() -> None:
    """Runs the command that the arguments name; ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character shows another
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of `mesh` with these arguments."""
    try:
        return app(arguments, prog_name="mesh", standalone_mode=False) or 0
    except Failed as failed:
        return failed.report()
    except SpecError as invalid:
        return Failed(*invalid.errors, code=2).report()
    except SettingsError as invalid:
        return Failed(str(invalid), code=2).report()
    except StoreError as failure:
        return Failed(str(failure)).report()
    except typer.TyperException as usage:
        message = usage.format_message()  # empty where the help has just been shown instead
        return Failed(message, code=usage.exit_code).report() if message else usage.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return 130
