import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import prior3d.evaluation
import prior3d.pretraining
from prior3d import __version__
from prior3d.cli import evaluate, prepare, train
from prior3d.errors import UserError
from prior3d.recipe.help import describe, plugin_rows
from prior3d.registry import KINDS, Registry

MINE = '''
from dataclasses import dataclass
from typing import Annotated
from annotated_types import Gt
from prior3d import Prior

@dataclass(frozen=True)
class Margin:
    """Where it stops.

    Attributes:
        low: of the margin, pixels.
    """

    low: int
    high: int = 3

class MyPrior(Prior):
    """Pulls toward mine.

    Args:
        backbone: what it trains.
        strength: how hard, newtons.
        margin: where it stops.
    """

    def __init__(self, backbone, *, strength: Annotated[float, Gt(0)] = 3.0, margin: Margin | None = None):
        super().__init__(backbone)
'''
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


ANSWER = f"""
import sys
from prior3d import cli
try: getattr(cli, sys.argv[1])(sys.argv[2:])
except SystemExit: pass
loaded = [name for name in {HEAVY} if name in sys.modules]; assert not loaded, loaded
"""
IMPORT = f"import sys, prior3d; assert not set({HEAVY}) & set(sys.modules)"


def seconds_of(*command):
    """The least processor time of three runs: on a busy machine the clock counts the neighbors, too."""
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(seconds)


@pytest.mark.parametrize(
    "arguments",
    [["train", "--help"], ["train", "--list"], ["train", "--version"], ["evaluate", "--help"], ["prepare", "--help"]],
    ids=" ".join,
)
def test_answers_at_once_and_imports_nothing_heavy(arguments):
    assert seconds_of("-c", ANSWER, *arguments) < 0.3


def test_the_package_is_imported_at_once_and_imports_nothing_heavy():
    assert seconds_of("-c", IMPORT) < 0.3


@pytest.mark.parametrize(
    "command", ["prior3d-train", "prior3d-prepare", "prior3d-eval", "prior3d-study", "prior3d-data"]
)
def test_installed_commands_answer_at_once(command):
    assert seconds_of(Path(sys.executable).with_name(command), "--help") < 0.3


def test_help_on_a_section_loads_neither_torch_nor_timm():
    program = "import sys; from prior3d.cli import train; train(sys.argv[1:])\n"
    program += "assert not {'torch', 'timm', 'lightning', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program, "--help", "trainer"], check=True, stdout=subprocess.DEVNULL)


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
    assert "  my_prior                 file mine.py   Pulls toward mine." in lines
    assert "  gone                     acme 2.3       ! no module acme_gone" in lines
    assert "  view_invariance          acme 2.3       ! the name is taken 2 times" in lines
    assert f"  view_invariance          prior3d {__version__}  ! the name is taken 2 times" in lines
    (depth,) = (line for line in lines if line.startswith("  depth_regression "))
    assert depth.startswith(f"  depth_regression         prior3d {__version__}  Mean of three terms")
    assert {"datasets:", "probes:"} < set(lines)
    assert {line.partition(":")[0] for line in lines if not line.startswith(" ")} == set(KINDS)


