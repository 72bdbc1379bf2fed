"""A lightweight service mesh and DNS-centric orchestrator for Docker hosts."""

__version__ = "0.1.0"
