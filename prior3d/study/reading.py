"""From a YAML file to a complete, fair and valid matrix: everything is checked before anything runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prior3d.errors import UserError
from prior3d.messages import described, unknown_key
from prior3d.recipe.reading import own_options
from prior3d.recipe.source import Source
from prior3d.recipe.yaml12 import load
from prior3d.study.matrix import (
    SECTIONS,
    START,
    TEST,
    TUNE,
    Endpoint,
    Matrix,
    RowComparison,
    Stage,
    StudyRow,
    Top,
    Unit,
)


def read_matrix(path: Path) -> Matrix:
    """Read and check a study's file, including all recipes.

    Raises:
        UserError: One line with file and key of the error.
    """
    try:
        document = load(path.read_text("utf-8"), path.name)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    source = Source(path.name, path.parent.absolute(), document.lines)
    with source.locating():
        matrix = _matrix(document.value, source)
        _check(matrix)
    for stage in matrix.stages:
        seed = matrix.stages[stage].seeds[0]
        for name, row in matrix.rows.items():
            for trial in range(len(row.trials)):
                unit = Unit(stage, name, trial, seed)
                matrix.recipe(unit), matrix.start(unit)
    return matrix


def _matrix(content: object, source: Source) -> Matrix:
    content = _mapping(content, None)
    parts = ("base", "rows", "stages", "endpoints", "compare")
    top = own_options(Top)
    for key in content:
        if key not in parts and key not in top.types:
            raise UserError(unknown_key(key, [*parts, *top.types]), key)
    given = {key: _mapping(content.get(key), key) for key in parts[:-1]}
    compare = [
        _section(RowComparison, one, f"compare[{index}]") for index, one in enumerate(content.get("compare") or ())
    ]
    return Matrix(
        top=Top(**top.validate({key: content[key] for key in content if key in top.types}, "")),
        base=_only_sections(given["base"], "base"),
        rows={name: _row(name, _mapping(row, f"rows.{name}")) for name, row in given["rows"].items()},
        stages={name: _stage(name, _mapping(stage, f"stages.{name}")) for name, stage in given["stages"].items()},
        endpoints={name: _section(Endpoint, one, f"endpoints.{name}") for name, one in given["endpoints"].items()},
        compare=tuple(compare),
        source=source,
    )


def _section(cls: type, given: object, key: str) -> Any:
    return cls(**own_options(cls).validate(_mapping(given, key), key))


def _row(name: str, given: Mapping[str, object]) -> StudyRow:
    key = f"rows.{name}"
    trials, at = given.get("trials", [{}]), f"{key}.trials"
    if not isinstance(trials, list) or not trials:
        raise UserError(f"expected a list of trials, {{}} for one that changes nothing, got {trials}", at)
    sections = {section: value for section, value in given.items() if section not in ("about", "trials")}
    return StudyRow(
        name,
        str(given.get("about") or ""),
        _only_sections(sections, key, ("about", "trials")),
        tuple(
            _only_sections(_mapping(one, f"{key}.trials[{i}]"), f"{key}.trials[{i}]") for i, one in enumerate(trials)
        ),
    )


def _stage(name: str, given: Mapping[str, object]) -> Stage:
    key = f"stages.{name}"
    if name not in (TUNE, TEST):
        raise UserError(f"unknown stage; the stages are {TUNE} and {TEST}", key)
    options = own_options(Stage).only(("seeds", "split", "measure"))
    own = {option: value for option, value in given.items() if option in options.types}
    sections = {section: value for section, value in given.items() if section not in own}
    return Stage(**options.validate(own, key), sections=_only_sections(sections, key, tuple(options.types)))


def _only_sections(given: Mapping[str, object], key: str, beside: tuple[str, ...] = ()) -> Mapping[str, object]:
    for section in given:
        if section not in (*SECTIONS, START):
            raise UserError(unknown_key(section, [*SECTIONS, START, *beside]), f"{key}.{section}")
    return given


def _mapping(given: object, key: str | None) -> Mapping[str, Any]:
    if not isinstance(given, Mapping | None):
        raise UserError(f"expected a section of keys, got {described(given)}", key)
    return given or {}


def _check(matrix: Matrix) -> None:
    """Refuse a matrix that would make a comparison unfair or impossible."""
    trained = {name: len(row.trials) for name, row in matrix.rows.items() if row.trained}
    if len(set(trained.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in trained.items())
        raise UserError(f"every row, the baseline too, needs the same number of trials, got {counts}", "rows")
    for name, row in matrix.rows.items():
        if not row.trained and len(row.trials) > 1:
            raise UserError("a row without priors is not trained and has nothing to try", f"rows.{name}.trials")
    if not trained or matrix.base.get("priors"):
        raise UserError(
            "priors belong to rows, and at least one row needs them", "rows" if not trained else "base.priors"
        )
    if TEST not in matrix.stages or (TUNE not in matrix.stages and max(trained.values()) > 1):
        raise UserError(f"needs the stage {TEST}, and {TUNE} to choose one of several trials", "stages")
    _check_seeds(matrix)
    _check_names(matrix)


def _check_seeds(matrix: Matrix) -> None:
    seeds = {name: stage.seeds for name, stage in matrix.stages.items()}
    for name, own in seeds.items():
        if not own or len(set(own)) != len(own):
            raise UserError(f"expected seeds, each once, got {list(own)}", f"stages.{name}.seeds")
    if shared := set(seeds.get(TUNE, ())) & set(seeds[TEST]):
        raise UserError(f"{sorted(shared)} also chose the trials: the test needs fresh ones", f"stages.{TEST}.seeds")


def _check_names(matrix: Matrix) -> None:
    def known(names: object, among: Mapping[str, object], key: str) -> None:
        for name in names:
            if name not in among:
                raise UserError(unknown_key(name, list(among)), key)

    probes = _mapping(matrix.base.get("probes"), "base.probes")
    known([matrix.top.initial], matrix.rows, "initial")
    known([matrix.top.baseline], matrix.rows, "baseline")
    known(matrix.top.holm or (), matrix.rows, "holm")
    known(matrix.top.select or (), matrix.endpoints, "select")
    for index, one in enumerate(matrix.compare):
        known([one.row, *one.against], matrix.rows, f"compare[{index}]")
        known([one.equal] if one.equal else [], matrix.endpoints, f"compare[{index}].equal")
    for name, endpoint in matrix.endpoints.items():
        known([endpoint.probe], probes, f"endpoints.{name}.probe")
        if endpoint.margin is not None and endpoint.relative_margin is not None:
            raise UserError("set only one margin, absolute or relative", f"endpoints.{name}.margin")
    for name, stage in matrix.stages.items():
        known(stage.measure or (), probes, f"stages.{name}.measure")
    tuned = matrix.stages.get(TUNE)
    missing = [
        name for name in matrix.select if tuned and matrix.endpoints[name].probe not in (tuned.measure or probes)
    ]
    if missing or not matrix.select:
        raise UserError(
            f"trials are chosen by {', '.join(missing) or 'no endpoint'}, which is not measured", "stages.tune"
        )
