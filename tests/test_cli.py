import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import prior3d.evaluation
import prior3d.pretraining
from prior3d import __version__
from prior3d.cli import evaluate, train
from prior3d.errors import UserError

MINE = "from prior3d import Prior\nclass MyPrior(Prior):\n    pass\n"
RECIPE = """\
backbone: {name: resnet10t}
data: {name: image_folder, size: [64, 64], views: 1, batch_size: 2, root: images}
priors: {my_prior: {}}
trainer: {max_steps: 1}
probes: {}
plugins: [mine.py]
"""
HEAVY = ("torch", "numpy", "pydantic", "lightning", "timm", "yaml")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def runs(monkeypatch):
    """What training was asked for; the training itself is tested in tests/pretraining."""
    calls = []

    def train(recipe, registry, out=None, begun=None, quiet=False):
        calls.append((recipe, registry, out, begun))
        return SimpleNamespace(stopped_by=None)

    monkeypatch.setattr(prior3d.pretraining, "train", train)
    return calls


def refused(capsys, *argv):
    """Run the command; return its one line on stderr."""
    before = sorted(Path().rglob("*"))
    assert train(argv) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("prior3d-train: ") and output.err.count("\n") == 1
    assert [path for path in sorted(Path().rglob("*")) if "__pycache__" not in path.parts] == before
    return output.err.removeprefix("prior3d-train: ").rstrip("\n")


@pytest.mark.parametrize(
    ("command", "option"), [("train", "--help"), ("train", "--list"), ("train", "--version"), ("evaluate", "--help")]
)
def test_answers_at_once_and_imports_nothing_heavy(command, option):
    program = (
        f"import sys; from prior3d.cli import {command}\n"
        f"try: {command}(sys.argv[1:])\nexcept SystemExit: pass\n"
        f"loaded = [name for name in {HEAVY} if name in sys.modules]; assert not loaded, loaded"
    )
    seconds = []
    for _ in range(3):
        before, children = time.perf_counter(), os.times()
        subprocess.run([sys.executable, "-c", program, option], check=True, stdout=subprocess.DEVNULL)
        busy = os.times().children_user + os.times().children_system - children.children_user - children.children_system
        # on a busy machine the clock counts the neighbours too, what the process itself used does not
        seconds.append(min(time.perf_counter() - before, busy))
    assert min(seconds) < 0.3


def test_the_installed_command_is_this_function():
    command = Path(sys.executable).with_name("prior3d-train")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"prior3d {__version__}\n"


def test_list_names_everything_with_its_origin_and_marks_what_cannot_work(folder, capsys, monkeypatch):
    info = folder / "site" / "acme-2.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 2.3\n")
    (info / "entry_points.txt").write_text("[prior3d.priors]\nview_invariance = acme:V\ngone = acme_gone:G\n")
    monkeypatch.syspath_prepend(str(folder / "site"))
    assert train(["--list", "--plugin", "mine.py"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "priors:"
    assert "  my_prior                 file mine.py" in lines
    assert "  gone                     acme 2.3  ! no module acme_gone" in lines
    assert "  view_invariance          acme 2.3  ! the name is taken 2 times" in lines
    assert f"  view_invariance          prior3d {__version__}  ! the name is taken 2 times" in lines
    assert f"  depth_regression         prior3d {__version__}" in lines
    assert {"datasets:", "probes:"} < set(lines)


def test_a_separately_installed_distribution_is_found_by_the_command(folder):
    info = folder / "site" / "acme-2.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 2.3\n")
    (info / "entry_points.txt").write_text("[prior3d.priors]\nacme_prior = acme_plugin:AcmePrior\n")
    (folder / "site" / "acme_plugin.py").write_text(MINE.replace("MyPrior", "AcmePrior"))
    text = RECIPE.replace("my_prior", "acme_prior").replace("plugins: [mine.py]\n", "")
    (folder / "r.yaml").write_text(text)
    command = [
        sys.executable,
        "-c",
        "import sys; from prior3d.cli import train; sys.exit(train())",
        "r.yaml",
        "--check",
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder / "site")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "r.yaml is fine\n", "")


def test_check_imports_the_plugins_and_trains_nothing(runs, capsys):
    assert train(["r.yaml", "--check"]) == 0
    assert capsys.readouterr().out == "r.yaml is fine\n"
    assert runs == []


