import contextlib
import io
import json
import math
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

from prior3d.backbone import Backbone
from prior3d.contracts.dataset import DataSpec
from prior3d.errors import UserError
from prior3d.jobs.running import make_runner
from prior3d.recipe.yaml12 import dump, load
from prior3d.study.choosing import chosen_trials, gain, trial_values
from prior3d.study.command import main
from prior3d.study.comparing import Findings
from prior3d.study.matrix import TEST, TUNE, Unit
from prior3d.study.picture import plot
from prior3d.study.reading import read_matrix
from prior3d.study.records import Records
from prior3d.study.running import _Log
from prior3d.study.starting import Start, add_noise, take_statistics
from prior3d.study.unit import Bench
from prior3d_plugins.datasets.image_folder import ImageFolder

PLUGINS = '''
import os
from pathlib import Path

import numpy as np
import torch

from prior3d import DamagedFile, Dataset, UserError, View
from prior3d.contracts.prior import Prior
from prior3d.contracts.probe import Probe
from prior3d.contracts.scores import by_group


class Fragile(Prior):
    """Trains only where a file exists."""

    needs = ("image",)
    reads = frozenset({"dense"})

    def __init__(self, backbone, *, file: str, kill: bool = False) -> None:
        super().__init__(backbone)
        self.file, self.kill = Path(file), kill

    def forward(self, batch, features):
        if not self.file.exists():
            if self.kill:
                os._exit(7)
            raise RuntimeError("no such file yet")
        return features["image"].dense.square().mean(), {}


class Flawed(Dataset):
    """Two gray images, and a flaw that is found when they are verified or when the jobs are done."""

    splits = ("train", "validation", "test")

    def __init__(self, spec, *, flaw: str) -> None:
        super().__init__(spec)
        self.flaw, self.scenes = flaw, ["a"]

    def __len__(self):
        return 2

    def fingerprint(self, frames=None):
        return self.flaw

    def frame_count(self, scene):
        return 2

    def load(self, scene, frame, fields):
        return View({"image": np.full((48, 64, 3), 100 * frame, np.uint8)}, scene, frame)

    def sample(self, index, fields, generator):
        return [self.load(0, index % 2, fields)]

    def verify(self):
        if self.flaw == "files":
            raise UserError("the files do not fit together", "flaw")

    def jobs(self, fields):
        if self.flaw == "damage":
            self.note_damage([DamagedFile("third.png", "truncated")])
        yield ()


class Roughness(Probe):
    """How much features vary within an image, and the seed it was asked for."""

    lower_is_better = frozenset({"roughness"})
    seeded = True

    def measure(self, model, data, seed=0):
        maps = data.features(model, "held_out")[0]
        values = torch.stack([maps.take(torch.tensor([row]), "cpu").float().std() for row in range(len(maps))])
        names, groups = data.groups("held_out")
        ones = torch.ones(len(values))
        return by_group(names, groups, {"sum": values, "count": ones, "seed": ones * seed})

    def summarize(self, total):
        return {"roughness": float(total["sum"] / total["count"]), "seed": float(total["seed"] / total["count"])}
'''

MATRIX = """
title: A tiny study
base:
  backbone: {name: test_convnext2, decoder_stride: 4, channels: 16}
  data:
    name: synthetic_rooms
    size: [48, 64]
    batch_size: 2
    workers: 0
    rooms: 1
    validation_rooms: 1
    test_rooms: 2
    frames: 6
  trainer: {max_steps: 2, accelerator: cpu}
  probes:
    rough: {probe: roughness}
  plugins: [plugins.py]
rows:
  initial: {about: Random weights.}
  augmentation_invariance:
    about: Two crops of one image.
    priors: {augmentation_invariance: {}}
    trials: [{}, {optim: {lr: 1.0e-2}}]
  view_invariance:
    priors: {view_invariance: {}}
    trials: [{}, {priors: {view_invariance: {temperature: 0.3}}}]
stages:
  tune: {seeds: [100], split: validation}
  test: {seeds: [0, 1], split: test}
endpoints:
  smooth: {probe: rough, metric: roughness, relative_margin: 0.02}
compare: [{row: view_invariance, against: [augmentation_invariance, initial]}]
resamples: 100
"""


