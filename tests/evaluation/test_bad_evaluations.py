"""What a user can get wrong is one line, exit status 2, and nothing left behind."""

import shutil

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file


@pytest.fixture
def refused(evaluate, workshop, tmp_path, monkeypatch):
    """Run the command in an empty folder; return its line on stderr."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    create = timm.create_model

    def without_network(*arguments, pretrained=False, **options):
        if pretrained:
            raise FileNotFoundError("no connection")
        return create(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    monkeypatch.setattr("prior3d.backbone.fetching.network_problem", lambda: None)

    def run(*arguments):
        status, _, error = evaluate(*arguments)
        assert status == 2 and error.startswith("prior3d-eval: ")
        assert list(place.iterdir()) == []
        return error.removeprefix("prior3d-eval: ")

    return run


@pytest.fixture
def copy(finished, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    return run


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "no model is given: name a run folder, a weight file or a timm model; see --help"),
        (["no/such.safetensors"], "no such run folder or weight file: no/such.safetensors"),
        (
            ["resnet5o"],
            "resnet5o is neither a run folder nor a weight file, and timm has no model 'resnet5o', did you mean",
        ),
        (["resnet10t", "priors.triplane={}"], "command line: priors.triplane: nothing is trained here: leave this out"),
        (["resnet10t", "backbone.name=resnet18"], "command line: backbone.name: resnet10t already is the model"),
        (["resnet10t", "--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["resnet10t", "--control", "resnet10t", "backbone.pretrained=false"], "--control: a control needs two models"),
        (["resnet10t", "backbone.pretrained=false", "--probes", "dept"], "defaults: probes.dept: unknown probe 'dept'"),
        (["resnet10t", "--probes", "depth", "probes.glow.x=1"], "command line: probes.glow.x: glow is not among the"),
        (["resnet10t", "--seeds", "0"], "--seeds: expected a number of at least 1, got 0"),
        (["resnet10t", "data.name=synthetic_room"], "command line: data.name: unknown dataset 'synthetic_room', did"),
        (["resnet10t", "data.rooms=0"], "command line: data.rooms: expected 1 to 100000, got 0"),
        (["resnet10t", "--plugin", "no.py"], "--plugin: plugin file no.py cannot be read: No such file or directory"),
        (["resnet10t", "--probes", "depth", "--pictures", "a.png"], "--pictures: --pictures measures nothing: leave"),
        (
            ["resnet10t", "--seeds", "0", "--pictures", "a.png"],
            "--pictures: --pictures measures nothing: leave out --se",
        ),
        (
            ["resnet10t", "--control", "a", "--pictures", "a.png"],
            "--pictures: --pictures measures nothing: leave out --c",
        ),
        (
            ["resnet10t", "--plugin", "b.py", "--pictures", "a.png"],
            "--pictures: --pictures measures nothing: leave out --p",
        ),
        (
            ["resnet10t", "data.rooms=3", "--pictures", "a.png"],
            "command line: data.rooms: --pictures reads no data and",
        ),
        (
            ["resnet10t", "probes.depth={}", "--pictures", "a.png"],
            "command line: probes.depth: --pictures reads no data",
        ),
        (["resnet10t", "plugins=[b.py]", "--pictures", "a.png"], "command line: plugins: --pictures reads no data and"),
        (["resnet10t", "seed=x", "--pictures", "a.png"], "command line: seed: expected an integer"),
        (["resnet10t", "--pictures", "a.png", "backbone.pretrained=false"], "cannot read the image a.png"),
        (
            ["vit_tiny_patch16_224", "backbone.pretrained=false", "data.size=[50,64]"],
            "command line: data.size: vit_tiny_patch16_224 cannot take images of 50 x 64 pixels; use a multiple of 16",
        ),
    ],
)
def test_what_the_command_line_gets_wrong(refused, arguments, line):
    assert refused(*arguments).startswith(line)


def test_weights_of_timm_that_cannot_be_fetched(refused):
    line = refused("resnet10t")
    assert line.startswith("defaults: backbone.pretrained: cannot fetch timm's weights of resnet10t (no connection);")
    assert "set pretrained: false" in line


def test_a_folder_that_is_no_run_and_a_run_that_is_not_complete(refused, copy, tmp_path):
    assert refused(tmp_path / "place").endswith("place is not a run folder: it holds no recipe.yaml")
    (copy / "backbone.safetensors").unlink()
    line = refused(copy)
    assert line.endswith(f"it holds no backbone.safetensors; resume it with: prior3d-train --resume {copy}")


def test_weights_that_do_not_fit_name_what_differs(refused, copy, finished):
    weights = load_file(finished / "backbone.safetensors")
    del weights["stem.0.weight"]
    save_file({**weights, "stem.1.weight": torch.zeros(3)}, copy / "backbone.safetensors")
    line = refused(copy)
    assert "backbone.safetensors does not fit the model: stem.1.weight is [3] and should be [40]" in line
    assert "stem.0.weight is missing" in line
    assert "--against" in refused("resnet10t", "backbone.pretrained=false", "--against", finished / "summary.json")
    line = refused("convnext_atto", "backbone.pretrained=false", "--against", copy)
    assert line.startswith("--against: ") and "stem.0.weight is missing" in line


def test_a_run_keeps_its_own_model(refused, finished):
    line = refused(finished, "backbone.channels=4")
    assert line == "command line: backbone.channels: a run is measured with its own model: leave this out"
    line = refused(finished, "data=rooms")
    assert line == "command line: data: expected a section of keys, got the text 'rooms'"
    line = refused(finished / "backbone.safetensors", "backbone=5")
    assert line == "command line: backbone: expected a section of keys, got 5"
    line = refused(finished, "--control", "resnet10t")
    assert line.startswith("--control: cannot fetch")
    line = refused(finished / "initial.safetensors")
    assert line.endswith("holds the initial backbone of a run: name the run folder, or its backbone.safetensors")


def test_a_control_of_another_size(refused, finished):
    line = refused("resnet10t", "backbone.pretrained=false", "--against", finished, "--control", finished)
    assert line.startswith("--control: the control must be as large as the model: it has encoder channels {4: 40, ")


def test_data_without_labels(refused, finished, tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(8):
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / f"{index}.png")
    images = ["data.name=image_folder", f"data.root={tmp_path / 'images'}", "data.test_fraction=0.5"]
    line = refused(finished, *images, "--probes", "segmentation")
    assert line.endswith("probes.segmentation: needs semantic, which the data (ImageFolder) does not provide")
    line = refused(finished, *images, "--probes", "correspondence")
    assert line.endswith("needs depth, intrinsics, world_from_camera, which the data (ImageFolder) does not provide")


def test_a_probe_that_does_not_fit_and_is_named(refused, class_folders, rooms):
    arguments = ["convnext_atto", "backbone.pretrained=false", *class_folders]
    words = "command line: data.root: expected folders of the 16 classes airplane, bear"
    assert refused(*arguments, "--probes", "shape_bias").startswith(words)
    assert refused(*arguments, "--probes", "all", "shape_bias").startswith(words)
    assert refused(*arguments, "probes.shape_bias.max_images=3").startswith(words)


def test_a_run_none_of_whose_probes_fits_other_data(refused, with_probes, class_folders):
    run = with_probes({"depth": {}, "segmentation": {}})
    but = "which the data (ClassificationFolder) does not provide"
    reasons = f"depth needs depth, {but}; segmentation needs semantic, {but}"
    line = refused(run, *class_folders)
    assert line == f"command line: data.name: no probe fits this data: {reasons} (the name all takes whatever fits)"
    line = refused(run, *class_folders, "probes.depth.max_images=3")
    assert line.endswith(f"probes.depth: needs depth, {but}")


def test_a_wrong_option_is_no_reason_to_leave_a_probe_out(refused, with_probes, class_folders):
    line = refused(with_probes({"glow": {}, "shape_bias": {"head": "linear"}}), *class_folders)
    assert "recipe.yaml:" in line and "probes.shape_bias: head: linear is fitted to clean photographs" in line


def test_what_no_picture_of_trained_weights_depends_on(refused, finished):
    words = "--pictures reads no data and measures nothing: leave this out"
    for key in ("seed=1", "data.name=image_folder", "probes.glow.scale=2.0"):
        line = refused(finished, key, "--pictures", "a.png")
        assert line == f"command line: {key.partition('=')[0]}: {words}"
    line = refused(finished / "backbone.safetensors", "seed=1", "--pictures", "a.png")
    assert line == f"command line: seed: {words}"


@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        (("cat", "dog", "elk"), "elk has images in"),
        ((), "data.root: "),
    ],
)
def test_other_classes_and_no_images_in_the_held_out_split(refused, finished, tmp_path, held_out, words):
    (tmp_path / "animals" / "test").mkdir(parents=True)
    for split, names in {"train": ("cat", "dog"), "test": held_out}.items():
        for name in names:
            (tmp_path / "animals" / split / name).mkdir(parents=True)
            Image.new("RGB", (64, 48)).save(tmp_path / "animals" / split / name / "1.png")
    data = ["data.name=classification_folder", f"data.root={tmp_path / 'animals'}"]
    line = refused(finished, *data, "--probes", "classification")
    assert line.startswith("command line: data.root: ") and words in line


NOTHING = """
from prior3d.contracts.dataset import Dataset, DataSpec