def test_schema_is_json_that_knows_the_plugins(capsys):
    assert train(["--schema", "--plugin", "mine.py"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"my_prior", "view_invariance"} <= set(schema["properties"]["priors"]["properties"])


def test_a_recipe_with_overrides_anywhere_is_trained(runs, folder):
    (folder / "other.py").write_text(MINE.replace("MyPrior", "Other"))
    argv = ["seed=3", "--out", "here", "trainer.max_steps=7", "--plugin", "other.py"]
    assert train(["r.yaml", *argv]) == 0
    [(recipe, registry, out, begun)] = runs
    assert (recipe.seed, recipe.trainer.max_steps, out, begun) == (3, 7, Path("here"), None)
    assert {"my_prior", "other"} <= {plugin.name for plugin in registry.list("priors")}


@pytest.mark.parametrize(
    ("stopped_by", "status"), [(None, 0), ("SIGINT", 130), ("SIGTERM", 143), ("another rank", 130)]
)
def test_the_exit_status_says_what_stopped_the_run(monkeypatch, stopped_by, status):
    monkeypatch.setattr(prior3d.pretraining, "train", lambda *_, **__: SimpleNamespace(stopped_by=stopped_by))
    assert train(["r.yaml"]) == status


def test_a_run_is_resumed_with_its_own_recipe(runs, folder):
    (folder / "run").mkdir()
    text = RECIPE.replace("plugins: [mine.py]", f"plugins: [{folder / 'mine.py'}]").replace(
        "max_steps: 1", "max_steps: 5"
    )
    (folder / "run" / "recipe.yaml").write_text(text)
    assert train(["--resume", "run"]) == 0
    assert train(["--resume", "run", "trainer.max_steps=9"]) == 0
    for (recipe, _, out, begun), steps in zip(runs, (5, 9), strict=True):
        assert (recipe.trainer.max_steps, out, begun.files.path) == (steps, None, Path("run"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "which recipe? Give a YAML file or the name of a shipped recipe; --help says more"),
        (["r.yaml", "--bogus"], "unrecognized arguments: --bogus; --help names what there is"),
        (["r.yaml", "--out"], "argument --out: expected one argument; --help names what there is"),
        (["r.yaml", "seed"], "command line: expected key.path=value, got 'seed'"),
        (
            ["r.yaml", "priors.my_prior.x=1"],
            "command line: priors.my_prior.x: unknown key; there are prior, weight, warmup",
        ),
        (["r.yaml", "seed=x"], "command line: seed: expected an integer, got the text 'x'"),
        (["r.yaml", "--plugin", "no.py"], "--plugin: plugin file no.py cannot be read: No such file or directory"),
        (["--list", "--plugin", "no.py"], "plugin file no.py cannot be read: No such file or directory"),
        (["--resume", "run"], "--resume: run is no run folder: it holds no recipe.yaml"),
        (["--resume", "run", "r.yaml"], "--resume: a run that is resumed keeps its own recipe: leave out r.yaml"),
        (
            ["--resume", "run", "--out", "o"],
            "--resume: a run that is resumed stays in its folder: leave out --out o",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(capsys, runs, argv, message):
    assert refused(capsys, *argv) == message
    assert runs == []


@pytest.fixture
def evaluations(monkeypatch):
    """What evaluations were asked for; they are tested in tests/evaluation."""
    calls = []
    monkeypatch.setattr(prior3d.evaluation, "run", lambda arguments: calls.append((arguments, None)) or 0)
    monkeypatch.setattr(prior3d.evaluation, "draw", lambda *arguments: calls.append(arguments) or 0)
    return calls


def test_what_an_evaluation_is_asked_for(evaluations):
    argv = ["--probes", "depth", "normals", "data.rooms=3", "--against", "resnet18", "--seeds", "2", "--out", "here"]
    assert evaluate(["runs/a", "seed=1", *argv]) == 0
    [(arguments, _)] = evaluations
    assert (arguments.model, arguments.against, arguments.control) == ("runs/a", "resnet18", None)
    assert list(arguments.probes) == ["depth", "normals"] and sorted(arguments.overrides) == ["data.rooms=3", "seed=1"]
    assert (arguments.seeds, arguments.out, arguments.device) == (2, Path("here"), "auto")


def test_pictures_are_files_and_values_are_not(evaluations, folder):
    (folder / "a=b.png").touch()
    assert evaluate(["runs/a", "--pictures", "a=b.png", "photos", "data.size=[32,32]"]) == 0
    [(arguments, pictures)] = evaluations
    assert pictures == ["a=b.png", "photos"] and arguments.overrides == ["data.size=[32,32]"]


def test_an_evaluation_names_its_model(capsys):
    assert evaluate(["--probes", "depth"]) == 2
    line = "prior3d-eval: which model? Give a run folder, a weight file or a model of timm; --help says more\n"
    assert capsys.readouterr().err == line


def test_errors_of_a_run_are_located(capsys, monkeypatch):
    def run(*_, **__):
        raise UserError("no such folder", "data.root")

    monkeypatch.setattr(prior3d.pretraining, "train", run)
    assert refused(capsys, "r.yaml") == "r.yaml:2: data.root: no such folder"
    assert refused(capsys, "r.yaml", "data.root=x") == "command line: data.root: no such folder"


def test_interrupted(monkeypatch):
    def run(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(prior3d.pretraining, "train", run)
    assert train(["r.yaml"]) == 130


def test_a_bug_shows_its_traceback(monkeypatch):
    def run(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(prior3d.pretraining, "train", run)
    with pytest.raises(ZeroDivisionError):
        train(["r.yaml"])
