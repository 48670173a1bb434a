"""The table in the terminal, and the number format of all reports."""

import math
from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from prior3d.probes.statistics import Estimate
from prior3d.reporting.comparison import Comparison, MetricRow, Pair, is_sure

_NUMBER = 5
"""Width of a number, characters."""

_STYLES = {"better": "green", "worse": "red", "unclear": "", "gained": ""}


def tabulate(comparison: Comparison, title: str) -> Group:
    """Return tables to print: a row per metric; models, their difference with half its 95 % interval, controls.

    Models whose features are concatenated have their own table; a single model has its own interval. An arrow marks
    metrics whose lower values are better. The tables are narrow, to fit into 80 characters.
    """
    first = comparison.pairs[0] if comparison.pairs else None
    single = [name for name in comparison.models if first is None or name in first]
    combined = [name for name in comparison.models if name not in single]
    controls = list(dict.fromkeys(name for section in comparison.sections for name in section.controls))
    tables = [_table(comparison, title, single, first, controls)]
    if combined:
        second = comparison.pairs[1] if len(comparison.pairs) > 1 else None
        tables.append(_table(comparison, "features side by side", combined, second, []))
    return Group(*tables)


def _table(comparison: Comparison, title: str, models: list[str], pair: Pair | None, controls: list[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column("metric", no_wrap=True)
    for column in models:
        table.add_column(column, justify="right", min_width=_narrowest(column))
    table.add_column("change ± 95 %" if pair else "± 95 %", justify="right", no_wrap=True)
    for column in controls:
        table.add_column(column, justify="right", min_width=_narrowest(column), style="dim")
    for section in comparison.sections:
        rows = [row for row in section.rows if any(name in row.columns for name in models)]
        if rows and len(comparison.sections) > 1:
            table.add_row(Text(section.task.label, style="bold"))
        for row in rows:
            change = _change(row, models[0], pair, section.controls)
            table.add_row(marked(row), *_values(row, models), change, *_values(row, controls))
        table.add_section()
    return table


def _narrowest(column: str) -> int:
    return max(_NUMBER, *(len(word) for word in column.split()))


def _values(row: MetricRow, columns: list[str]) -> list[str]:
    return [number(row.columns[name].value) if name in row.columns else "" for name in columns]


def _change(row: MetricRow, model: str, pair: Pair | None, controls: Sequence[str]) -> Text:
    found = row.columns.get(model) if pair is None else row.differences.get(pair)
    if found is None:
        return Text("")
    half = max(found.high - found.value, found.value - found.low)  # one side may be cut at the bounds of the metric
    half = f"± {number(half)}" if is_sure(found) else ""
    if pair is None:
        return Text(half)
    return Text(f"{number(found.value, True)} {half}".rstrip(), style=_STYLES[row.verdict(pair, controls)])


def marked(row: MetricRow) -> str:
    """Return a metric's name, with an arrow if lower values are better."""
    return row.metric + (" ↓" if row.lower_is_better else "")


def number(value: float, sign: bool = False) -> str:
    """Return a number with three decimals, or fewer if it is large."""
    if math.isnan(value):
        return "n/a"
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:{'+' if sign else ''}.{digits}f}"


def interval(found: Estimate, sign: bool = False) -> str:
    """Return "[low, high]", or nothing if the uncertainty is unknown."""
    return f"[{number(found.low, sign)}, {number(found.high, sign)}]" if is_sure(found) else ""
