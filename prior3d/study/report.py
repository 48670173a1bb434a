"""The report: tables in Markdown and one figure, from all available results."""

import math
from collections.abc import Sequence
from pathlib import Path

from prior3d.recipe.yaml12 import dump
from prior3d.study.choosing import gain, trial_values
from prior3d.study.comparing import Change, Findings
from prior3d.study.matrix import TEST, TUNE
from prior3d.study.picture import plot
from prior3d.study.records import FAILED, Records


def write_report(records: Records, path: Path) -> None:
    """Write the report and its figure, in the same folder under the same name."""
    findings = Findings(records)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = path.with_suffix(".png")
    plot(findings).savefig(figure)
    parts = [
        f"## {records.matrix.top.title}",
        records.matrix.top.setting.strip(),
        _facts(findings),
        _rows(findings),
        f"![every row's endpoints, and its differences from the baseline, with 95 % intervals]({figure.name})",
        *(_endpoint(findings, name) for name in records.matrix.endpoints),
        _said(findings),
        _comparisons(findings),
        _trials(findings),
        _budget(findings),
        _missing(findings),
    ]
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _facts(findings: Findings) -> str:
    matrix, records = findings.matrix, findings.records
    done = [unit for unit in findings.all_units if records.done(unit)]
    devices = sorted({records.done(unit)["device"] for unit in done})
    hours = sum(records.seconds(unit) for unit in done) / 3600
    stages = [f"{name} ({stage.split} split) on seeds {_list(stage.seeds)}" for name, stage in matrix.stages.items()]
    recipe = matrix.base
    model, data, trainer = (recipe.get(section) or {} for section in ("backbone", "data", "trainer"))
    settled = (
        f"{model.get('name')} on {data.get('name')} at {' x '.join(map(str, data.get('size', ())))} pixels,"
        f" {trainer.get('max_steps')} steps of {data.get('batch_size')} x {data.get('views', 2)} views"
    )
    return (
        f"{settled}. {'; '.join(stages)}. {len(done)} units, {hours:.2f} hours as the sum over units (several ran side"
        f" by side), on {_list(devices) or 'no device yet'}."
        " Intervals are of 95 %, over seeds and test scenes (images where there is one scene); a difference is taken"
        " seed by seed and scene by scene. p is two-sided; adjusted by Holm's method over"
        f" {_list(matrix.holm)}. Spread is the standard deviation between seeds."
    )


def _rows(findings: Findings) -> str:
    rows = [[f"`{name}`", row.about or "-"] for name, row in findings.matrix.rows.items()]
    return table(["row", "what it is"], rows)


def _endpoint(findings: Findings, name: str) -> str:
    endpoint = findings.matrix.endpoints[name]
    better = "less is better" if findings.lower_is_better(name) else "more is better"
    kind = "primary" if endpoint.primary else "secondary"
    about = f"{endpoint.metric}, of the probe `{endpoint.probe}`; {better}."
    if endpoint.margin or endpoint.relative_margin:
        size = f"{endpoint.margin:g}" if endpoint.margin else f"{100 * endpoint.relative_margin:g} %"
        about += f" Not inferior means that the whole interval is less than {size} worse."
    return "\n\n".join([f"### {name} ({kind})", about, _values(findings, name), _differences(findings, name)])


def _values(findings: Findings, name: str) -> str:
    lines = []
    for row in findings.matrix.rows:
        found = findings.estimate(row, name)
        if found is None:
            lines.append([f"`{row}`", "not measured", "", "", ""])
            continue
        interval = f"{found.low:.3f} to {found.high:.3f}"
        lines.append([f"`{row}`", f"{found.value:.3f}", _number(found.spread), interval, str(found.seeds)])
    return table(["row", "mean", "spread", "95 % interval", "seeds"], lines)


def _differences(findings: Findings, name: str) -> str:
    """Return the table of differences from the two rows that every other row is compared with."""
    top, rows, head, lines = findings.matrix.top, findings.matrix.rows, ["row"], []
    references = {against: findings.adjusted(against, name) for against in (top.initial, top.baseline)}
    for against in references:
        head += [f"minus `{against}`", "p", "Holm's p", "margin"]
    for row in rows:
        cells = [
            _against(findings.change(row, against, name), adjusted.get(row)) for against, adjusted in references.items()
        ]
        if any(cell for one in cells for cell in one):
            lines.append([f"`{row}`", *(cell for one in cells for cell in one)])
    return table(head, lines) if lines else ""


def _against(change: Change | None, adjusted: float | None = None) -> list[str]:
    if change is None:
        return ["", "", "", ""]
    shown = f"{change.estimate.value:+.3f} ({change.estimate.low:+.3f} to {change.estimate.high:+.3f})"
    return [shown, _p(change.estimate.p), "" if adjusted is None else _p(adjusted), change.verdict or ""]


def _said(findings: Findings) -> str:
    """Return a line per trained row on its effects on the primary endpoints."""
    matrix = findings.matrix
    primary = [name for name, endpoint in matrix.endpoints.items() if endpoint.primary]
    lines = []
    for row in (name for name, one in matrix.rows.items() if one.trained):
        clauses = []
        for against in (matrix.top.initial, matrix.top.baseline):
            changes = [(name, findings.change(row, against, name)) for name in primary]
            said = [_sentence(findings, name, one) for name, one in changes if one is not None]
            if said:
                clauses.append(f"against `{against}`, {', '.join(said)}")
        if clauses:
            lines.append(f"- `{row}`: {'; '.join(clauses)}.")
    return "### In words\n\n" + "\n".join(lines) if lines else ""


