"""The table that every measurement prints."""

from collections.abc import Mapping, Sequence

Cell = float | str


def format_table(rows: Mapping[str, Mapping[str, Cell]], ratio: str, yardstick: str) -> str:
    """Return a table of measurements, with the ratio of one column to that of the yardstick's row.

    Args:
        rows: by name: {column: number or text}; a row may lack columns.
        ratio: column to compare.
        yardstick: name of the row to compare with.

    >>> print(format_table({"fast": {"s": 2.0}, "plain": {"s": 100.0, "note": "a guess"}}, "s", "plain"))
             s    ratio  note
    fast   2.0  x 0.020
    plain  100  x   1.0  a guess
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    columns.insert(columns.index(ratio) + 1, "ratio")
    base = rows[yardstick][ratio]
    full = {name: {**row, "ratio": row[ratio] / base} if ratio in row else row for name, row in rows.items()}
    lines = [["", *columns]] + [[name, *(_text(row.get(c, ""), c) for c in columns)] for name, row in full.items()]
    return "\n".join(_aligned(line, lines) for line in lines)


def _text(value: Cell, column: str) -> str:
    if isinstance(value, str):
        return value
    number = f"{value:.{max(0, 1 - _magnitude(value))}f}"
    return f"x{number:>6}" if column == "ratio" else number


def _magnitude(value: float) -> int:
    return int(f"{value:e}".split("e")[1])


def _aligned(line: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(other[column]) for other in lines) for column in range(len(line))]
    first, *others = (
        text.ljust(w) if i == 0 or i == len(line) - 1 else text.rjust(w)
        for i, (text, w) in enumerate(zip(line, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()