def command():
    return main


def write(folder, change=lambda content: None):
    content = load(MATRIX, "matrix").value
    content["base"]["data"]["cache"] = str(folder / "cache")
    change(content)
    (folder / "plugins.py").write_text(PLUGINS)
    path = folder / "tiny.yaml"
    path.write_text(dump(content))
    return path


def refused(folder, change):
    with pytest.raises(UserError) as caught:
        read_matrix(write(folder, change))
    assert "\n" not in str(caught.value) and "tiny.yaml" in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The file, the folder of results and the command of a study with a row that fails at first."""
    folder = tmp_path_factory.mktemp("study")
    row = {
        "priors": {"fragile": {"file": str(folder / "now")}},
        "trials": [{}, {"priors": {"fragile": {"kill": True}}}],
    }
    path = write(folder, lambda content: content["rows"].update(fragile=row))
    out = folder / "out"
    return path, out, command()


@pytest.fixture(scope="module")
def tuned(study):
    """What the stage tune of that study returned and printed."""
    path, out, main = study
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = main([str(path), "--out", str(out), "--jobs", "2", "--stage", "tune"])
    return status, said.getvalue()


def run(study, capsys, *arguments):
    path, out, main = study
    status = main([str(path), "--out", str(out), *arguments])
    return status, capsys.readouterr().out


@pytest.mark.slow
def test_a_study_from_trials_to_report(study, tuned, capsys):
    path, out, _ = study
    status, said = tuned
    assert status == 1  # the row `fragile` failed, and stopped nobody else
    assert "fragile, tune, trial 0, seed 100: FAILED: RuntimeError: no such file yet" in said
    assert "fragile, tune, trial 1, seed 100: FAILED: the worker process ended with exit code 7" in said
    records = Records(out, read_matrix(path))
    done = [unit for unit in records.matrix.units(TUNE) if records.done(unit)]
    assert len(done) == 5 and "fragile" not in {unit.row for unit in done}
    assert "fragile" not in chosen_trials(records)
    report(study, capsys, "before.md", ["failed: RuntimeError: no such file yet", "no trial could be chosen"])

    before = {file: file.stat().st_mtime_ns for file in out.rglob("units/*/*.json") if "fragile" not in str(file)}
    (path.parent / "now").touch()
    status, said = run(study, capsys)
    assert status == 0 and "tune: 7 units, 5 of them done already" in said and "test: 8 units, 0 of them" in said
    assert before == {file: file.stat().st_mtime_ns for file in before}  # what was done was not done again
    assert not (out / "scratch").exists()

    status, said = run(study, capsys, "--only", "initial")
    assert status == 0 and "test: 2 units, 2 of them done already" in said
    check_records(records)
    text = report(study, capsys, "results.md", ["All rows encode as many images", "Nothing."])
    for row in records.matrix.rows:
        assert text.count(f"| `{row}` |") >= 3, row
    assert text.count("| yes |") == 3
    assert "temperature: 0.3" in text and "lr: 0.01" in text
    assert "`view_invariance` | `augmentation_invariance` (best on validation) | smooth" in text or (
        "`view_invariance` | `initial` (best on validation) | smooth" in text
    )
    initial = [trial_value(records, "initial", seed) for seed in (0, 1)]
    assert f"| `initial` | {sum(initial) / 2:.3f} | {abs(initial[0] - initial[1]) / math.sqrt(2):.3f} |" in text
    assert (path.parent / "results.png").read_bytes().startswith(b"\x89PNG")
    check_changed_probe(study, capsys)


@pytest.mark.parametrize(("endpoints", "shape"), [(1, (2, 1)), (4, (2, 4)), (5, (4, 3))])
def test_endpoints_that_do_not_fit_side_by_side_go_into_a_band_below(endpoints, shape):
    metric = SimpleNamespace(metric="mIoU", margin=0.01, relative_margin=None)
    names, found = [f"endpoint {number}" for number in range(endpoints)], SimpleNamespace(value=0.5, low=0.4, high=0.6)
    matrix = SimpleNamespace(
        endpoints=dict.fromkeys(names, metric), rows=["a", "b"], top=SimpleNamespace(baseline="a", initial="b")
    )
    findings = SimpleNamespace(
        matrix=matrix,
        estimate=lambda row, name: found,
        values=lambda row, name: {0: 0.5},
        change=lambda row, baseline, name: SimpleNamespace(estimate=found),
        lower_is_better=lambda name: False,
    )
    figure = plot(findings)
    shown = [panel for panel in figure.axes if panel.get_visible()]
    assert figure.axes[0].get_gridspec().get_geometry() == shape and len(shown) == 2 * endpoints
    assert [panel.get_title().partition(":")[0] for panel in shown if panel.get_title()] == names
    assert all(panel.lines for panel in shown)


def report(study, capsys, name, lines):
    path = study[0].parent / name
    assert run(study, capsys, "--report", str(path))[0] == 0
    text = path.read_text()
    for line in lines:
        assert line in text
    return text


def check_changed_probe(study, capsys):
    """A probe whose source has changed measures again; until then its records can be read."""
    path, out, _ = study
    only, record = ("--only", "initial", "--stage", "test"), next(out.glob("units/initial/test-*seed0.json"))
    plugins = path.with_name("plugins.py")
    plugins.write_text(PLUGINS + "# measured another way\n")
    report(study, capsys, "changed.md", ["All rows encode as many images"])
    older = json.loads(record.read_text())
    del older["probe sources"]  # an earlier version did not write them down
    record.write_text(json.dumps(older))
    status, said = run(study, capsys, *only)
    assert status == 0 and "test: 2 units, 1 of them done already" in said
    assert "test: the source of a probe has changed since 1 of them ran" in said
    assert run(study, capsys, *only)[1].count("2 of them done already") == 1
    plugins.write_text(PLUGINS)


def trial_value(records, row, seed):
    total = records.scores(Unit(TEST, row, 0, seed), "rough").total()
    return float(total["sum"] / total["count"])


def check_records(records):
    """Pairs of seeds are paired, what is recorded is what ran, the best trial was chosen."""
    matrix = records.matrix
    chosen = chosen_trials(records)
    for row in ("augmentation_invariance", "view_invariance"):
        gains = [gain(records, row, trial) for trial in range(2)]
        assert not any(math.isnan(one) for one in gains) and chosen[row] == gains.index(max(gains))
        values = [trial_values(records, row, trial)["smooth"][0] for trial in range(2)]
        assert values[chosen[row]] == min(values)  # less is better
    first, second = (records.done(Unit(TEST, "initial", 0, seed)) for seed in (0, 1))
    assert first["scores"] != second["scores"]
    trained = records.done(Unit(TEST, "view_invariance", chosen["view_invariance"], 0))
    assert trained["encoder images"] == 2 * 2 * 2 and trained["steps"] == 2  # 2 steps of 2 pairs
    assert trained["teacher images"] == 0 and trained["losses"].keys() == {"view_invariance"}
    recipe = load(trained["recipe"], "recipe").value
    assert recipe["seed"] == 0 and recipe["probes"]["rough"]["split"] == "test"
    scores = [one["scores"]["rough"] for one in (first, second)]
    assert [one["statistics"]["seed"][0] / one["statistics"]["count"][0] for one in scores] == [0, 1]
    assert len(scores[0]["groups"]) == 2  # test rooms
    assert trained["scores"].keys() == {"rough"} and first["device"].startswith("CPU")
    assert json.loads((records.folder / "chosen.json").read_text()).keys() == matrix.rows.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("tuned")
def test_a_metric_that_no_probe_gives_ends_the_study_at_once(study):
    path, out, _ = study
    misspelled = path.with_name("misspelled.yaml")
    misspelled.write_text(path.read_text().replace("metric: roughness", "metric: roughnes"))
    record = next(out.glob("units/initial/tune-*.json"))
    log = _Log(Records(out, read_matrix(misspelled)), TUNE, 1)
    with pytest.raises(UserError, match="rough gives roughness, seed") as caught:
        log(Unit(TUNE, "initial", 0, 100), json.loads(record.read_text()), 1.0)
    assert caught.value.key == "endpoints.smooth.metric"


def test_the_choice_stands_once_the_test_was_opened(tmp_path):
    records = Records(tmp_path, read_matrix(write(tmp_path)))
    key = "-".join(records.matrix.key(Unit(TEST, "view_invariance", trial, 0)) for trial in range(2))
    (tmp_path / "chosen.json").write_text(json.dumps({"view_invariance": {"trial": 1, "key": key}}))
    assert chosen_trials(records) == {"initial": 0, "view_invariance": 1}
    (tmp_path / "chosen.json").write_text(json.dumps({"view_invariance": {"trial": 1, "key": "of another row"}}))
    assert chosen_trials(records) == {"initial": 0}


def test_the_test_is_not_opened_before_all_trials_were_tried(tmp_path, capsys):
    path = write(tmp_path)
    assert command()([str(path), "--out", str(tmp_path / "out"), "--stage", "test"]) == 2
    assert "run the stage tune first" in capsys.readouterr().err


def test_the_key_of_a_unit_changes_with_its_recipe_and_not_with_the_machine(tmp_path):
    def key(change=lambda content: None):
        return read_matrix(write(tmp_path, change)).key(Unit(TEST, "view_invariance", 0, 0))

    def without_another_row(content):
        del content["rows"]["augmentation_invariance"]
        content.update(baseline="initial", compare=[])

    own = key()
    assert key(lambda content: content["base"]["data"].update(cache="/elsewhere", workers=3)) == own
    assert key(without_another_row) == own
    assert key(lambda content: content["base"]["data"].update(rooms=2)) != own
    assert key(lambda content: content["base"].update(prepare={"runner": "processes", "workers": 2})) == own


def test_a_study_prepares_with_the_runner_that_it_names(tmp_path, monkeypatch):
    made = []

    def make(name, options, registry):
        made.append((name, options))
        return make_runner("local", {}, registry)  # quicker than other processes

    monkeypatch.setattr("prior3d.study.unit.make_runner", make)
    change = {"runner": "processes", "workers": 1}
    recipe = read_matrix(write(tmp_path, lambda content: content["base"].update(prepare=change)))
    bench = Bench(tmp_path / "scratch")
    bench.run(recipe.recipe(Unit(TEST, "initial", 0, 0)), "unit")
    bench.close()
    assert made == [("processes", {"workers": 1})]


def test_stages_lie_over_trials_over_rows_over_base(tmp_path):
    def change(content):
        content["base"]["optim"] = {"lr": 1.0, "warmup": 1}
        content["rows"]["view_invariance"]["optim"] = {"lr": 2.0}
        content["stages"]["tune"]["trainer"] = {"max_steps": 1}

    matrix = read_matrix(write(tmp_path, change))
    assert matrix.content(Unit(TEST, "view_invariance", 0, 7))["optim"] == {"lr": 2.0, "warmup": 1}
    assert matrix.content(Unit(TUNE, "augmentation_invariance", 1, 100))["optim"] == {"lr": 0.01, "warmup": 1}
    tuned = matrix.recipe(Unit(TUNE, "view_invariance", 1, 100))
    assert (tuned.trainer.max_steps, tuned.seed, tuned.probes["rough"].split) == (1, 100, "validation")
    assert tuned.priors["view_invariance"].options["temperature"] == 0.3
    assert matrix.recipe(Unit(TEST, "initial", 0, 0)).priors == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["rows"]["view_invariance"].update(trials=[{}]), "the same number of trials"),
        (lambda c: c["rows"]["initial"].update(trials=[{}, {}]), "nothing to try"),
        (lambda c: c["stages"]["test"].update(seeds=[1, 100]), "[100] also chose the trials"),
        (lambda c: c["stages"]["test"].update(seeds=[]), "expected seeds"),
        (lambda c: c["stages"].pop("tune"), "needs the stage test, and tune to choose one of several trials"),
        (lambda c: c["base"].update(priors={"view_invariance": {}}), "priors belong to rows"),
        (lambda c: c["rows"]["view_invariance"].update(optm={}), "did you mean 'optim'"),
        (lambda c: c["rows"]["view_invariance"]["priors"].update(view_invariance={"temprature": 1}), "temperature"),
        (lambda c: c.update(baseline="view_invarance"), "did you mean 'view_invariance'"),
        (lambda c: c["endpoints"]["smooth"].update(probe="depth"), "endpoints.smooth.probe"),
        (lambda c: c["endpoints"]["smooth"].update(margin=0.0), "endpoints.smooth.margin"),
        (lambda c: c["base"]["probes"]["rough"].update(seeds=2), "measures once per seed"),
        (lambda c: c.update(tile="x"), "did you mean 'title'"),
        (lambda c: c["rows"]["initial"].update(start={"nois": 0.1}), "did you mean 'noise'"),
        (lambda c: c["compare"][0].update(equal="smoth"), "did you mean 'smooth'"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, change, message):
    assert message in refused(tmp_path, change)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--jobs", "0"], "--jobs: expected a number of at least 1, got 0"),
        (["--jobs", "-2"], "--jobs: expected a number of at least 1, got -2"),
        (["--jobs", "many"], "argument --jobs: invalid int value: 'many'; see --help"),
        (["--bogus"], "unrecognized arguments: --bogus; see --help"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, capsys, argv, message):
    assert main([str(write(tmp_path)), "--out", str(tmp_path / "out"), *argv]) == 2
    assert capsys.readouterr() == ("", f"prior3d-study: {message}\n")
    assert not (tmp_path / "out").exists()


def test_help_has_the_whole_example(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    page = capsys.readouterr().out
    assert ended.value.code == 0
    assert "\n      view_invariance:\n        about: Two views of one point have one feature.\n" in page
    assert "see the beginning" not in page and "the YAML file, as described above" in page


def flawed_unit(folder, flaw, row="view_invariance", **data):
    def change(content):
        content["base"]["data"].update(data)
        content["base"]["probes"]["rough"]["data"] = {"name": "flawed", "flaw": flaw}

    return read_matrix(write(folder, change)).recipe(Unit(TEST, row, 0, 0))


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        ("files", "^probes.rough.data.flaw: the files do not fit together$"),
        ("damage", "^data.on_damage: damaged file third.png: truncated"),
    ],
)
def test_held_out_data_that_cannot_be_used_end_a_unit_before_it_trains(tmp_path, monkeypatch, flaw, message):
    monkeypatch.setattr(Bench, "_train", lambda *arguments: pytest.fail("trained"))
    with pytest.raises(UserError, match=message):
        Bench(tmp_path / "scratch").run(flawed_unit(tmp_path, flaw), "unit")


def test_damage_of_held_out_data_is_skipped_and_named_on_request(tmp_path, capsys):
    bench = Bench(tmp_path / "scratch")
    record = bench.run(flawed_unit(tmp_path, "damage", "initial", on_damage="skip"), "unit")
    bench.close()
    assert record["scores"]["rough"]["groups"] == ["a/0", "a/1"]
    assert capsys.readouterr().out.count("skipped: third.png: truncated") == 2  # in two splits


def test_start_lies_over_base_rows_and_stages_and_stays_out_of_recipes(tmp_path):
    def change(content):
        content["base"]["start"] = {"batch_norm": "training images"}
        content["rows"]["initial"]["start"] = {"noise": 0.1}

    matrix = read_matrix(write(tmp_path, change))
    noisy, trained = Unit(TEST, "initial", 0, 0), Unit(TEST, "view_invariance", 0, 0)
    assert matrix.start(noisy) == Start(0.1, "training images")
    assert matrix.start(trained) == Start(0.0, "training images")
    plain = read_matrix(write(tmp_path))
    assert plain.start(noisy) == Start() and plain.key(noisy) != matrix.key(noisy)
    assert plain.recipe(noisy) == matrix.recipe(noisy)


def make_backbone(seed):
    torch.manual_seed(seed)
    return Backbone("mobilenetv2_035", (32, 32))


def test_noise_has_the_spread_asked_for_and_is_another_for_each_seed():
    clean, noisy, other = make_backbone(0), make_backbone(0), make_backbone(0)
    add_noise(noisy, 0.1, 0)
    add_noise(other, 0.1, 1)
    for name, before in clean.encoder.named_parameters():
        after, by_another_seed = (dict(one.encoder.named_parameters())[name] for one in (noisy, other))
        if before.ndim == 1:
            assert torch.equal(before, after)
        elif before.numel() > 2000:
            assert float((after - before).detach().std() / before.detach().std()) == pytest.approx(0.1, rel=0.06)
            assert not torch.equal(after, by_another_seed)
    add_noise(again := make_backbone(0), 0.1, 0)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), noisy.parameters(), strict=True))
    add_noise(again := make_backbone(0), 0.0, 0)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), clean.parameters(), strict=True))


def test_batch_norm_begins_with_the_statistics_of_the_training_images(tmp_path):
    torch.manual_seed(0)
    for number in range(6):
        pixels = (255 * torch.rand(32, 32, 3) * (number + 1) / 6).byte().numpy()
        PIL.Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    dataset = ImageFolder(DataSpec((32, 32), 1, "train", tmp_path / "cache"), root=tmp_path)
    backbone = make_backbone(0).train()
    assert take_statistics(backbone, dataset) > 30 and backbone.training
    first, stem = backbone.encoder.model.bn1, backbone.encoder.model.conv_stem
    files = [torch.from_numpy(np.array(PIL.Image.open(tmp_path / f"{n}.png"))) for n in range(6)]
    images = torch.stack(files).movedim(-1, 1).float() / 255
    with torch.no_grad():
        into = stem((images - backbone.encoder.mean) / backbone.encoder.std)
    torch.testing.assert_close(first.running_mean, into.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)


def test_of_several_rows_the_one_nearest_in_a_value_is_compared(study, tmp_path):
    """`initial` and the baseline stand for two controls; planted results decide which is nearer."""
    path = write(
        tmp_path,
        lambda c: c.update(
            compare=[{"row": "view_invariance", "against": ["initial", "augmentation_invariance"], "equal": "smooth"}]
        ),
    )
    records = Records(tmp_path / "out", read_matrix(path))
    rough = {"initial": 1.0, "augmentation_invariance": 3.0, "view_invariance": 2.2}
    for stage, seeds in ((TUNE, [100]), (TEST, [0, 1])):
        for row, value in rough.items():
            for trial in range(len(records.matrix.rows[row].trials)):
                for seed in seeds:
                    total = {"sum": [2 * value, 0.0], "count": [2.0, 0.0], "seed": [0.0, 0.0]}
                    scores = {"groups": ["a", "b"], "statistics": total}
                    records.write(Unit(stage, row, trial, seed), {"scores": {"rough": scores}})
    findings = Findings(records)
    assert findings.compared_with(records.matrix.compare[0]) == "augmentation_invariance"
