"""What pyproject.toml cannot say: with MESH_COMPILE=1 the proxy's hot path is compiled by mypyc (`make wheel`).

The same source, unchanged: without a compiler, and in every editable install, it is interpreted.
"""

import os

from setuptools import setup

HOT = (
    "backend", "balance", "body", "breaker", "exchange", "flow", "headers", "http1", "l4", "l7", "limit", "policy",
    "request_body", "retry", "ring", "route", "site", "stats", "timers", "trace", "tries", "tunnel", "upstream",
    "window",
)  # fmt: skip
"""Modules of mesh.proxy that every request or connection runs through."""

if os.environ.get("MESH_COMPILE") == "1":
    from mypyc.build import mypycify

    sources = [f"mesh/proxy/{module}.py" for module in HOT]
    setup(ext_modules=mypycify([*sources, "--ignore-missing-imports"], opt_level="3", group_name="mesh"))
else:
    setup()
