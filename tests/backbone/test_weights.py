import json

import pytest
import timm
import torch
from safetensors import safe_open

from prior3d.backbone.weights import load_encoder, read_weights, save_weights
from prior3d.errors import UserError


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
    assert message.startswith("backbone.weights: mine.pth does not fit the model: ")
    assert "conv1.0.weight is [1] and should be [24, 3, 3, 3]" in message
    assert "bn1.weight is missing" in message and "extra is unexpected" in message


def test_many_mismatches_are_counted(model):
    with pytest.raises(UserError, match=r"and \d+ more$"):
        load_encoder(model, {}, "empty.pth")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.pth", None, "no such file"),
        ("text.pth", b"hello", "cannot be read|is not a weight file"),
        ("text.safetensors", b"hello", "is not a weight file"),
    ],
)
def test_what_is_no_weight_file_is_said_to_be_none(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_weights(tmp_path / name)


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


def test_real_imagenet_weights_load_into_the_model_they_are_for(shared_data):
    files = sorted(path for path in (shared_data / "weights").iterdir() if "mobilenetv2_100" in path.name)
    model = timm.create_model("mobilenetv2_100", num_classes=0, pad_type="same")
    load_encoder(model, read_weights(files[0]), files[0].name)
