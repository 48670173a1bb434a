"""The figure of a study: every row's endpoints, and below them the evidence for the claims, paired differences."""

import math
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from prior3d.probes.statistics import Estimate
    from prior3d.study.comparing import Findings

_MOST_COLUMNS = 4
"""Number of endpoints side by side; further ones go into a band below."""

_BLUE, _GRAY, _ORANGE, _RED = "#1f5fa8", "#777777", "#c8651b", "#c03030"


def plot(findings: "Findings") -> Figure:
    """Plot a column per endpoint: means with the single seeds on top, paired differences from the baseline below."""
    matrix = findings.matrix
    names, rows = list(matrix.endpoints), list(matrix.rows)
    bands = math.ceil(len(names) / _MOST_COLUMNS)
    columns = math.ceil(len(names) / bands)
    figure = Figure(figsize=(1.6 + 2.9 * columns, bands * (1.6 + 0.5 * len(rows))), layout="constrained", dpi=150)
    panels = figure.subplots(2 * bands, columns, squeeze=False)
    for panel in panels.flat:
        panel.set_visible(False)  # the last band may have empty panels
    for index, name in enumerate(names):
        band, column = divmod(index, columns)
        above, below = panels[2 * band : 2 * band + 2, column]
        _values(above, findings, name)
        _differences(below, findings, name)
        for axis in (above, below):
            axis.set_visible(True)
            _style(axis, rows, labeled=column == 0)
    return figure


def _values(axis: "Axes", findings: "Findings", name: str) -> None:
    for height, row in enumerate(findings.matrix.rows):
        found = findings.estimate(row, name)
        if found is not None:
            _dot(axis, height, found, _color(findings, row))
            singles = list(findings.values(row, name).values())
            style = {"color": _color(findings, row), "ms": 1.8, "alpha": 0.6, "mew": 0}
            axis.plot(singles, [height + 0.25] * len(singles), "o", **style)
    better = "less" if findings.lower_is_better(name) else "more"
    axis.set_title(f"{name}: {findings.matrix.endpoints[name].metric}\n{better} is better", fontsize=8)
    axis.set_xlabel("mean, 95 % interval; small dots are seeds", fontsize=7)


def _differences(axis: "Axes", findings: "Findings", name: str) -> None:
    matrix, baseline = findings.matrix, findings.matrix.top.baseline
    axis.axvline(0, color=_ORANGE, lw=0.9, ls="--", zorder=0)
    for height, row in enumerate(matrix.rows):
        change = findings.change(row, baseline, name)
        if change is not None:
            _dot(axis, height, change.estimate, _color(findings, row))
    margin = _margin(findings, name)
    if margin is not None:
        worse = margin if findings.lower_is_better(name) else -margin
        axis.axvline(worse, color=_RED, lw=0.9, ls=":", zorder=0)
    says = "" if margin is None else "; dotted: margin"
    axis.set_xlabel(f"minus {baseline},\npaired, 95 % interval{says}", fontsize=7)


def _margin(findings: "Findings", name: str) -> float | None:
    endpoint = findings.matrix.endpoints[name]
    if endpoint.relative_margin is None:
        return endpoint.margin
    baseline = findings.estimate(findings.matrix.top.baseline, name)
    return None if baseline is None else endpoint.relative_margin * baseline.value


def _dot(axis: "Axes", height: int, found: "Estimate", color: str) -> None:
    axis.plot([found.low, found.high], [height, height], color=color, lw=1.6, solid_capstyle="butt")
    axis.plot(found.value, height, "o", color=color, ms=4.5)


def _color(findings: "Findings", row: str) -> str:
    top = findings.matrix.top
    return {top.initial: _GRAY, top.baseline: _ORANGE}.get(row, _BLUE)


def _style(axis: "Axes", rows: list[str], labeled: bool) -> None:
    axis.set_yticks(range(len(rows)), rows if labeled else [""] * len(rows), fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=7)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.grid(axis="x", color="#dddddd", lw=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
