"""Whole clusters on a virtual clock: the real scheduler and agents, a store and engines in memory, faults by a seed.

    chaos ──faults──► cluster ──what happened──► history ──► oracle ──violations──► story

`python -m tests.simulation --seed 7 --story` replays one run exactly.
"""
