import pytest
import timm
import torch

from prior3d.backbone import Backbone, set_trainable
from prior3d.backbone.batch_norm import reestimate_batch_norm
from prior3d.errors import UserError

FAMILIES = [
    ("convnext_atto", (96, 128), 4),
    ("convnext_atto", (90, 122), 2),  # no stride 2 in the encoder, sizes no multiple of anything
    ("resnet10t", (96, 128), 2),
    ("resnet18", (90, 122), 4),
    ("mobilenetv2_035", (96, 128), 4),
    ("mobilenetv3_small_050", (96, 128), None),
    ("vit_tiny_patch16_224", (96, 128), None),
    ("vit_tiny_patch16_224", (96, 128), 4),
    ("vit_small_patch14_dinov2", (70, 98), None),
]


@pytest.mark.parametrize(("name", "size", "stride"), FAMILIES)
def test_what_a_backbone_gives_is_what_its_spec_says(name, size, stride):
    backbone = Backbone(name, size, decoder_stride=stride).eval()
    spec = backbone.spec
    with torch.no_grad():
        maps = backbone(torch.rand(2, 3, *size), {"encoder", "dense", "pooled"})
    assert maps.dense.shape == (2, spec.dense_channels, *spec.dense_size)
    assert maps.pooled.shape == (2, spec.pooled_channels)
    assert spec.has_decoder == (stride is not None)
    for s, channels in spec.encoder_channels.items():
        assert maps.encoder[s].shape[:2] == (2, channels)
        assert tuple(maps.encoder[s].shape[-2:]) == tuple(-(-side // s) for side in size)


def test_dense_features_of_a_vit_are_its_normalised_patch_tokens():
    backbone = Backbone("vit_tiny_patch16_224", (96, 128)).eval()
    images = torch.rand(2, 3, 96, 128)
    model = backbone.encoder.model
    with torch.no_grad():
        tokens = model.forward_features((images - backbone.encoder.mean) / backbone.encoder.std)
        dense = backbone.encode_dense(images)
    expected = tokens[:, model.num_prefix_tokens :].transpose(1, 2).reshape(2, -1, 6, 8)
    torch.testing.assert_close(dense, expected)


def test_pooled_features_are_timms_own():
    backbone = Backbone("mobilenetv2_035", (96, 128), decoder_stride=4).eval()
    images = torch.rand(2, 3, 96, 128)
    with torch.no_grad():
        expected = backbone.encoder.model((images - backbone.encoder.mean) / backbone.encoder.std)
        pooled = backbone(images, {"pooled"}).pooled
    torch.testing.assert_close(pooled, expected)


def test_images_are_normalised_by_the_models_own_statistics():
    own = timm.create_model("vit_tiny_patch16_224", pretrained=False).pretrained_cfg
    assert Backbone("vit_tiny_patch16_224", (96, 128)).encoder.mean.flatten().tolist() == list(own["mean"])
    given = Backbone("resnet10t", (64, 64), mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 1.0]).encoder
    assert given.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_timm_options_reach_timm():
    backbone = Backbone("mobilenetv2_035", (96, 128), timm_options={"pad_type": "same"})
    assert type(backbone.encoder.model.conv_stem).__name__ == "Conv2dSame"


@pytest.mark.parametrize(
    ("arguments", "key", "words"),
    [
        ({"name": "resnet81", "size": (64, 64)}, "backbone.name", "did you mean resnet18"),
        ({"name": "vit_tiny_patch16_224", "size": (90, 128)}, "data.size", "90 x 128 pixels; use a multiple of 16"),
        ({"name": "resnet10t", "size": (64, 64), "timm_options": {"no_such": 1}}, "backbone", "no_such"),
        ({"name": "resnet10t", "size": (64, 64), "decoder_stride": 64}, "backbone.decoder_stride", "none is 64"),
    ],
)
def test_what_cannot_be_made_is_one_clear_line(arguments, key, words):
    with pytest.raises(UserError, match=words) as caught:
        Backbone(**arguments)
    assert caught.value.key == key
    assert "\n" not in str(caught.value)


def trainable(backbone):
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def test_last_n_trains_the_last_blocks_and_the_decoder():
    backbone = Backbone("vit_tiny_patch16_224", (32, 32), decoder_stride=4)
    set_trainable(backbone, "last_n", 2, {"dense"})
    encoder = {name.removeprefix("encoder.model.") for name in trainable(backbone) if name.startswith("encoder")}
    assert encoder and all(name.startswith(("blocks.10.", "blocks.11.", "norm.")) for name in encoder)
    assert any(name.startswith("decoder") for name in trainable(backbone))


def test_what_nobody_reads_is_frozen():
    backbone = Backbone("convnext_atto", (64, 64), decoder_stride=4)
    set_trainable(backbone, "full", 1, {"dense"})
    assert "encoder.model.head.norm.weight" not in trainable(backbone)
    set_trainable(backbone, "full", 1, {"pooled"})
    assert "encoder.model.head.norm.weight" in trainable(backbone)
    assert not any(name.startswith("decoder") for name in trainable(backbone))


def test_frozen_parts_keep_their_running_statistics_when_training():
    backbone = Backbone("resnet10t", (64, 64), decoder_stride=4)
    set_trainable(backbone, "frozen", 1, {"dense"})
    before = {name: value.clone() for name, value in backbone.encoder.state_dict().items()}
    backbone.train()
    backbone(torch.rand(4, 3, 64, 64), {"dense"}).dense.sum().backward()
    assert all(torch.equal(before[name], value) for name, value in backbone.encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.encoder.parameters())
    assert any(parameter.grad is not None for parameter in backbone.decoder.parameters())


def test_batch_norm_is_reestimated_exactly():
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    batches = [torch.rand(8, 3, 5, 5) for _ in range(3)]
    assert reestimate_batch_norm(layer, layer, batches) == 1
    per_batch = [layer[0](images) for images in batches]
    mean = torch.stack([values.mean((0, 2, 3)) for values in per_batch]).mean(0)
    torch.testing.assert_close(layer[1].running_mean, mean)
    assert layer[1].momentum == 0.1 and not layer.training


def test_models_without_batch_norm_read_no_images():
    def unread():
        raise AssertionError("read")
        yield

    assert reestimate_batch_norm(torch.nn.LayerNorm(4), print, unread()) == 0


def test_weights_that_cannot_be_fetched_are_one_line(monkeypatch):
    def no_network(*arguments, pretrained, **options):
        assert pretrained
        raise FileNotFoundError("no connection\nand a long story")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(UserError, match=r"^backbone.pretrained: cannot fetch timm's weights of resnet10t.*no connec"):
        Backbone("resnet10t", (64, 64), pretrained=True)


def test_pretrained_weights_are_asked_of_timm(monkeypatch):
    create, asked = timm.create_model, []

    def as_downloaded(name, pretrained=False, **options):
        asked.append(pretrained)
        model = create(name, pretrained=False, **options)
        torch.nn.init.constant_(model.conv1[0].weight, 0.5)
        return model

    monkeypatch.setattr(timm, "create_model", as_downloaded)
    backbone = Backbone("resnet10t", (64, 64), pretrained=True)
    assert True in asked and (backbone.encoder.model.conv1[0].weight == 0.5).all()
