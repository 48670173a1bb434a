import argparse
import json

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from prior3d.backbone import Decoder
from prior3d.backbone.weights import (
    load_decoder_of_run,
    load_encoder,
    read_description,
    read_weights,
    save_weights,
)
from prior3d.errors import UserError
from prior3d.pretraining.building import make_backbone
from prior3d.pretraining.folder import RunFolder
from prior3d.recipe.sections import BackboneSection


@pytest.fixture
def model():
    return timm.create_model("resnet10t", num_classes=0)


def test_a_classifier_and_only_a_classifier_may_be_left_over(model, tmp_path):
    full = timm.create_model("resnet10t", num_classes=7)
    torch.save({"state_dict": full.state_dict()}, tmp_path / "full.pth")
    load_encoder(model, read_weights(tmp_path / "full.pth"), "full.pth")
    assert all(torch.equal(full.state_dict()[name], value) for name, value in model.state_dict().items())


def test_every_mismatch_is_named(model):
    weights = model.state_dict()
    weights["conv1.0.weight"] = torch.zeros(1)
    del weights["bn1.weight"]
    weights["extra"] = torch.zeros(1)
    with pytest.raises(UserError) as caught:
        load_encoder(model, weights, "mine.pth")
    message = str(caught.value)
    assert message.startswith("weights: mine.pth does not fit the model: ")
    assert "conv1.0.weight is [1] and should be [24, 3, 3, 3]" in message
    assert "bn1.weight is missing" in message and "extra is unexpected" in message


def test_many_mismatches_are_counted(model):
    with pytest.raises(UserError, match=r"and \d+ more$"):
        load_encoder(model, {}, "empty.pth")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.pth", None, "no such file"),
        (
            "page.pth",
            b"<html>404 not found</html>\n",
            "is not a weight file: it is text, and begins with '<html>404 not fo",
        ),
        ("text.safetensors", b"hello", "is not a weight file: it is text, and begins with 'hello'"),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS and .* git lfs pull"),
        ("empty.pth", b"", "is not a weight file: it is empty"),
        ("noise.pth", bytes(range(200)), "cannot be read as plain weights: it is not a torch file, is damaged"),
        ("noise.safetensors", bytes(range(200)), "is not a weight file, or is cut off: "),
    ],
)
def test_what_is_no_weight_file_is_said_to_be_none(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_weights(tmp_path / name)


def test_a_file_of_the_other_kind_says_what_it_is(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "renamed.pth")
    with pytest.raises(
        UserError, match=r"the content of .*renamed.pth is a safetensors file: rename it to end in .safetens"
    ):
        read_weights(tmp_path / "renamed.pth")
    torch.save(model.state_dict(), tmp_path / "renamed.safetensors")
    with pytest.raises(UserError, match=r"is a torch file: rename it to end in .pth"):
        read_weights(tmp_path / "renamed.safetensors")


def test_a_torch_file_that_is_cut_off_says_so(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"cut.pth is not a weight file, or is cut off: "):
        read_weights(tmp_path / "cut.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_type_that_could_run_code_is_named_with_what_to_do(model, tmp_path, legacy):
    path = tmp_path / "args.pth"
    content = {"model": model.state_dict(), "args": argparse.Namespace(lr=1)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError) as caught:
        read_weights(path)
    line = str(caught.value)
    assert "\n" not in line and "\x1b" not in line and "two options" not in line
    if not legacy:
        assert "it also holds argparse.Namespace, which could run code" in line
        command = line.partition("save its weights alone: ")[2]
        assert command == f"torch.save(torch.load('{path}', weights_only=False)['model'], 'weights.pth')"


def test_a_run_folder_means_its_trained_encoder(model, tmp_path):
    with pytest.raises(UserError, match=r"is a folder but not a run: it holds no backbone.safetensors$"):
        read_weights(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"; name a file in it, such as model.safetensors$"):
        read_weights(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(
        UserError, match=r"is not complete: it holds no backbone.safetensors; resume it with: prior3d-train --r"
    ):
        read_weights(tmp_path)
    save_weights(tmp_path / "backbone.safetensors", model.state_dict(), {})
    assert torch.equal(read_weights(tmp_path)["bn1.weight"], model.state_dict()["bn1.weight"])


def test_the_decoder_of_a_run_is_taken_over_where_it_fits(tmp_path):
    trained, same, other = (Decoder({4: 8, 8: 16}, 4, channels) for channels in (6, 6, 4))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert load_decoder_of_run(same, tmp_path).endswith("starts from random weights, as that of the run is not there")
    save_weights(tmp_path / "decoder.safetensors", trained.state_dict(), {})
    assert load_decoder_of_run(same, tmp_path).endswith(
        "encoder and decoder start from the trained weights of this run"
    )
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in trained.state_dict().items())
    assert load_decoder_of_run(other, tmp_path).endswith("as that of the run is of another shape")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in before.items())


def test_pickled_code_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"weights": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(tmp_path / "harmful.pth")


def test_saved_weights_say_what_they_are_and_load_strictly(model, tmp_path):
    path = tmp_path / "out.safetensors"
    save_weights(path, model.state_dict(), {"model": "resnet10t"})
    timm.create_model("resnet10t", num_classes=0).load_state_dict(read_weights(path), strict=True)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["prior3d"]) == {"model": "resnet10t"}
    assert [file.name for file in tmp_path.iterdir()] == ["out.safetensors"]


