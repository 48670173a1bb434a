import io
import json

import pytest
from matplotlib.figure import Figure
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prior3d.reporting import About, compare, tabulate, write_report
from prior3d.reporting.events import write_events

LOW, HIGH = [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3], [7, 8, 9, 7, 8, 9, 8, 7, 9, 9, 8, 7]
COLUMNS = ["before", "after", "before + after", "before + random"]
PAIRS = [("after", "before"), ("before + after", "before + random")]


def about(columns=COLUMNS):
    return About("a run", {name: f"text of {name}" for name in columns}, {"after": {"sha256": "ab" * 32}}, ("mind",))


@pytest.fixture
def comparison(make_task, make_results):
    columns = {"before": [LOW], "after": [HIGH], "before_+_after": [HIGH], "before_+_random": [LOW], "chance": [LOW]}
    return compare([make_task()], make_results(controls=("chance",), **columns), COLUMNS, PAIRS)


@pytest.fixture
def figures():
    return {"features/pca": Figure((1, 1)), "hits/right & wrong": Figure((1, 1))}


def test_the_report_says_what_was_found_on_what(comparison, figures, tmp_path):
    path = write_report(tmp_path / "new" / "eval", comparison, figures, about())
    text = path.read_text()
    assert "- **hits**, hit: 0.200 → 0.800 (+0.600 [" in text
    assert "better; of 2 metrics 2 better, 0 worse, 0 unclear" in text
    assert "| after | text of after | abababababab |" in text
    assert (
        "How often something is hit.\n\nIt is hit or it is not.\n\nRooms, 48 x 64 pixels: measured on 60 images" in text
    )
    assert "Args" not in text and "- `hit`: share of tries that hit" in text
    assert "| metric | before | after | after - before | chance |" in text
    assert "| metric | before + after | before + random | (before + after) - (before + random) |" in text
    assert "| missed ↓ | 0.800 [" in text and "- mind\n" in text
    for line in text.splitlines():
        if line.startswith("!["):
            assert (path.parent / line.partition("](")[2].rstrip(")")).is_file(), line
    assert text.count("](figures/") == 2


def test_the_json_holds_every_number(comparison, figures, tmp_path):
    write_report(tmp_path, comparison, figures, about())
    plain = json.loads((tmp_path / "report.json").read_text())
    assert plain["figures"] == {"features/pca": "figures/features-pca.png",
                                "hits/right & wrong": "figures/hits-right---wrong.png"}  # fmt: skip
    probe = plain["probes"]["hits"]
    assert probe["data"]["held_out"] == {"split": "test", "images": 60, "scenes": 12}
    metric = probe["metrics"]["missed"]
    assert metric["lower is better"]
    assert metric["columns"]["after"]["value"] == pytest.approx(0.2)
    assert metric["columns"]["after"]["spread over seeds"] is None  # one seed has none, and JSON has no NaN
    change = metric["differences"]["after - before"]
    assert change["interval"][0] < change["value"] < change["interval"][1] < 0 and change["verdict"] == "better"
    assert plain["versions"]["prior3d"] and plain["versions"]["torch"]


def test_a_second_report_replaces_the_first(comparison, figures, tmp_path):
    write_report(tmp_path, comparison, {**figures, "gone": Figure((1, 1))}, about())
    write_report(tmp_path, comparison, figures, about())
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"report.md", "report.json", "figures/features-pca.png", "figures/hits-right---wrong.png"}


@pytest.mark.parametrize(
    ("scenes", "split", "words"),
    [
        (1, "test", "hits: a single scene or folder: the interval is over its images"),
        (4, "test", "hits: fewer than 10 scenes"),
        (12, "validation", "hits: measured on the validation split"),
    ],
)
def test_what_limits_the_numbers_is_said(make_task, make_results, tmp_path, scenes, split, words):
    results = make_results(model=[LOW[:scenes]])
    comparison = compare([make_task(scenes, split=split)], results, ["model"], [])
    assert words in write_report(tmp_path, comparison, {}, about(["model"])).read_text()


def printed(comparison):
    """The words of each line that 80 characters hold."""
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tabulate(comparison, "title"))
    text = console.export_text()
    assert "…" not in text
    return [line.split() for line in text.splitlines()]


def test_the_tables_fit_into_80_characters(comparison):
    lines = printed(comparison)
    assert ["metric", "before", "after", "change", "±", "95", "%", "chance"] in lines
    first, both = (line for line in lines if line[:1] == ["hit"])
    assert first[:4] == ["hit", "0.200", "0.800", "+0.600"] and first[-1] == "0.200"
    assert both[:4] == ["hit", "0.800", "0.200", "+0.600"]


def test_one_model_alone_has_its_own_interval(make_task, make_results):
    lines = printed(compare([make_task()], make_results(model=[LOW]), ["model"], []))
    (row,) = (line for line in lines if line[:1] == ["hit"])
    assert row[:3] == ["hit", "0.200", "±"] and 0.03 < float(row[3]) < 0.08


@pytest.mark.parametrize("steps", [None, {"before": 0, "after": 100}])
def test_events_hold_every_metric_and_figure(comparison, figures, tmp_path, steps):
    write_events(tmp_path, comparison, figures, steps)
    (file,) = tmp_path.iterdir()  # nothing temporary is left
    events = EventAccumulator(str(file), size_guidance={"images": 0})
    events.Reload()
    assert len(events.Tags()["images"]) == 2
    if steps is None:
        assert events.Scalars("hits/hit/before + after")[0].value == pytest.approx(0.8)
    else:
        points = [(point.step, round(point.value, 3)) for point in events.Scalars("probes/hits/hit")]
        assert points == [(0, 0.2), (100, 0.8)]


def test_nothing_is_called_better_that_does_not_beat_a_control(make_task, make_results, tmp_path):
    results = make_results(controls=("raw_patches",), before=[LOW], after=[HIGH], raw_patches=[[9] * 12])
    comparison = compare([make_task()], results, ["before", "after"], PAIRS[:1])
    path = write_report(tmp_path, comparison, {}, about(["before", "after"]))
    text = path.read_text()
    headline = next(line for line in text.splitlines() if line.startswith("- **hits**"))
    assert (
        "gained, but the control raw patches has 0.900; of 2 metrics 0 better, 0 worse, 0 unclear, 2 gained" in headline
    )
    assert "Gained means surely better than before, but not better than a control" in text
    assert "** gained |" in text and "** better" not in text
    change = json.loads((tmp_path / "report.json").read_text())["probes"]["hits"]["metrics"]["hit"]["differences"]
    assert change["after - before"]["verdict"] == "gained"
    assert change["after - before"]["controls not beaten"] == ["raw patches"]


def test_the_metrics_that_got_worse_are_named(make_task, make_results, tmp_path):
    comparison = compare([make_task()], make_results(before=[HIGH], after=[LOW]), ["before", "after"], PAIRS[:1])
    text = write_report(tmp_path, comparison, {}, about(["before", "after"])).read_text()
    assert "worse; of 2 metrics 0 better, 2 worse (hit; missed), 0 unclear" in text
