"""The report as Markdown: the answer first, then a table per probe with the meaning of its metrics, figures, notes."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prior3d.contracts.probe import Probe
from prior3d.reporting.about import About, describe_data
from prior3d.reporting.comparison import Comparison, MetricRow, Pair, Section
from prior3d.reporting.table import interval, marked, number

_FEW = 10
"""Number of scenes below which an interval over them is rough."""

_FROZEN = (
    "Unless a probe says otherwise, features are frozen, and BatchNorm statistics were estimated again on the same"
    " images for every model."
)

_CAPTIONS = {
    "features/pca": "Features as colors: the first three principal components in ONE basis for all columns, so equal"
    " colors mean equal features.",
    "features/clusters": "Features in clusters (k-means of each model), colors matched between the columns.",
}


def to_markdown(comparison: Comparison, about: About, figures: Mapping[str, str], versions: Mapping[str, str]) -> str:
    """Return the text of report.md.

    Args:
        comparison: Numbers of the report.
        about: Other content of the report.
        figures: Dict from name to file, relative to the report.
        versions: Versions of the packages used.
    """
    lines = [f"# {about.title}", "", *_summary(comparison), "", "## What was measured", "", *_columns(about), ""]
    for section in comparison.sections:
        lines += [*_section(section, comparison), *_figures(section.task.label, figures), ""]
    if any(name.startswith("features/") for name in figures):
        lines += ["## Features", *_figures("features", figures), ""]
    notes = [*about.notes, *_notes_on(comparison)]
    lines += ["## Limits of these numbers", "", *(f"- {note}" for note in notes), ""]
    facts = {**about.facts, **versions}
    lines += ["## How", "", "; ".join(f"{name} {value}" for name, value in facts.items()) + ".", ""]
    return "\n".join(lines)


def _summary(comparison: Comparison) -> Iterator[str]:
    """Yield the answer: the first metric of each probe, and how many others change in the same direction."""
    pair = comparison.pairs[0] if comparison.pairs else None
    for section in comparison.sections:
        row = section.rows[0]
        if pair is None or pair not in row.differences:
            column = next(iter(row.columns))
            found = row.columns[column]
            yield f"- **{section.task.label}**, {marked(row)}: {number(found.value)} {interval(found)}".rstrip()
            continue
        after, before = pair
        values = f"{number(row.columns[before].value)} → {number(row.columns[after].value)}"
        change = row.differences[pair]
        yield (
            f"- **{section.task.label}**, {marked(row)}: {values}"
            f" ({number(change.value, True)} {interval(change, True)}".rstrip()
            + f"), {_judged(row, pair, section)}; {_counted(section, pair)}"
        )
    yield ""
    if pair:
        yield (
            "Brackets hold 95 % intervals. A change is called better or worse if its interval excludes 0; the intervals"
            " are not corrected for the number of metrics."
        )
        verdicts = (row.verdict(pair, section.controls) for section in comparison.sections for row in section.rows)
        if "gained" in verdicts:
            yield "Gained means surely better than before, but not better than a control, which needs no model."
    else:
        yield "Brackets hold 95 % intervals."


def _judged(row: MetricRow, pair: Pair, section: Section) -> str:
    """Return the verdict, with the best control if the model does not beat it."""
    unbeaten = row.unbeaten(pair[0], section.controls)
    against = f", but the control {unbeaten[0]} has {number(row.columns[unbeaten[0]].value)}" if unbeaten else ""
    return f"{row.verdict(pair, section.controls)}{against}"


def _counted(section: Section, pair: Pair) -> str:
    """Return how many metrics change in which direction, with the names of those that got worse."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "unclear": [], "gained": []}
    for row in section.rows:
        found[row.verdict(pair, section.controls)].append(row.metric)
    worse = f" ({'; '.join(found['worse'])})" if found["worse"] else ""
    counts = [f"{len(metrics)} {word}{worse if word == 'worse' else ''}" for word, metrics in found.items()]
    return f"of {len(section.rows)} metrics {', '.join(counts if found['gained'] else counts[:-1])}"


def _columns(about: About) -> Iterator[str]:
    yield "| column | what it is | weights (sha256) |"
    yield "|---|---|---|"
    for name, text in about.columns.items():
        facts = about.models.get(name, {})
        yield f"| {name} | {text} | {str(facts.get('sha256', ''))[:12]} |"


def _section(section: Section, comparison: Comparison) -> Iterator[str]:
    task = section.task
    yield f"## {task.label}"
    yield ""
    yield _explanation(task.probe)
    yield ""
    yield _data_line(section)
    yield ""
    pairs = [pair for pair in comparison.pairs if any(pair in row.differences for row in section.rows)]
    first = pairs[0] if pairs else None
    combined = [name for name in section.models if first and name not in first]
    yield from _table(section, [name for name in section.models if name not in combined], first, section.controls)
    meanings = dict.fromkeys(meaning for row in section.rows if (meaning := _meaning(task.probe, row.metric)))
    if meanings:
        yield ""
        yield from (f"- {meaning}" for meaning in meanings)
    if combined:
        yield ""
        yield "Does one add to the other? Both concatenated, against as many channels from a control:"
        yield ""
        yield from _table(section, combined, pairs[1] if len(pairs) > 1 else None, ())