def test_the_same_weights_give_the_same_bytes_in_any_process(tmp_path):
    weights = {"b.weight": torch.rand(3, 2), "a": torch.arange(5)}
    description = {"model": "resnet10t", "mean": [0.5], "accent": "é"}
    for number in range(16):  # the library itself draws the order of the keys for each file
        about = description if number % 2 else dict(reversed(description.items()))
        save_weights(tmp_path / f"{number}.safetensors", weights, about)
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(16)}) == 1
    assert read_description(tmp_path / "0.safetensors") == description
    same = read_weights(tmp_path / "0.safetensors")
    assert all(torch.equal(value, same[name]) for name, value in weights.items()) and len(same) == 2


def test_a_prefix_of_all_names_is_taken_off_and_named(model):
    given = {f"student.backbone.{name}": value + 1 for name, value in model.state_dict().items()}
    given |= {
        "student.backbone.fc.weight": torch.zeros(7, 512),
        "student.head.weight": torch.zeros(3),
        "epoch": torch.ones(1),
    }
    note = load_encoder(model, given, "mine.pth")
    assert note == (
        "mine.pth: the names of the encoder begin with 'student.backbone.', which is taken off; 2 tensors that do not"
        " belong to it are left out"
    )
    assert all(torch.equal(given[f"student.backbone.{name}"], value) for name, value in model.state_dict().items())
    assert load_encoder(model, model.state_dict(), "mine.pth") is None


def test_several_models_in_one_file_are_named_and_none_is_chosen(model, tmp_path):
    weights = model.state_dict()
    content = {"student": {f"module.{name}": value for name, value in weights.items()}, "teacher": weights}
    torch.save({**content, "optimizer": {"state": {0: torch.zeros(2)}}, "epoch": 3}, tmp_path / "dino.pth")
    with pytest.raises(
        UserError, match=r"dino.pth holds 2 models, with names that begin with student.module., teacher[.]"
    ):
        load_encoder(model, read_weights(tmp_path / "dino.pth"), "dino.pth")
    torch.save({"epoch": 3, "ema": {name: value * 2 for name, value in weights.items()}}, tmp_path / "one.pth")
    load_encoder(model, read_weights(tmp_path / "one.pth"), "one.pth")


def test_of_our_own_checkpoints_the_model_that_trains_is_taken(model):
    ours = {f"backbone.encoder.model.{name}": value + 1 for name, value in model.state_dict().items()}
    ours |= {f"ema.encoder.model.{name}": value for name, value in model.state_dict().items()}
    load_encoder(model, ours, "last.ckpt")
    assert torch.equal(model.state_dict()["bn1.weight"], ours["backbone.encoder.model.bn1.weight"])


def test_a_prefix_without_which_weights_do_not_fit_either_is_named(model):
    given = {f"module.{name}": value for name, value in model.state_dict().items()}
    given["module.bn1.weight"] = torch.zeros(3)
    with pytest.raises(
        UserError, match=r"does not fit the model without the prefix 'module.' of its names: bn1.weight is"
    ):
        load_encoder(model, given, "mine.pth")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(model, bad):
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    weights["layer1.0.conv1.weight"].view(-1)[3] = bad
    with pytest.raises(
        UserError, match=r"^weights: a.pth holds NaN or infinity in layer1.0.conv1.weight: take an earlier"
    ):
        load_encoder(model, weights, "a.pth")


def test_real_imagenet_weights_load_into_the_model_they_are_for(shared_data):
    files = sorted(path for path in (shared_data / "weights").iterdir() if "mobilenetv2_100" in path.name)
    model = timm.create_model("mobilenetv2_100", num_classes=0, pad_type="same")
    load_encoder(model, read_weights(files[0]), files[0].name)


def test_a_run_folder_as_weights_starts_from_its_encoder_and_decoder(tmp_path):
    options = {"name": "test_resnet", "decoder_stride": 4, "channels": 8}
    trained = make_backbone(BackboneSection(**options), (64, 64), seed=1)
    RunFolder(tmp_path).export(trained)
    backbone = make_backbone(BackboneSection(**options, weights=tmp_path), (64, 64), seed=2)
    assert backbone.digest() == trained.digest()
    assert backbone.notes == [f"{tmp_path}: encoder and decoder start from the trained weights of this run"]
    encoder = tmp_path / "backbone.safetensors"
    alone = make_backbone(BackboneSection(**options, weights=encoder), (64, 64), seed=2)  # the file: the encoder alone
    assert torch.equal(alone.encoder.model.bn1.weight, trained.encoder.model.bn1.weight) and not alone.notes
    assert alone.digest() != trained.digest()


@pytest.mark.parametrize(("size", "key"), [((7, 7), "data.size"), ((64, 64), "backbone.weights")])
def test_what_is_wrong_is_said_of_the_section_it_is_in(tmp_path, size, key):
    with pytest.raises(UserError) as caught:
        make_backbone(BackboneSection("test_resnet", weights=tmp_path / "none.pth"), size, seed=0)
    assert caught.value.key == key
