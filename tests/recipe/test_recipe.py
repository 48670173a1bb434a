import contextlib
import pickle
from pathlib import Path

import pytest

from prior3d.errors import ArgumentError, UserError, argument, on_command_line, section
from prior3d.pretraining.run import origins
from prior3d.recipe import Recipe, build_recipe, load_recipe
from prior3d.recipe.sections import AugmentOptions, OptimSection, PriorSection, ProbeSection
from prior3d.recipe.source import shipped_recipes
from prior3d.recipe.yaml12 import load
from prior3d.registry import Registry

TOYS = '''
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt

from prior3d import Dataset, Prior
from prior3d.contracts.probe import Probe


@dataclass(frozen=True)
class Pairs:
    overlap: float = 0.3


class ToyPrior(Prior):
    """A toy.

    Args:
        temperature: of nothing.
    """

    def __init__(
        self, backbone, *, temperature: Annotated[float, Gt(0)] = 0.07, negatives: Literal["pair", "batch"] = "pair"
    ):
        super().__init__(backbone)


class ToyRooms(Dataset):
    def __init__(self, spec, *, root: Path, pairs: Pairs = Pairs(), scenes: tuple[str, ...] = ()):
        super().__init__(spec)

    def __len__(self):
        return 1

    def fingerprint(self, frames=None):
        return ""

    def sample(self, draw, fields, generator):
        return []


class ToyProbe(Probe):
    def __init__(self, *, pixels: int = 6):
        self.pixels = pixels

    def measure(self, model, data):
        return {}
'''