def test_help_on_a_plugin_has_its_options_with_type_default_and_meaning(capsys):
    assert train(["--help", "my_prior", "--plugin", "mine.py"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["my_prior:", "a", "prior,", "file", "mine.py"] and lines[2] == ["Pulls", "toward", "mine."]
    assert ["strength", "number", "above", "0", "3.0", "how", "hard,", "newtons."] in lines
    assert ["margin.low", "integer", "required", "of", "the", "margin,", "pixels."] in lines
    assert ["weight", "number", "of", "at", "least", "0", "1.0"] in [line[:7] for line in lines]


@pytest.mark.parametrize("command", [train, prepare, evaluate])
def test_help_is_about_a_section_or_a_plugin_of_any_kind_in_every_command(command, capsys):
    assert command(["--help", "trainer"]) == 0
    assert "max_steps" in capsys.readouterr().out
    assert command(["--help", "probes/depth"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"depth: a probe, prior3d {__version__}\n\n")
    assert "metric depth" in page and "min_depth" in page


@pytest.mark.parametrize("name", [f"{p.kind}/{p.name}" for kind in KINDS for p in Registry().list(kind)])
def test_there_is_help_on_everything_built_in_and_every_option_has_a_meaning(name):
    registry = Registry()
    kind, _, rest = name.partition("/")
    rows = plugin_rows(registry.find(kind, rest), registry.get(kind, rest))
    assert [row.name for row in rows if not row.meaning] == []
    assert describe(registry, name, 90)


def test_help_on_what_there_is_not(capsys):
    assert refused(capsys, "--help", "my_pior", "--plugin", "mine.py") == (
        "no plugin 'my_pior', did you mean 'my_prior'? (`--list` names all plugins; the sections are backbone,"
        " optim, trainer, data, augment)"
    )
    assert refused(capsys, "--help", "probes/dept").startswith(
        "unknown probe 'dept', did you mean 'depth'? (there are: "
    )


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
        (["r.yaml", "--bogus"], "unrecognized arguments: --bogus; see --help"),
        (["r.yaml", "--out"], "argument --out: expected one argument; see --help"),
        (["r.yaml", "=3"], "command line: expected key.path=value, got '=3'"),
        (["r.yaml", "more.yaml"], "no recipe 'more.yaml': it is neither a file nor one of "),
        (["-", "-"], "standard input (-) can be read only once"),
        (
            ["r.yaml", "probes.depth=null", "priors.my_pior=null"],
            "command line: priors.my_pior: there is no such entry to remove, did you mean 'my_prior'?",
        ),
        (
            ["r.yaml", "priors.my_prior.x=1"],
            "command line: priors.my_prior.x: unknown key; there are strength, margin, prior, weight, warmup",
        ),
        (["r.yaml", "seed=x"], "command line: seed: expected an integer, got the text 'x'"),
        (["r.yaml", "--plugin", "no.py"], "--plugin: plugin file no.py cannot be read: No such file or directory"),
        (["r.yaml", "--help", "trainr"], "no plugin 'trainr', did you mean 'trainer'? "),
        (["--list", "--plugin", "no.py"], "plugin file no.py cannot be read: No such file or directory"),
        (["--resume", "run"], "--resume: run is not a run folder: it holds no recipe.yaml"),
        (["--resume", "run", "r.yaml"], "--resume: a resumed run keeps its own recipe: leave out r.yaml"),
        (
            ["--resume", "run", "--out", "o"],
            "--out: a resumed run stays in its folder: leave out o",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(capsys, runs, argv, message):
    line = refused(capsys, *argv)
    assert line == message or (message.endswith(" ") and line.startswith(message)), line
    assert runs == []


def test_recipes_are_laid_over_each_other_in_order(runs, folder):
    (folder / "more.yaml").write_text("trainer: {max_steps: 4, log_every: 2}\ndata: {views: 3}\n")
    (folder / "last.yaml").write_text("trainer: {max_steps: 9}\n")
    assert train(["r.yaml", "more.yaml", "last.yaml", "data.views=1"]) == 0
    [(recipe, *_)] = runs
    assert (recipe.trainer.max_steps, recipe.trainer.log_every, recipe.data.views) == (9, 2, 1)
    assert (recipe.data.batch_size, recipe.name) == (2, "r-more-last")


def test_a_recipe_from_standard_input(runs, folder, monkeypatch, capsys):
    def give(text):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    give(RECIPE)
    assert train(["-", "trainer.max_steps=2"]) == 0
    [(recipe, *_)] = runs
    assert (recipe.trainer.max_steps, recipe.name, recipe.plugins) == (2, "input", (folder / "mine.py",))
    give(RECIPE.replace("max_steps", "max_step"))
    assert refused(capsys, "-") == "standard input:4: trainer.max_step: unknown key, did you mean 'max_steps'?"
    give("seed: 0\ndata:\n\tname: x\n")
    assert refused(capsys, "-") == "standard input:3: indent with spaces, this line begins with a tab"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert refused(capsys, "-") == "standard input is not UTF-8 text"
    give(RECIPE)
    assert refused(capsys, "-", "trainer.devices=2") == (
        "command line: trainer.devices: every process reads the recipe, but only one can read standard input:"
        " name a file"
    )


@pytest.fixture
def evaluations(monkeypatch):
    """What evaluations were asked for; they are tested in tests/evaluation."""
    calls = []
    monkeypatch.setattr(prior3d.evaluation, "run", lambda arguments: calls.append((arguments, None)) or 0)
    monkeypatch.setattr(prior3d.evaluation, "plot", lambda *arguments: calls.append(arguments) or 0)
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
    line = "prior3d-eval: no model is given: name a run folder, a weight file or a timm model; see --help\n"
    assert capsys.readouterr().err == line


def test_errors_of_a_run_are_located(capsys, monkeypatch):
    def run(*_, **__):
        raise UserError("no such folder", "data.root")

    monkeypatch.setattr(prior3d.pretraining, "train", run)
    monkeypatch.setattr(prior3d.pretraining, "prepare_only", run)
    assert prepare(["r.yaml"]) == 2
    assert capsys.readouterr().err == "prior3d-prepare: r.yaml:2: data.root: no such folder\n"
    assert refused(capsys, "r.yaml") == "r.yaml:2: data.root: no such folder"
    assert refused(capsys, "r.yaml", "data.root=x") == "command line: data.root: no such folder"


def test_a_reader_that_has_seen_enough_is_no_error():
    program = "import sys; from prior3d.cli import train; sys.exit(train())"
    command = [sys.executable, "-c", program, "--list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


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
