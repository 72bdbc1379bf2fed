"""Load and replicas over time, as SVG written by hand: one panel for each rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.autoscale.fleet import TARGET, Run

_WIDTH, _PANEL, _GAP, _LEFT, _TOP = 900, 130, 50, 44, 30
_STEP = 5
"""Seconds of load in one point."""
_STYLE = """
text { font: 12px sans-serif; fill: #444 }
.load { fill: #cfd8e3 } .ready { fill: none; stroke: #c0392b; stroke-width: 1.2 }
.axis { stroke: #999; stroke-width: 0.5 } .short { fill: #c0392b }
"""


def svg(runs: Sequence[Run], titles: Sequence[str]) -> str:
    """For each run: what was carried, in replicas at their target, and the replicas that were ready; seconds that were
    short of capacity as marks at the top."""
    most = max(max(max(run.ready), float(run.load.in_flight.max()) / (TARGET * run.capacity)) for run in runs) * 1.05
    height = _TOP + len(runs) * (_PANEL + _GAP)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<style>{_STYLE}</style>",
    ]
    for number, (run, title) in enumerate(zip(runs, titles, strict=True)):
        body += _panel(run, title, _TOP + number * (_PANEL + _GAP), most)
    return "\n".join([*body, "</svg>", ""])


def _panel(run: Run, title: str, top: float, most: float) -> list[str]:
    seconds, bottom = run.load.seconds, top + _PANEL
    width = _WIDTH - _LEFT - 10

    def point(second: float, value: float) -> str:
        return f"{_LEFT + width * second / seconds:.1f},{bottom - _PANEL * value / most:.1f}"

    load = run.load.in_flight / (TARGET * run.capacity)
    means = [point(second, float(load[second : second + _STEP].mean())) for second in range(0, seconds, _STEP)]
    steps = [point(0, run.ready[0])]
    for second in range(1, seconds):
        if run.ready[second] != run.ready[second - 1]:
            steps += [point(second, run.ready[second - 1]), point(second, run.ready[second])]
    steps.append(point(seconds, run.ready[-1]))
    short = np.flatnonzero(run.load.in_flight > np.array(run.ready) * run.capacity)
    return [
        f'<text x="{_LEFT}" y="{top - 8}">{title}</text>',
        f'<polygon class="load" points="{point(0, 0)} {" ".join(means)} {point(seconds, 0)}"/>',
        f'<polyline class="ready" points="{" ".join(steps)}"/>',
        *(f'<rect class="short" x="{_LEFT + width * second / seconds:.1f}" y="{top - 5}" width="1.5" height="5"/>'
          for second in short),
        f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{_LEFT + width}" y2="{bottom}"/>',
        *(f'<text x="{_LEFT - 6}" y="{bottom - _PANEL * tick / most + 4:.1f}" text-anchor="end">{tick}</text>'
          for tick in (round(most / 2), round(most))),
        *(f'<text x="{_LEFT + width * minute * 60 / seconds:.1f}" y="{bottom + 15}">{minute} min</text>'
          for minute in range(0, seconds // 60, 15)),
    ]  # fmt: skip
