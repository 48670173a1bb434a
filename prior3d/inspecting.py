"""`prior3d-data inspect`: what a folder is, what is in it, and what seems misread."""

import argparse
import inspect as signatures
from collections.abc import Iterable, Mapping
from pathlib import Path

from prior3d.data.inspecting.checks import check_sample
from prior3d.data.inspecting.findings import Finding
from prior3d.data.inspecting.page import SceneReport, write_page
from prior3d.data.inspecting.recipe_lines import recipe_line
from prior3d.data.inspecting.sample import take_sample
from prior3d.data.inspecting.summary import summary_lines
from prior3d.data.posed.formats import AUTO, existing_root, recognizing
from prior3d.data.posed.recorded import RecordedScenes
from prior3d.errors import ArgumentError, UserError, dotted
from prior3d.pretraining.building import build_dataset
from prior3d.recipe.reading import read_plugged
from prior3d.recipe.sections import DataSection
from prior3d.recipe.source import COMMAND_LINE, override
from prior3d.registry import Registry


def inspect(arguments: argparse.Namespace) -> int:
    """Print what a folder is and what its checks find; return 1 if they find something.

    Args:
        arguments: `root`, `overrides`, `html`, `frames` and `plugin` of the command line.

    Raises:
        UserError: The folder cannot be read.
    """
    if arguments.frames < 4:
        raise ArgumentError(f"expected at least 4 frames, got {arguments.frames}", "frames")
    root = existing_root(arguments.root).absolute()
    registry = Registry(arguments.plugin)
    section = _section(root, arguments.overrides, registry)
    dataset = build_dataset(section, registry, "train", 0)
    if not isinstance(dataset, RecordedScenes):
        raise UserError(f"'{section.name}' has no recordings to inspect: name posed", dotted("data", "name"))
    lines, reader_options = _what(root, section.options, registry)
    lines += dataset.describe()
    _print(lines)
    reports = []
    for scene in range(len(dataset.scenes)):
        reports.append(_scene(dataset, scene, arguments.frames, reader_options))
        _print(reports[-1].lines)
    if arguments.html is not None:
        write_page(arguments.html, root, lines, reports)
        print(f"page: {arguments.html}")
    found = sum(len(report.findings) for report in reports)
    print(f"{found} findings in {len(reports)} scenes" if found else "nothing found")
    return 1 if found else 0


def _section(root: Path, overrides: list[str], registry: Registry) -> DataSection:
    fixed = {"size": [240, 320], "batch_size": 1, "views": 1, "workers": 0}
    content: dict[str, object] = {"data": {"name": "posed", "root": str(root), "check_poses": "off", **fixed}}
    source = override(content, overrides, name="prior3d-data inspect", overrides_name=COMMAND_LINE)
    if unknown := [key for key in content if key != "data"]:
        raise UserError("only keys of data can be set here", unknown[0])
    return read_plugged(DataSection, content["data"], "data", "datasets", "name", registry, source=source)


def _what(root: Path, options: Mapping[str, object], registry: Registry) -> tuple[list[str], Mapping[str, object]]:
    """Return lines about the format, and the options of its reader with their values."""
    name = str(options.get("format", AUTO))
    found = recognizing(root) if name == AUTO else {}
    if name == AUTO:
        name = next(iter(found), AUTO)
    others = [other for other in found if other != name]
    lines = [f"{root}", f"format: {name}" + (f" (also recognized by {', '.join(others)})" if others else "")]
    parameters = signatures.signature(registry.get("readers", name, dotted("data", "format"))).parameters
    values = {key: one.default for key, one in parameters.items() if one.default is not one.empty}
    return lines, values | dict(options.get("reader") or {})


def _scene(dataset: RecordedScenes, scene: int, most: int, reader_options: Mapping[str, object]) -> SceneReport:
    if not dataset.frame_count(scene):
        return SceneReport(dataset.scenes[scene], [f"{dataset.scenes[scene]}: no frame can be used"], [], None)
    sample = take_sample(dataset, scene, most, _bar)
    camera = dataset.scene(scene).camera(0)
    findings = [(one, recipe_line(one, camera, reader_options)) for one in check_sample(sample)]
    lines = summary_lines(sample)
    for one, line in findings:
        lines += _finding_lines(one, line)
    lines += [f"  damaged: {one}" for one in sample.damaged]
    return SceneReport(sample.name, lines, findings, sample)


def _finding_lines(finding: Finding, line: str) -> list[str]:
    word = "finding" if finding.sure else "unusual"
    lines = [f"  {word}: {finding.kind} ({finding.figure})", f"    {finding.mend}"]
    return [*lines, f"    in the recipe: {line}"] if line else lines


def _print(lines: Iterable[str]) -> None:
    print("\n".join(lines), flush=True)


def _bar(items: Iterable, description: str, total: int) -> Iterable:
    from tqdm import tqdm

    return tqdm(items, description, total, delay=1.0, leave=False, disable=None)
