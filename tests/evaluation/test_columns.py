"""Which models a comparison is made of, and what it says of one that cannot stand beside the others."""

import shutil

import pytest
import timm
import torch

from prior3d.backbone import Backbone
from prior3d.backbone.weights import read_weights, save_weights
from prior3d.errors import UserError
from prior3d.evaluation.columns import build_columns, notes_on_models, pairs_of
from prior3d.evaluation.models import find_other, find_subject
from prior3d.evaluation.request import build_request


def columns(model, *overrides, against=None, control=None):
    subject = find_subject(str(model), overrides)
    request = build_request(subject, ["glow"] if subject.run else [])
    other = None if against is None else find_other(str(against), "against")
    return build_columns(subject, request, other, None if control is None else str(control))


@pytest.fixture
def alone(finished, tmp_path):
    """The encoder of the run, without the decoder beside it."""
    return shutil.copyfile(finished / "backbone.safetensors", tmp_path / "backbone.safetensors")


def test_a_control_that_lacks_the_decoder_of_the_model_is_told_so(finished, alone):
    with pytest.raises(UserError) as refused:
        columns(finished, control=alone)
    assert refused.value.key == "control"
    assert "it has no decoder, the model has one: name a run, or its backbone.safetensors" in refused.value.message
    assert refused.value.message.endswith("(dense channels 320, the model 8)")
    for followed in (finished, finished / "backbone.safetensors"):
        assert "before + control" in columns(finished, control=followed)


def test_a_control_with_a_decoder_that_the_model_lacks_is_told_so(finished, alone):
    with pytest.raises(UserError) as refused:
        columns(alone, against=alone, control=finished)
    assert "it has a decoder, the model has none: name a copy of backbone.safetensors without" in refused.value.message
    assert refused.value.message.endswith("(dense channels 8, the model 320)")
    assert list(columns(alone, against=alone, control=alone))[-1].endswith(", 1 + control")


def test_of_another_encoder_it_is_not_said_that_the_decoder_is_missing(finished):
    with pytest.raises(UserError) as refused:
        columns("resnet10t", "backbone.pretrained=false", against=finished, control=finished)
    assert "it has encoder channels {4: 40, " in refused.value.message and "decoder" not in refused.value.message


def test_maps_of_two_strides_are_noted_with_who_has_a_decoder(finished, alone):
    made = columns(finished, against=alone)
    assert (
        f"The maps of {alone.parent.name} have a cell for every 32 pixels (no decoder), those of {finished.name} for"
        " every 4 pixels (a decoder): part of the difference is resolution, not what was learned."
    ) in notes_on_models(made)


def test_weights_that_do_not_say_their_model_can_be_saved_so_that_they_do(finished, tmp_path):
    torch.manual_seed(0)
    mine = tmp_path / "mine.pth"
    torch.save(Backbone("resnet10t", (48, 64)).encoder.model.state_dict(), mine)
    for flag in ("against", "control"):
        with pytest.raises(UserError, match=rf"^{flag}: .*mine.pth does not say which model it belongs to") as refused:
            columns(finished, **{flag: mine})
        words = "as the second model or the control, name a file that says it: backbone.safetensors"
        assert words in refused.value.message
        assert "prior3d.backbone.save_weights(file, weights, {'model': ...})" in refused.value.message
    save_weights(str(tmp_path / "said.safetensors"), read_weights(mine), {"model": "resnet10t"})
    made = columns(mine, "backbone.name=resnet10t", against=tmp_path / "said.safetensors")
    assert made["said"].key == made["mine"].key


@pytest.mark.parametrize("flag", ["against", "control"])
def test_no_key_is_advised_for_a_model_beside_the_first_one(finished, monkeypatch, flag):
    create = timm.create_model

    def without_network(*arguments, pretrained=False, **options):
        if pretrained:
            raise FileNotFoundError("no connection\nand much more")
        return create(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    monkeypatch.setattr("prior3d.backbone.fetching.network_problem", lambda: None)
    with pytest.raises(UserError) as refused:
        columns(finished, **{flag: "resnet10t"})
    expected = f"{flag}: cannot fetch timm's weights of resnet10t (no connection); name random:resnet10t for random"
    assert str(refused.value).startswith(expected) and "backbone.weights" not in str(refused.value)
    with pytest.raises(UserError, match="or name a file that you have with weights"):
        columns("resnet10t")


def test_models_that_are_compared_are_called_by_their_names(finished, tmp_path):
    shutil.copytree(finished, other := tmp_path / "baseline")
    made = columns(finished, against=other)
    assert list(made) == ["baseline", finished.name, f"baseline + {finished.name}", "baseline + random"]
    assert pairs_of(made) == [(finished.name, "baseline"), (f"baseline + {finished.name}", "baseline + random")]
    assert notes_on_models(made)[0] == f"baseline and {finished.name} have the same weights."
    assert list(columns(finished))[:2] == ["before", "after"]


def test_random_weights_have_a_name(finished):
    made = columns("random:resnet10t", against="random:convnext_atto")
    assert [column.text for column in made.values()][:2] == [
        "convnext_atto with random weights",
        "resnet10t with random weights",
    ]
    assert list(made)[:2] == ["random-convnext_atto", "random-resnet10t"]
    with pytest.raises(UserError, match=r"backbone.pretrained: random:resnet10t has random weights"):
        columns("random:resnet10t", "backbone.pretrained=true")