def _sentence(findings: Findings, name: str, change: Change) -> str:
    adjusted = findings.adjusted(change.against, name).get(change.row)
    p, what = (change.estimate.p, "p") if adjusted is None else (adjusted, "Holm's p")
    size = f"{100 * abs(change.relative.value):.1f} % {'better' if change.better else 'worse'}"
    notes = [f"{what} {_p(p)}"]
    if change.verdict is not None and (p >= 0.05 or not change.better):
        notes.append("margin open" if change.verdict == "open" else f"{change.verdict} by the margin")
    return f"{name} {size}{'' if p < 0.05 else ' but not surely'} ({', '.join(notes)})"


def _comparisons(findings: Findings) -> str:
    matrix = findings.matrix
    lines = []
    for one in matrix.compare:
        against = findings.compared_with(one)
        how = f"nearest in {one.equal}" if one.equal else "best on validation"
        shown = f"`{against}`" + (f" ({how})" if len(one.against) > 1 else "")
        for name in matrix.endpoints:
            change = findings.change(one.row, against, name)
            if change is not None:
                cells = _against(change)
                lines.append([f"`{one.row}`", shown, name, cells[0], cells[1], cells[3]])
    if not lines:
        return ""
    return "### Further comparisons\n\nThose that the study's file lists; p is not adjusted.\n\n" + table(
        ["row", "against", "endpoint", "difference", "p", "margin"], lines
    )


def _trials(findings: Findings) -> str:
    matrix, records = findings.matrix, findings.records
    if TUNE not in matrix.stages:
        return ""
    measured = matrix.stages[TUNE].measure
    names = [name for name, one in matrix.endpoints.items() if measured is None or one.probe in measured]
    lines = []
    for row in matrix.rows.values():
        for trial, sections in enumerate(row.trials):
            values = trial_values(records, row.name, trial)
            cells = [_mean_and_spread(values[name]) for name in names]
            gained = f"{100 * gain(records, row.name, trial):+.1f} %" if row.trained else ""
            chosen = "yes" if row.trained and findings.chosen.get(row.name) == trial else ""
            lines.append([f"`{row.name}`", str(trial), _flat(sections), *cells, gained.replace("+nan %", "-"), chosen])
    head = ["row", "trial", "what differs", *names, "mean gain over initial", "chosen"]
    return (
        f"### Every trial, on the {matrix.stages[TUNE].split} split\n\nThe trial with the largest relative gain over"
        f" `{matrix.top.initial}`, mean over {_list(matrix.select)}, went to the test.\n\n" + table(head, lines)
    )


def _budget(findings: Findings) -> str:
    lines, records = [], findings.records
    found: dict[str, tuple[int, int]] = {}
    for row in findings.matrix.rows.values():
        done = [records.done(unit) for unit in findings.units(row.name)]
        if not done or not row.trained:
            continue
        images, steps, teacher = ([one[key] for one in done] for key in ("encoder images", "steps", "teacher images"))
        found[row.name] = (images[0], steps[0])
        seconds = [sum(one[f"{part} seconds"] for one in done) / len(done) for part in ("train", "probe")]
        cells = [f"{steps[0]:,}", f"{images[0]:,}", f"{max(teacher):,}", *(f"{one:.0f}" for one in seconds)]
        lines.append([f"`{row.name}`", *cells])
    if not lines:
        return ""
    head = ["row", "steps", "images through the encoder", "and through teachers", "s to train", "s to probe"]
    return "### Budget of one unit\n\n" + table(head, lines) + _unequal(found, findings.matrix.top.baseline)


def _unequal(found: dict[str, tuple[int, int]], baseline: str) -> str:
    if baseline not in found:
        return ""
    other = [f"`{name}`" for name, spent in found.items() if spent != found[baseline]]
    if not other:
        return "\n\nAll rows encode as many images with a gradient in as many steps."
    return f"\n\n**Unequal budget**: {', '.join(other)} not as many images or steps as `{baseline}`."


def _missing(findings: Findings) -> str:
    records, lines = findings.records, []
    for unit in findings.all_units:
        record = records.read(unit)
        if record is None or FAILED in record:
            lines.append(f"- {unit}: {'not run' if record is None else 'failed: ' + record[FAILED]}")
    lines += [
        f"- {name}, {TEST}: no trial could be chosen" for name in findings.matrix.rows if name not in findings.chosen
    ]
    return "### Failed or not run\n\n" + ("\n".join(lines) or "Nothing.")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _flat(sections: object) -> str:
    return " ".join(dump(sections).replace("\n", " ").split()) if sections else "as the row says"


def _mean_and_spread(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    if math.isnan(mean):
        return "failed or not run"
    spread = math.sqrt(sum((one - mean) ** 2 for one in values) / (len(values) - 1)) if len(values) > 1 else math.nan
    return f"{mean:.3f}" + ("" if math.isnan(spread) else f" (spread {spread:.3f})")


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _list(items: Sequence[object]) -> str:
    words = [str(item) for item in items]
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)
