"""From names and values on the command line to checked sections; nothing is made but what says what it needs."""

import pytest

from prior3d.errors import UserError
from prior3d.evaluation.models import find_subject
from prior3d.evaluation.request import build_request
from prior3d_plugins.probes.shape_bias.probe import CLASSES

RANDOM = "backbone.pretrained=false"


def request(*overrides, model="resnet10t", **options):
    return build_request(find_subject(model, [RANDOM, *overrides] if model == "resnet10t" else overrides), **options)


def test_a_plain_model_is_measured_on_the_embedded_rooms(tmp_path):
    made = request(f"data.cache={tmp_path}")
    assert (made.data.name, made.data.size, made.backbone.name) == ("synthetic_rooms", (96, 128), "resnet10t")
    assert [task.label for task in made.tasks] == ["correspondence", "segmentation", "depth"]
    assert made.left_out == {} and not any(tmp_path.iterdir())


def test_probes_that_the_data_do_not_fit_are_left_out_unless_named():
    made = request(labels=["all"])
    assert {"classification", "robustness", "shape_bias"} <= set(made.left_out)
    assert made.left_out["classification"] == "needs label, which the data (SyntheticRooms) does not provide"
    assert {"correspondence", "normals"} <= set(made.probes)
    with pytest.raises(UserError, match=r"^probes.classification: needs label"):
        request(labels=["depth", "classification"])
    with pytest.raises(UserError, match=r"^probes.classification: needs label"):
        request("probes.classification.split=test")


BROKEN = """
import no_such_module
from prior3d import Probe


class Torn(Probe):
    pass
"""


def test_all_leaves_out_probes_that_cannot_be_used_unless_they_are_named(tmp_path):
    (tmp_path / "torn.py").write_text(BROKEN)
    (tmp_path / "half.py").write_text("from prior3d import Probe\n\n\nclass Half(Probe):\n    pass\n")
    files = [tmp_path / "torn.py", tmp_path / "half.py"]
    made = request(labels=["all"], plugins=files)
    assert "correspondence" in made.probes and {"torn", "half"}.isdisjoint(made.probes)
    assert "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'" in made.left_out["torn"]
    assert made.left_out["half"] == "Half does not define measure, summarize"
    assert "torn" not in request("probes.torn=null", labels=["all"], plugins=files).left_out
    with pytest.raises(UserError, match=r"^probes\.torn: probe 'torn' .* cannot be imported"):
        request(labels=["all", "torn"], plugins=files)
    assert {"torn", "half"}.isdisjoint(request(labels=["depth"], plugins=files).left_out)


def test_cue_conflicts_are_known_by_the_names_of_folders_and_files(shared_data, tmp_path):
    data = ["data.name=classification_folder", "data.test_fraction=1.0"]
    made = request(*data, f"data.root={shared_data / 'cue-conflict'}", labels=["all"])
    assert list(made.probes) == ["shape_bias"]
    assert made.left_out["classification"].startswith("trains on labels, but its data has no training split")
    for name in CLASSES:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}1.jpg").touch()
    with pytest.raises(UserError, match="shape_bias expected the class of the texture at the end of a name"):
        request(*data, f"data.root={tmp_path}", labels=["all"])


def test_what_a_missing_split_is_told_to_do_can_be_done(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}.jpg").touch()
    data = ["data.name=classification_folder", f"data.root={tmp_path}"]
    with pytest.raises(UserError, match=r"only train: hold some of it out \(test_scenes or test_fraction"):
        request(*data, labels=["classification"])
    assert list(request(*data, "data.test_fraction=0.5", labels=["classification"]).probes) == ["classification"]


def test_options_of_probes_are_added_to_the_default_ones():
    made = request("probes.depth.max_images=10", "probes.normals={}")
    assert list(made.probes) == ["correspondence", "segmentation", "depth", "normals"]
    assert made.probes["depth"].max_images == 10
    with pytest.raises(UserError, match=r"^command line: probes.depth.max_images: depth is not among the probes"):
        request("probes.depth.max_images=10", labels=["normals"])


def test_seeds_hold_for_all_probes_that_do_not_say():
    made = request("probes.depth.seeds=5", seeds=3)
    assert {label: section.seeds for label, section in made.probes.items()} == {
        "correspondence": 3,
        "segmentation": 3,
        "depth": 5,
    }


def test_a_run_brings_its_own_data_and_probes(finished):
    made = request(model=str(finished))
    assert list(made.probes) == ["glow"] and made.data.options["test_rooms"] == 2 and made.seed == 3
    made = request(model=str(finished), labels=["glow", "depth"])
    assert list(made.probes) == ["glow", "depth"]


def test_other_data_do_not_inherit_the_options_of_the_run(finished, tmp_path):
    found = find_subject(str(finished), ["data.name=image_folder", f"data.root={tmp_path}"])
    assert found.content["data"]["size"] == [48, 64]
    assert {"rooms", "frames"}.isdisjoint(found.content["data"]) and found.content["data"]["root"] == str(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["probes=[depth]"], "^probes: expected probes by name, got a list"),
        (["data=rooms"], "^data: expected a section of keys, got the text 'rooms'"),
        (["probes.depth=3"], "^probes.depth: expected a section of keys, got 3"),
        (["bogus.x=1"], "^bogus: unknown key"),
        (["seed=x"], "^seed: expected an integer"),
    ],
)
def test_values_of_the_wrong_kind(overrides, message):
    with pytest.raises(UserError, match=message):
        request(*overrides)
