"""`python -m mesh.cli` is `mesh`."""

from mesh.cli.app import main

main()
