"""The command line: one binary, `mesh`."""

from mesh.cli.app import main

__all__ = ["main"]