class Nothing(Dataset):
    splits = ("train", "test")

    def __init__(self, spec: DataSpec):
        super().__init__(spec)
        self.scenes = ["room"]

    def __len__(self):
        return 0

    def frame_count(self, scene):
        return 0

    def load(self, scene, frame, fields):
        raise AssertionError

    def fingerprint(self, frames=None):
        return ""

    def sample(self, draw, fields, generator):
        raise AssertionError
"""


def test_an_empty_split(refused, finished, tmp_path):
    (tmp_path / "nothing.py").write_text(NOTHING)
    line = refused(finished, "--plugin", tmp_path / "nothing.py", "data.name=nothing")
    assert line.endswith("data: the test split is empty: there is nothing to measure on")
    line = refused(finished, "probes.glow.split=validation", "data.validation_rooms=0")
    assert line == "command line: data.validation_rooms: expected 1 to 100000, got 0"


def test_a_probe_that_asks_for_a_classifier(refused, finished, tmp_path):
    glow = (finished.parent.parent / "glow.py").read_text()
    (tmp_path / "named.py").write_text(glow.replace("class Glow", "class Named").replace("seeded = True", NEEDS))
    line = refused(finished, "--plugin", tmp_path / "named.py", "--probes", "named")
    assert "probes.named: needs a classifier, and before has none: convnext_atto, the initial weights of" in line


NEEDS = "seeded, needs_classifier = True, True"


def test_errors_in_the_recipe_of_a_run_are_located(refused, copy):
    recipe = copy / "recipe.yaml"
    lines = recipe.read_text().splitlines()
    number = next(index for index, line in enumerate(lines) if line.strip() == "rooms: 1")
    lines[number] = lines[number].replace("1", "one")
    recipe.write_text("\n".join(lines))
    assert f"recipe.yaml:{number + 1}: data.rooms: expected an integer, got the text 'one'" in refused(copy)


def test_a_model_that_a_probe_cannot_measure_is_refused_before_anything_is_measured(refused, rooms):
    arguments = ["backbone.pretrained=false", "--probes", "segmentation", "finetune_segmentation", *rooms]
    line = refused("resnet10t", *arguments, "probes.finetune_segmentation.decoder=pretrained")
    assert line.endswith("probes.finetune_segmentation.decoder: resnet10t has no decoder of its own: use fresh")
    line = refused("resnet10t", *arguments, "probes.finetune_segmentation.decoder_stride=64")
    assert line.endswith("probes.finetune_segmentation.decoder_stride: the coarsest stride of resnet10t is 32")


@pytest.mark.parametrize("more", [[], ["--pictures", "a.png"]])
def test_a_folder_that_cannot_be_written_to_is_refused_at_once(refused, finished, tmp_path, more):
    file = tmp_path / "file"
    file.write_text("")
    assert refused(finished, "--out", file, *more) == f"--out: {file} is not a folder"
    assert refused(finished, "--out", file / "below" / "it", *more) == f"--out: {file} is not a folder"
    line = refused(finished, "--out", "/proc/none", *more)
    assert line == "--out: cannot write to /proc: No such file or directory"