def _table(section: Section, columns: Sequence[str], pair: Pair | None, controls: Sequence[str]) -> Iterator[str]:
    change = [_change_title(pair)] if pair else []
    header = ["metric", *columns, *change, *controls]
    yield f"| {' | '.join(header)} |"
    yield "|---|" + "---:|" * (len(header) - 1)
    for row in section.rows:
        if not any(name in row.columns for name in (*columns, *controls)):
            continue
        cells = [_value(row, name, True) for name in columns]
        cells += [_change(row, pair, controls)] if pair else []
        cells += [_value(row, name, False) for name in controls]
        yield f"| {marked(row)} | {' | '.join(cells)} |"


def _change_title(pair: Pair) -> str:
    ours, theirs = (f"({name})" if "+" in name else name for name in pair)
    return f"{ours} - {theirs}"


def _value(row: MetricRow, column: str, with_interval: bool) -> str:
    found = row.columns.get(column)
    if found is None:
        return ""
    spread = f" ± {number(found.spread)}" if found.seeds > 1 else ""
    return f"{number(found.value)}{spread} {interval(found) if with_interval else ''}".rstrip()


def _change(row: MetricRow, pair: Pair, controls: Sequence[str]) -> str:
    found = row.differences.get(pair)
    if found is None:
        return ""
    text, verdict = f"{number(found.value, True)} {interval(found, True)}".rstrip(), row.verdict(pair, controls)
    return text if verdict == "unclear" else f"**{text}** {verdict}"


def _data_line(section: Section) -> str:
    task, data = section.task, describe_data(section.task)
    height, width = data["image size"]
    parts = [
        f"{'measured on' if part == 'held_out' else 'trained on'} {_count(facts['images'], 'image')} of"
        f" {_count(facts['scenes'], 'scene')} ({facts['split']})"
        for part, facts in data.items()
        if isinstance(facts, dict) and (part == "held_out" or task.probe.trains)
    ]
    seeds = f"; {_count(task.seeds, 'seed')}" if task.probe.seeded else ""
    spread = ", ± is the standard deviation over them" if task.probe.seeded and task.seeds > 1 else ""
    return f"{data['dataset']}, {height} x {width} pixels: {'; '.join(parts)}{seeds}{spread}."


def _count(number_of: int, what: str) -> str:
    return f"{number_of} {what}{'' if number_of == 1 else 's'}"


def _figures(label: str, figures: Mapping[str, str]) -> Iterator[str]:
    for name, file in figures.items():
        if name.partition("/")[0] == label:
            caption = _CAPTIONS.get(name, f"{name.partition('/')[2]}: the same held-out images for every model.")
            yield from ("", f"![{name}]({file})", "", f"*{caption}*")


def _meaning(probe: Probe, metric: str) -> str:
    begin = max((begin for begin in probe.meanings if metric.startswith(begin)), key=len, default=None)
    return f"`{begin}`: {probe.meanings[begin]}" if begin else ""


def _explanation(probe: Probe) -> str:
    text = inspect.getdoc(type(probe)) or type(probe).__name__
    paragraphs = text.partition("\nArgs:")[0].partition("\nReference:")[0].strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _notes_on(comparison: Comparison) -> list[str]:
    """Return a sentence on each property of the measurements that limits the meaning of the numbers."""
    sections = comparison.sections
    notes = [
        *_on_groups(sections),
        *_of(
            (section for section in sections if section.task.parts["held_out"].spec.split == "validation"),
            "measured on the validation split, which is for choosing settings, not for reporting results.",
        ),
        *_of(
            (section for section in sections if section.task.probe.seeded and section.task.seeds == 1),
            "the probe drew its head, order or labels from one seed; more seeds show how much that matters (`seeds: 3`,"
            " or --seeds of prior3d-eval).",
        ),
    ]
    return [*notes, _FROZEN]


def _on_groups(sections: Iterable[Section]) -> Iterator[str]:
    one, few = [], []
    for section in sections:
        scenes = describe_data(section.task)["held_out"]["scenes"]
        if scenes == 1:
            one.append(section)
        elif scenes < _FEW:
            few.append(section)
    yield from _of(
        one,
        "a single scene or folder: the interval is over its images, which are alike; it says nothing about others.",
    )
    yield from _of(few, f"fewer than {_FEW} scenes: the interval over them is rough.")


def _of(sections: Iterable[Section], text: str) -> Iterator[str]:
    labels = [section.task.label for section in sections]
    if labels:
        yield f"{', '.join(labels)}: {text}"
