"""Weights whose BatchNorm statistics are folded away are not trained, and may be read, or trained once unfolded."""

import pytest
import timm
import torch

from prior3d import cli
from prior3d.backbone.batch_norm import is_folded, unfold_batch_norm
from prior3d.errors import UserError
from prior3d.pretraining.building import build
from prior3d.recipe import load_recipe
from prior3d.registry import Registry

MODEL = "mobilenetv2_035"


def network(folded_below=""):
    """Return a network whose layers below a name are folded, and the others trained."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL, num_classes=0)
    model.train()(torch.rand(4, 3, 64, 64))
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.BatchNorm2d) and name.startswith(folded_below):
            layer.reset_running_stats()
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.normal_(layer.bias, 0.2, 0.2)
    return model.eval()


@pytest.fixture
def arguments(tmp_path):
    def save(model, *more):
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        return [f"backbone.name={MODEL}", f"backbone.weights={tmp_path / 'weights.pth'}", *more]

    return save


@pytest.fixture
def built(recipe, arguments):
    """Make everything a run of the recipe needs, as training and `prior3d-prepare` do."""

    def make(model, *more):
        loaded = load_recipe(recipe, arguments(model, *more))
        return build(loaded, Registry(loaded.plugins))

    return make


@pytest.mark.parametrize("command", [cli.train, cli.prepare])
def test_the_command_ends_with_one_line_and_leaves_nothing(command, recipe, arguments, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")] if command is cli.train else []
    assert command([str(recipe), *arguments(network()), *out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "command line: backbone.weights: the statistics of the BatchNorm layer bn1 of mobilenetv2_035 are" in line
    assert (
        "tools/unfold_batch_norm.py (prior3d.backbone.batch_norm.unfold_batch_norm), or leave the encoder frozen"
        in line
    )
    assert not (tmp_path / "out").exists()


def test_the_first_folded_layer_that_would_train_is_named(built):
    with pytest.raises(
        UserError,
        match=r"^backbone\.weights: the statistics of the BatchNorm layer blocks\.3\.0\.bn1 of mobilenetv2_035",
    ):
        built(network("blocks.3"))
    assert built(network("no layer")).backbone.encoder.name == MODEL


def test_weights_of_timm_are_named_by_the_key_that_asks_for_them(recipe, monkeypatch):
    create = timm.create_model

    def folded(name, pretrained=False, **options):
        model = create(name, **options)
        if pretrained:
            model.load_state_dict(network().state_dict())
        return model

    monkeypatch.setattr(timm, "create_model", folded)
    monkeypatch.setattr("prior3d.backbone.fetching.network_problem", lambda: None)
    loaded = load_recipe(recipe, [f"backbone.name={MODEL}", "backbone.pretrained=true"])
    with pytest.raises(UserError, match=r"^backbone.pretrained: the statistics of the BatchNorm layer bn1 of"):
        build(loaded, Registry(loaded.plugins))


def test_a_frozen_encoder_stays_the_network_that_it_was(built):
    model = network()
    backbone = built(model, "backbone.train=frozen").backbone.train()
    images = torch.rand(2, 3, 48, 64)
    expected = model.forward_features((images - backbone.encoder.mean) / backbone.encoder.std)
    backbone.encoder(torch.rand(2, 3, 48, 64), pooled=True)
    assert is_folded(backbone.encoder.model.bn1)
    found = backbone.encoder.model.forward_features((images - backbone.encoder.mean) / backbone.encoder.std)
    torch.testing.assert_close(found, expected)


def test_of_the_last_stages_only_those_that_train_count(recipe, arguments):
    def make(folded_below):
        more = ["backbone.train=last_n", "backbone.last_n=3", "backbone.decoder_stride=32"]
        loaded = load_recipe(recipe, arguments(network(folded_below), *more))
        return build(loaded, Registry(loaded.plugins)).backbone

    backbone = make("bn1").train()
    assert not backbone.encoder.model.bn1.training and backbone.encoder.model.blocks[6][0].bn1.training
    with pytest.raises(UserError, match=r"the statistics of the BatchNorm layer blocks\.6\.0\.bn1 of"):
        make("blocks.6")


def test_unfolded_weights_train(built):
    model = network()
    assert unfold_batch_norm(model, model, [torch.rand(8, 3, 64, 64) for _ in range(2)]) == 52
    assert built(model).backbone.encoder.model.bn1.num_batches_tracked == 2