RECIPE = """\
backbone: {name: resnet10t, decoder_stride: 4}
data:
  name: toy_rooms
  size: [96, 128]
  batch_size: 8
  root: frames
  scenes: [0010, 1e-3x]
priors:
  toy_prior:
    temperature: 0.2
  far: {prior: toy_prior, weight: 0.5, warmup: 10}
trainer: {max_steps: 3}
probes: {toy_probe: {pixels: 3}}
plugins: [toys.py]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path_factory, monkeypatch):
    """The current folder: holds recipe.yaml and, where the recipe looks for it, toys.py."""
    folder = tmp_path_factory.getbasetemp() / "recipes-of-tests"  # one for all: toys.py is imported once
    folder.mkdir(exist_ok=True)
    (folder / "toys.py").write_text(TOYS)
    (folder / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(folder)
    return folder


def message_of(text=RECIPE, overrides=(), plugins=()):
    Path("r.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe("r.yaml", overrides, plugins)
    return str(caught.value)


def changed(old, new):
    assert old in RECIPE
    return RECIPE.replace(old, new, 1)


def test_every_value_is_checked_and_every_default_filled_in(folder):
    recipe = load_recipe("r.yaml")
    assert recipe.name == "r"
    assert recipe.seed == 0
    assert (recipe.backbone.name, recipe.backbone.channels, recipe.backbone.ema) == ("resnet10t", 64, None)
    assert (recipe.data.size, recipe.data.views, recipe.data.on_damage) == ((96, 128), 2, "refuse")
    assert recipe.data.cache == Path.home() / ".cache" / "prior3d"
    assert recipe.data.augment == AugmentOptions()
    assert recipe.data.options == {
        "root": str(folder / "frames"), "pairs": {"overlap": 0.3}, "scenes": ["0010", "1e-3x"]
    }  # fmt: skip
    assert recipe.priors == {
        "toy_prior": PriorSection("toy_prior", 1.0, 0, {"temperature": 0.2, "negatives": "pair"}),
        "far": PriorSection("toy_prior", 0.5, 10, {"temperature": 0.07, "negatives": "pair"}),
    }
    assert recipe.optim == OptimSection()
    assert (recipe.trainer.max_steps, recipe.trainer.precision, recipe.trainer.accumulate) == (3, 32, 1)
    assert recipe.probes == {"toy_probe": ProbeSection("toy_probe", options={"pixels": 3})}
    assert recipe.plugins == (folder / "toys.py",)


def test_a_resolved_recipe_loads_as_the_same_from_any_folder(tmp_path, monkeypatch):
    augment = "data.augment={crop: [0.5, 1], hue: 0}"
    recipe = load_recipe("r.yaml", [augment, "optim={name: sgd, schedule: poly}", "backbone.timm_options={a: [1, x]}"])
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    monkeypatch.chdir("/")
    again = load_recipe(tmp_path / "again.yaml")
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()
    assert again.data.augment == AugmentOptions(crop=(0.5, 1.0), hue=0.0)
    assert build_recipe(recipe.to_dict()) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_keys_that_mean_nothing_in_a_recipe_are_not_written():
    written = load_recipe("r.yaml").to_dict()
    assert "momentum" not in written["optim"] and "poly_power" not in written["optim"]
    assert "last_n" not in written["backbone"]
    sgd = load_recipe("r.yaml", ["optim.name=sgd", "optim.momentum=0.8"])
    assert sgd.to_dict()["optim"]["momentum"] == sgd.optim.momentum == 0.8


def test_origins_of_what_a_recipe_uses(folder):
    recipe = load_recipe("r.yaml")
    lines = origins(recipe.uses(), Registry(recipe.plugins))
    version = Registry(recipe.plugins).find("priors", "toy_prior").version
    used = ("dataset 'toy_rooms'", "prior 'toy_prior'", "probe 'toy_probe'")
    assert lines == [f"{plugin} (file toys.py), {version}" for plugin in used]


def test_augment_null_switches_it_off_and_empty_sections_mean_defaults():
    text = changed("temperature: 0.2", "").replace("{pixels: 3}", "")
    Path("r.yaml").write_text(text)
    recipe = load_recipe("r.yaml", ["data.augment=null", "optim="])
    assert recipe.data.augment is None
    assert recipe.priors["toy_prior"].options["temperature"] == 0.07
    assert recipe.probes["toy_probe"].options == {"pixels": 6}
    assert recipe.optim == OptimSection()


def test_there_are_no_probes_unless_said():
    assert load_recipe("r.yaml", ["probes={}"]).probes == {}
    Path("r.yaml").write_text(changed("probes: {toy_probe: {pixels: 3}}\n", ""))
    assert load_recipe("r.yaml").probes == {}


def test_paths_are_relative_to_the_file_that_gives_them_and_to_the_current_folder_on_the_command_line(tmp_path, folder):
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "more.yaml").write_text("data: {root: other}\nbackbone: {weights: w.pt}\nplugins: [own.py]\n")
    for place in (here, tmp_path):
        (place / "own.py").write_text("from prior3d import Prior\nclass OwnPrior(Prior): ...\n")
    with contextlib.chdir(here):
        first = load_recipe(folder / "r.yaml", ["priors.own_prior={}"], ["own.py"])
        both = load_recipe([folder / "r.yaml", tmp_path / "more.yaml"], [f"plugins=[{folder}/toys.py]"])
        over = load_recipe(
            folder / "r.yaml", ["data.root=x", "backbone.weights=../w.pt", f"plugins=[own.py, {folder}/toys.py]"]
        )
    assert first.data.options["root"] == str(folder / "frames")
    assert first.plugins == (folder / "toys.py", here / "own.py")
    assert (both.data.options["root"], both.backbone.weights) == (str(tmp_path / "other"), tmp_path / "w.pt")
    assert over.data.options["root"] == str(here / "x")
    assert over.backbone.weights == here / "../w.pt"
    assert over.plugins[0] == here / "own.py"


@pytest.mark.parametrize("format", ["sevenscenes", "auto"])
def test_paths_among_the_options_of_a_reader_are_relative_to_the_file_too(tmp_path, folder, format):
    (folder / "scans" / "attic").mkdir(parents=True, exist_ok=True)
    (folder / "scans" / "attic" / "frame-000000.color.png").touch()
    (folder / "scans" / "attic" / "frame-000000.depth.png").touch()
    (folder / "scans" / "attic" / "frame-000000.pose.txt").touch()
    text = "plugins: [toys.py]\nbackbone: {name: resnet18}\ntrainer: {max_steps: 1}\npriors: {toy_prior: {}}\n"
    data = f"name: posed, root: scans, format: {format}, reader: {{intrinsics: k.txt}}"
    (folder / "posed.yaml").write_text(f"{text}data: {{{data}, size: [32, 32], batch_size: 1}}\n")
    with contextlib.chdir(tmp_path):
        recipe = load_recipe(folder / "posed.yaml")
        over = load_recipe(folder / "posed.yaml", ["data.reader.intrinsics=k.txt"])
        with pytest.raises(UserError, match=r"data\.reader\.intrinsic: unknown key, did you mean 'intrinsics'"):
            load_recipe(folder / "posed.yaml", ["data.reader.intrinsic=k.txt"])
        with pytest.raises(UserError, match=r"data\.format: unknown reader 'sevenscene', did you mean 'sevenscenes'"):
            load_recipe(folder / "posed.yaml", ["data.format=sevenscene"])
    assert recipe.data.options["reader"] == {"intrinsics": str(folder / "k.txt")}
    assert over.data.options["reader"] == {"intrinsics": str(tmp_path / "k.txt")}


def test_home_and_variables_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCANS", str(tmp_path))
    monkeypatch.setenv("SUB", "a$b")
    Path("r.yaml").write_text(changed("root: frames", "root: ${SCANS}/x\n  cache: ~/c"))
    recipe = load_recipe("r.yaml", ["backbone.weights=$SCANS/$SUB/$$5.pt"])
    assert recipe.data.options["root"] == str(tmp_path / "x")
    assert recipe.data.cache == Path("/home/me/c")
    assert recipe.backbone.weights == tmp_path / "a$b" / "$5.pt"
    assert build_recipe(recipe.to_dict()) == recipe
    monkeypatch.delenv("SCANS")
    assert message_of(changed("root: frames", "root: $SCANS/x")) == (
        "r.yaml:6: data.root: the variable $SCANS is not set (write $$ for a dollar sign)"
    )
    assert message_of(changed("[toys.py]", "[toys.py, $SCANS.py]")) == (
        "r.yaml:14: plugins[1]: the variable $SCANS is not set (write $$ for a dollar sign)"
    )
    assert message_of(changed("root: frames", "root: ~no-such-user/x")).startswith(
        "r.yaml:6: data.root: ~no-such-user/x:"
    )


@pytest.fixture
def more():
    """A recipe that is laid over r.yaml."""
    return Path("more.yaml").write_text


def test_later_files_win_key_by_key_and_lists_are_replaced_as_a_whole(more):
    more("data:\n  scenes: [one]\npriors:\n  far: {weight: 2}\n  near: {prior: toy_prior}\nprobes: {toy_probe: null}\n")
    recipe = load_recipe(["r.yaml", "more.yaml"], ["seed=2"])
    assert recipe.name == "r-more" and recipe.seed == 2
    assert (recipe.data.options["scenes"], recipe.data.batch_size) == (["one"], 8)
    assert (recipe.priors["far"].weight, recipe.priors["far"].warmup) == (2.0, 10)
    assert list(recipe.priors) == ["toy_prior", "far", "near"]
    assert recipe.probes == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {max_steps: x}\n", "more.yaml:1: trainer.max_steps: expected an integer, got the text 'x'"),
        ("seed: 1\ndata: {sizes: 1}\n", "more.yaml:2: data.sizes: unknown key, did you mean 'size'?"),
        ("seed: 1\nseed: 2\n", "more.yaml:2: seed: given twice, first in line 1"),
        ("seed: 1\npriors: {far: {prior: null}}\n", "more.yaml:2: priors.far.prior: unknown prior 'far' "),
        ("data: {pairs: {overlap: 1}}\nprobes: {other: {pixels: 1}}\n", "more.yaml:2: probes.other: unknown probe "),
        ("priors: {toy_prior: null, far: null}\n", "more.yaml:1: priors: a recipe needs at least one prior; "),
        ("trainer: null\n", "more.yaml:1: trainer.max_steps: required, but not given"),
        ("data: {size: null}\n", "more.yaml:1: data.size: required, but not given"),
        ("priors: {far: {warmup: x}}\n", "more.yaml:1: priors.far.warmup: expected an integer, got the text 'x'"),
        ("seed: 1\noptim: {clip: x}\n", "more.yaml:2: optim.clip: expected a number, got the text 'x'"),
        ("data: {pairs: 3}\n", "more.yaml:1: data.pairs: expected a section of keys, got 3"),
    ],
)  # fmt: skip
def test_mistakes_are_placed_in_the_file_that_made_them(more, text, message):
    more(text)
    with pytest.raises(UserError) as caught:
        load_recipe(["r.yaml", "more.yaml"])
    found = str(caught.value)
    assert found == message or (message.endswith(" ") and found.startswith(message)), found


def test_null_takes_entries_and_options_away():
    Path("r.yaml").write_text(changed("root: frames", "root: frames\n  pairs: {overlap: 0.1}\n  on_damage: skip"))
    recipe = load_recipe(
        "r.yaml",
        ["priors.far=null", "probes.toy_probe=null", "data.on_damage=null", "data.pairs.overlap=null", "data.scenes=",
         "data.augment=null", "priors.toy_prior.temperature=null"],
    )  # fmt: skip
    assert (list(recipe.priors), recipe.probes) == (["toy_prior"], {})
    assert (recipe.data.on_damage, recipe.data.options["pairs"], recipe.data.options["scenes"]) == (
        "refuse",
        {"overlap": 0.3},
        [],
    )
    assert recipe.data.augment is None  # null is a value of its own there
    assert recipe.priors["toy_prior"].options["temperature"] == 0.07


def test_null_in_a_single_file_takes_nothing_away():
    assert message_of(changed("temperature: 0.2", "temperature:")) == (
        "r.yaml:10: priors.toy_prior.temperature: expected a number, got null"
    )


def test_a_shipped_recipe_is_found_by_its_name():
    assert "joint" in shipped_recipes()
    for name, file in shipped_recipes().items():
        assert isinstance(load(file.read_text(), name).value, dict)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("joimt", ", did you mean 'joint'?"),
        ("missing.yaml", "no recipe 'missing.yaml': it is neither a file nor one of "),
        (".", "no recipe '.': it is neither a file nor one of "),
    ],
)
def test_a_recipe_that_is_not_there(name, message):
    with pytest.raises(UserError) as caught:
        load_recipe(name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad.yaml: expected a recipe, a mapping of sections; it is empty"),
        (b"- a\n", "bad.yaml: expected a recipe, a mapping of sections; got a list"),
        (b"seed: 0\nseed: 1\n", "bad.yaml:2: seed: given twice, first in line 1"),
        (b"seed: '\xff'\n", "bad.yaml is not UTF-8 text"),
    ],
)
def test_files_that_are_no_recipes(content, message):
    Path("bad.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_recipe("bad.yaml")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trainer:", "trainr:", "r.yaml:12: trainr: unknown key, did you mean 'trainer'?"),
        ("trainer: {max_steps: 3}\n", "", "r.yaml: trainer.max_steps: required, but not given"),
        ("max_steps: 3", "max_step: 3", "r.yaml:12: trainer.max_step: unknown key, did you mean 'max_steps'?"),
        ("max_steps: 3", "max_steps: true", "r.yaml:12: trainer.max_steps: expected an integer, got true"),
        ("max_steps: 3", "max_steps: '12'", "r.yaml:12: trainer.max_steps: expected an integer, got the text '12'"),
        ("max_steps: 3", "max_steps: 0x10", "r.yaml:12: trainer.max_steps: expected an integer, got the text '0x10'"),
        ("max_steps: 3", "max_steps: 0", "r.yaml:12: trainer.max_steps: expected a number of at least 1, got 0"),
        ("{max_steps: 3}", "3", "r.yaml:12: trainer: expected a section of keys, got 3"),
        ("name: resnet10t, ", "", "r.yaml:1: backbone.name: required, but not given"),
        ("name: toy_rooms", "nam: toy_rooms", "r.yaml:2: data.name: required, but not given"),
        ("name: toy_rooms", "name: [toy_rooms]", "r.yaml:3: data.name: expected text, got a list"),
        (
            "name: toy_rooms", "name: toy_room",
            "r.yaml:3: data.name: unknown dataset 'toy_room', did you mean 'toy_rooms'? ",
        ),
        ("size: [96, 128]", "size: [96]", "r.yaml:4: data.size: expected 2 items, got 1"),
        ("size: [96, 128]", "size:\n  - 96\n  - 1.5", "r.yaml:6: data.size[1]: expected an integer, got 1.5"),
        ("batch_size", "batch_sise", "r.yaml:5: data.batch_sise: unknown key, did you mean 'batch_size'?"),
        (
            "root: frames\n", "pairs: {overlop: 1}\n  root: x\n",
            "r.yaml:6: data.pairs.overlop: unknown key, did you mean 'overlap'?",
        ),
        ("  root: frames\n", "", "r.yaml:2: data.root: required, but not given"),
        ("scenes: [0010,", "scenes: [10,", "r.yaml:7: data.scenes[0]: expected text, got 10"),
        (
            "root: frames", "root: frames\n  augment: {crop: [0, 1]}",
            "r.yaml:7: data.augment: expected crop: [least, greatest] with 0 < least <= greatest <= 1, got [0.0, 1.0]",
        ),
        (
            "root: frames", "root: x\n  augment: {hue: .nan}",
            "r.yaml:7: data.augment.hue: expected a finite number, got nan",
        ),
        (
            "temperature", "temperatur",
            "r.yaml:10: priors.toy_prior.temperatur: unknown key, did you mean 'temperature'?",
        ),
        (
            "temperature", "xyz",
            "r.yaml:10: priors.toy_prior.xyz: unknown key; there are temperature, negatives, prior, weight, warmup",
        ),
        ("temperature", "weigth", "r.yaml:10: priors.toy_prior.weigth: unknown key, did you mean 'weight'?"),
        (
            "temperature: 0.2", "temperature: 0",
            "r.yaml:10: priors.toy_prior.temperature: expected a number above 0, got 0",
        ),
        (
            "temperature: 0.2", "temperature: .inf",
            "r.yaml:10: priors.toy_prior.temperature: expected a finite number, got infinity",
        ),
        ("weight: 0.5", "weight: -1", "r.yaml:11: priors.far.weight: expected a number of at least 0, got -1"),
        ("warmup: 10", "warmup: 1.0", "r.yaml:11: priors.far.warmup: expected an integer, got 1.0"),
        ("prior: toy_prior, ", "", "r.yaml:11: priors.far: unknown prior 'far' (there are: "),
        (
            "prior: toy_prior,", "prior: toy_prio,",
            "r.yaml:11: priors.far.prior: unknown prior 'toy_prio', did you mean 'toy_prior'? (there are: ",
        ),
        ("far:", "fa.r:", "r.yaml:11: priors.fa.r: labels of priors may have only letters, digits, - and _"),
        ("far:", "keys:", "r.yaml:11: priors.keys: torch reserves this label: choose another"),
        ("far:", "toy_prior:", "r.yaml:11: priors.toy_prior: given twice, first in line 9"),
        (
            "toy_probe", "toy_prob",
            "r.yaml:13: probes.toy_prob: unknown probe 'toy_prob', did you mean 'toy_probe'? ",
        ),
        ("pixels: 3", "pixel: 3", "r.yaml:13: probes.toy_probe.pixel: unknown key, did you mean 'pixels'?"),
        ("{toy_probe: {pixels: 3}}", "[toy_probe]", "r.yaml:13: probes: expected probes by name, got a list"),
        ("plugins: [toys.py]", "plugins: toys.py", "r.yaml:14: plugins: expected a list, got the text 'toys.py'"),
        ("toys.py", "toy.py", "r.yaml:14: plugins[0]: plugin file toy.py cannot be read: No such file or directory"),
        ("toys.py", "r.yaml", "r.yaml:14: plugins[0]: plugin file r.yaml is not Python: line "),
        ("backbone:", "seed: -1\nbackbone:", "r.yaml:1: seed: expected a number of at least 0, got -1"),
        ("backbone:", "optim: {lr: 0}\nbackbone:", "r.yaml:1: optim.lr: expected a number above 0, got 0"),
        (
            "backbone:", "optim: {schedule: cosin}\nbackbone:",
            "r.yaml:1: optim.schedule: expected 'cosine', 'poly' or 'constant', got the text 'cosin',"
            " did you mean 'cosine'?",
        ),
        (
            "backbone:", "optim: {momentum: 0.5}\nbackbone:",
            "r.yaml:1: optim.momentum: needs name: sgd, but name is adamw",
        ),
        (
            "backbone:", "optim: {poly_power: 2}\nbackbone:",
            "r.yaml:1: optim.poly_power: needs schedule: poly, but schedule is cosine",
        ),
        ("decoder_stride: 4", "last_n: 2", "r.yaml:1: backbone.last_n: needs train: last_n, but train is full"),
        ("decoder_stride: 4", "ema: 1", "r.yaml:1: backbone.ema: expected a number below 1, got 1"),
        (
            "decoder_stride: 4", "pretrained: true, weights: x.pt",
            "r.yaml:1: backbone.weights: start from timm's weights (pretrained) or from this file, not both",
        ),
    ],
)  # fmt: skip
def test_mistakes_in_a_recipe_are_told_with_file_line_and_key(old, new, message):
    found = message_of(changed(old, new))
    assert found == message or (message[-1] in " " and found.startswith(message)), found


def test_priors_are_needed():
    none = RECIPE[: RECIPE.index("priors")] + RECIPE[RECIPE.index("trainer") :]
    needed = "a recipe needs at least one prior; `prior3d-train --list` names them"
    assert message_of(none) == f"r.yaml: priors: {needed}"
    assert message_of(overrides=["priors={}"]) == f"command line: priors: {needed}"
    assert message_of(overrides=["priors=[a]"]) == "command line: priors: expected priors by name, got a list"
    for value in ("0", "false"):
        wrong = f"command line: priors.far: expected a section of keys, got {value}"
        assert message_of(overrides=[f"priors.far={value}"]) == wrong


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["x"], "command line: expected key.path=value, got 'x'"),
        (["=3"], "command line: expected key.path=value, got '=3'"),
        (["a..b=3"], "command line: expected key.path=value, got 'a..b=3'"),
        (["seed=1", "seed=2"], "command line: seed: given twice"),
        (["seed=[1"], "command line: [1: expected ',' or ']', but got '<stream end>'"),
        (["seed=1e-3"], "command line: seed: expected an integer, got 0.001"),
        (["sed=1"], "command line: sed: unknown key, did you mean 'seed'?"),
        (["data.name.x=1"], "command line: data.name.x: data.name is the text 'toy_rooms', not a section"),
        (["data.size[0]=1"], "command line: data.size[0]: unknown key, did you mean 'size'?"),
        (["data.size=[96, x]"], "command line: data.size[1]: expected an integer, got the text 'x'"),
        (["data.sizes=[96, 128]"], "command line: data.sizes: unknown key, did you mean 'size'?"),
        (["data=null"], "command line: data.name: required, but not given"),
        (["priors.far.temperature=-1"], "command line: priors.far.temperature: expected a number above 0, got -1"),
        (
            ["priors.near.prior=toy_pri"],
            "command line: priors.near.prior: unknown prior 'toy_pri', did you mean 'toy_prior'? ",
        ),
        (["priors.near.weight=1"], "command line: priors.near: unknown prior 'near' "),
        (
            ["plugins=[gone.py]"],
            "command line: plugins[0]: plugin file gone.py cannot be read: No such file or directory",
        ),
        (["trainer.max_steps=x", "seed=1"], "command line: trainer.max_steps: expected an integer, got the text 'x'"),
        (["seed=1", "data.root="], "command line: data.root: required, but not given"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line_are_told_as_such(overrides, message):
    found = message_of(overrides=overrides)
    assert found == message or (message.endswith(" ") and found.startswith(message)), found


def test_overrides_replace_and_extend():
    overrides = ["priors.far.weight=2", "priors.new={prior: toy_prior}", "data.augment.hue=0", "seed=7"]
    recipe = load_recipe("r.yaml", overrides)
    assert (recipe.priors["far"].weight, recipe.priors["far"].warmup, recipe.seed) == (2.0, 10, 7)
    assert recipe.priors["new"].prior == "toy_prior"
    assert recipe.data.augment == AugmentOptions(hue=0.0)


def test_a_further_plugin_file_is_told_as_such():
    assert message_of(plugins=["gone.py"]) == "plugins: plugin file gone.py cannot be read: No such file or directory"


def test_an_option_with_the_name_of_a_key_of_every_section_is_refused():
    init = "def __init__(self, backbone, *, weight: float = 1.0): ..."
    Path("heavy.py").write_text(f"from prior3d import Prior\nclass Heavy(Prior):\n    {init}\n")
    assert message_of(overrides=["priors.heavy={}"], plugins=["heavy.py"]) == (
        "command line: priors.heavy: prior 'heavy' (file heavy.py): its option weight has the name of a key that every"
        " such section has: rename it"
    )


def test_a_broken_plugin_breaks_only_the_recipe_that_names_it():
    Path("broken.py").write_text("from prior3d import Prior\nimport no_such_thing\nclass Broken(Prior): ...\n")
    assert isinstance(load_recipe("r.yaml", plugins=["broken.py"]), Recipe)
    assert message_of(overrides=["priors.broken={}"], plugins=["broken.py"]) == (
        "command line: priors.broken: prior 'broken' (file broken.py) cannot be imported: ModuleNotFoundError: No"
        " module named 'no_such_thing' (broken.py, line 2)"
    )


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("data.size[1]", "r.yaml:4: "),
        ("data.workers", "r.yaml:2: "),
        ("priors.far.weight.deep[3].er", "r.yaml:11: "),
        ("seed", "command line: "),
        ("optim.lr", "command line: "),
        ("optim", "command line: "),
        ("optim.clip", "command line: "),
        ("elsewhere", "r.yaml: "),
        ("data.size[x].y", "r.yaml:4: "),
        ("[0]", "r.yaml: "),
        (None, ""),
    ],
)
def test_errors_raised_later_are_located_too(key, place):
    recipe = load_recipe("r.yaml", ["seed=3", "optim.lr=1"])
    line = place + (f"{key}: " if key else "") + "is wrong"
    with pytest.raises(UserError) as caught, recipe.source.locating(), recipe.source.locating():
        raise UserError("is wrong", key)
    assert str(caught.value) == line


def test_errors_in_arguments_have_no_place_in_a_file():
    source = load_recipe("r.yaml", ["seed=3"]).source
    with pytest.raises(ArgumentError) as caught, source.locating(), section("data"), argument("out"):
        raise UserError("is wrong", "cache")
    assert (str(caught.value), caught.value.key) == ("out: is wrong", "out")
    assert on_command_line(caught.value) == "--out: is wrong"


OWN_DATA = "probes: {elsewhere: {probe: toy_probe, split: validation, seeds: 3, data: {name: toy_rooms, root: other}}}"


def test_a_probe_may_have_a_label_a_split_and_data_of_its_own(folder):
    Path("r.yaml").write_text(changed("probes: {toy_probe: {pixels: 3}}", OWN_DATA))
    recipe = load_recipe("r.yaml")
    section = recipe.probes["elsewhere"]
    assert (section.probe, section.split, section.seeds) == ("toy_probe", "validation", 3)
    assert (section.data.name, section.data.size) == ("toy_rooms", None)
    assert section.data.options["root"] == str(folder / "other")
    assert build_recipe(recipe.to_dict()) == recipe
    assert ("datasets", "toy_rooms", "probes.elsewhere.data.name") in set(recipe.uses())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("root: other", "rot: other", "probes.elsewhere.data.rot: unknown key, did you mean 'root'?"),
        ("name: toy_rooms, root", "name: toy_room, root", "probes.elsewhere.data.name: unknown dataset 'toy_room'"),
        ("split: validation", "split: train", "probes.elsewhere.split: "),
        ("seeds: 3", "seeds: 0", "probes.elsewhere.seeds: "),
        ("{name: toy_rooms, root: other}", "other", "probes.elsewhere.data: expected a section of keys, got "),
    ],
)
def test_mistakes_in_a_probes_own_data_are_told_with_their_key(old, new, message):
    assert message in message_of(changed("probes: {toy_probe: {pixels: 3}}", OWN_DATA.replace(old, new)))
