import socket
import ssl
from urllib.error import HTTPError, URLError

import pytest
import timm
import torch
from safetensors.torch import save_file

from prior3d.backbone import Backbone, Encoder, fetching, refuse_single_values, set_trainable
from prior3d.backbone.adaptation import parameter_groups
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


def test_dense_features_of_a_vit_are_its_normalized_patch_tokens():
    backbone = Backbone("vit_tiny_patch16_224", (96, 128)).eval()
    images = torch.rand(2, 3, 96, 128)
    model = backbone.encoder.model
    with torch.no_grad():
        tokens = model.forward_features((images - backbone.encoder.mean) / backbone.encoder.std)
        dense = backbone(images, {"dense"}).dense
    expected = tokens[:, model.num_prefix_tokens :].transpose(1, 2).reshape(2, -1, 6, 8)
    torch.testing.assert_close(dense, expected)


def test_pooled_features_are_timms_own():
    backbone = Backbone("mobilenetv2_035", (96, 128), decoder_stride=4).eval()
    images = torch.rand(2, 3, 96, 128)
    with torch.no_grad():
        expected = backbone.encoder.model((images - backbone.encoder.mean) / backbone.encoder.std)
        pooled = backbone(images, {"pooled"}).pooled
    torch.testing.assert_close(pooled, expected)


def test_images_are_normalized_by_the_models_own_statistics():
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
        ({"encoder": "resnet81", "size": (64, 64)}, "name", "did you mean 'resnet18'"),
        ({"encoder": "vit_tiny_patch16_224", "size": (90, 128)}, "size", "use a multiple of 16, such as 96 x 128 "),
        ({"encoder": "test_resnet", "size": (64, 64), "timm_options": {"no_such": 1}}, "timm_options", "no_such"),
        ({"encoder": "test_resnet", "size": (64, 64), "decoder_stride": 64}, "decoder_stride", "none is 64"),
        ({"encoder": "test_convnext", "size": (7, 7), "decoder_stride": 4}, "size", "mostly padding; use 32 x 32 or"),
        (
            {"encoder": "vit_tiny_patch16_224", "size": (7, 7)},
            "size",
            "7 x 7 pixels; use a multiple of 16, such as 16 x",
        ),
        (
            {"encoder": "mobilevitv2_050", "size": (96, 128)},
            "size",
            "; use 128 x 128 [(]its map of stride 32 has 4 x 4",
        ),
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


LAST = {
    "resnet18": ("layer4.",),
    "convnext_atto": ("stages.3.", "head.norm."),
    "densenet121": ("features.transition3.", "features.denseblock4.", "features.norm5."),
    "test_vit": ("blocks.5.", "norm.", "fc_norm."),
    "eva02_tiny_patch14_224": ("blocks.11.", "norm.", "fc_norm."),
    "mobilenetv3_small_050": ("blocks.4.", "blocks.5.", "conv_head."),
}


@pytest.mark.parametrize("name", LAST)
def test_the_last_of_n_is_a_block_or_a_stage_in_every_family(name):
    backbone = Backbone(name, (56, 56) if "patch14" in name else (64, 64), decoder_stride=4)
    said = set_trainable(backbone, "last_n", 1, {"dense", "pooled"})
    trains = {path.removeprefix("encoder.model.") for path in trainable(backbone) if path.startswith("encoder")}
    expected = {path for path, _ in backbone.encoder.model.named_parameters() if path.startswith(LAST[name])}
    assert trains <= expected and {path for path in expected if "norm." not in path} <= trains
    count = sum(one.numel() for one in backbone.encoder.parameters() if one.requires_grad)
    unit = "blocks" if backbone.encoder.isotropic else "stages"
    assert said.startswith(f"trains: {count / 1e6:.2f} of ") and f"{name} (the last 1 of its" in said and unit in said


def test_more_blocks_than_there_are_is_refused_with_their_number():
    backbone = Backbone("test_convnext", (64, 64))
    set_trainable(backbone, "last_n", 4, {"dense"})
    assert "stem.0.weight" in {path.removeprefix("encoder.model.") for path in trainable(backbone)}
    with pytest.raises(UserError, match=r"^last_n: test_convnext has 4 stages, fewer than 5$"):
        set_trainable(backbone, "last_n", 5, {"dense"})


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
@pytest.mark.parametrize("reads", [{"dense"}, {"encoder"}, {"pooled"}, {"dense", "pooled"}])
def test_what_the_graph_says_is_read_is_what_gets_a_gradient(name, reads):
    backbone = Backbone(name, (64, 64), decoder_stride=4).eval()
    set_trainable(backbone, "full", 1, reads)
    found = trainable(backbone)
    maps = backbone.requires_grad_(True)(torch.rand(1, 3, 64, 64), reads)
    read = [*(maps.encoder.values() if "encoder" in reads else ()), maps.dense, maps.pooled]
    sum(tensor.pow(2).sum() for tensor in read if tensor is not None).backward()
    assert found == {path for path, parameter in backbone.named_parameters() if parameter.grad is not None}


def test_groups_share_out_all_parameters():
    encoder = Encoder("test_efficientnet").fit((64, 64))
    groups = parameter_groups(encoder)
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(name for name, _ in encoder.model.named_parameters()) and len(groups) == 5
    assert names[0] == "conv_stem.weight" and "conv_head.weight" in groups[-1]


def test_a_step_of_one_value_per_channel_is_refused():
    backbone = Backbone("test_resnet", (32, 32), decoder_stride=8)
    set_trainable(backbone, "full", 1, {"dense"})
    with pytest.raises(
        UserError, match=r"^batch_size: with one image of 32 x 32 pixels per step, the BatchNorm layer encoder.model"
    ):
        refuse_single_values(backbone, {"dense"})
    assert backbone.training
    set_trainable(backbone, "frozen", 1, {"dense"})
    refuse_single_values(backbone, {"dense"})
    larger = Backbone("test_resnet", (32, 64), decoder_stride=8)
    refuse_single_values(larger, {"dense"})
    larger.train()(torch.rand(1, 3, 32, 64), {"dense"})  # torch itself takes it


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
    monkeypatch.setattr(fetching, "network_problem", lambda: None)
    with pytest.raises(
        UserError, match=r"^pretrained: cannot fetch timm's weights of resnet10t [(]no connection[)]; set"
    ):
        Backbone("resnet10t", (64, 64), pretrained=True)


def test_a_hub_that_cannot_be_reached_is_one_line_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(fetching, "network_problem", lambda: OSError("https://hub cannot be reached: no such host"))
    monkeypatch.setattr(fetching.huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)
    with pytest.raises(UserError) as caught:
        Backbone("resnet10t", (64, 64), pretrained=True)
    assert str(caught.value) == (
        "pretrained: cannot fetch timm's weights of resnet10t (https://hub cannot be reached: no such host); set"
        " pretrained: false to start from random weights, or name a file that you have with weights"
    )


def test_without_a_network_weights_come_from_the_cache(monkeypatch, tmp_path):
    published = timm.create_model("test_resnet")
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(fetching, "network_problem", lambda: OSError("no such host"))
    cached = {"model.safetensors": str(tmp_path / "model.safetensors")}
    monkeypatch.setattr(fetching.huggingface_hub, "try_to_load_from_cache", lambda repository, file: cached.get(file))
    backbone = Backbone("test_resnet", (64, 64), pretrained=True)
    assert torch.equal(backbone.encoder.model.conv1[0].weight, published.conv1[0].weight)


def test_an_answer_of_any_status_is_a_network_and_no_answer_is_none(monkeypatch):
    def answer(error):
        def respond(request, timeout):
            raise error

        monkeypatch.setattr(fetching.urllib.request, "urlopen", respond)
        return fetching.network_problem()

    assert answer(HTTPError("https://hub", 403, "forbidden", None, None)) is None
    assert answer(URLError(ssl.SSLCertVerificationError("no certificates"))) is None
    assert "Name or service not known" in str(answer(URLError(socket.gaierror(-2, "Name or service not known"))))
    assert "refused" in str(answer(URLError(ConnectionRefusedError("refused"))))
    assert "does not answer" in str(answer(TimeoutError()))


def test_a_model_whose_weights_timm_does_not_publish_says_so():
    with pytest.raises(
        UserError, match=r"^pretrained: timm publishes no weights of test_mambaout; set pretrained: fal"
    ):
        Backbone("test_mambaout", (64, 64), pretrained=True)


def test_pretrained_weights_are_asked_of_timm(monkeypatch):
    create, asked = timm.create_model, []

    def as_downloaded(name, pretrained=False, **options):
        asked.append(pretrained)
        model = create(name, pretrained=False, **options)
        torch.nn.init.constant_(model.conv1[0].weight, 0.5)
        return model

    monkeypatch.setattr(timm, "create_model", as_downloaded)
    monkeypatch.setattr(fetching, "network_problem", lambda: None)
    backbone = Backbone("resnet10t", (64, 64), pretrained=True)
    assert True in asked and (backbone.encoder.model.conv1[0].weight == 0.5).all()


def test_what_a_pass_gives_counts_and_not_what_timm_describes():
    sam = Encoder("samvit_base_patch16", timm_options={"depth": 1, "global_attn_indexes": ()}).fit((64, 96))
    assert sam.model.feature_info[-1]["num_chs"] == 768 and sam.channels == {16: 256}  # the neck's
    tresnet = Encoder("tresnet_m").fit((64, 96))  # its first map is described as of stride 2
    assert list(tresnet.channels) == [4, 8, 16, 32]


def test_images_are_not_padded_where_a_model_takes_them_as_they_are():
    levit = Backbone("levit_128s", (224, 224)).eval()  # a fixed number of tokens, and strides up to 64
    with torch.no_grad():
        maps = levit(torch.rand(1, 3, 224, 224), {"encoder"}).encoder
    assert {stride: tuple(one.shape[-2:]) for stride, one in maps.items()} == {16: (14, 14), 32: (7, 7), 64: (4, 4)}


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("levit_128s", (256, 256), "; use 224 x 224, or set timm_options: {img_size: [256, 256]} ("),
        pytest.param(
            *("halonet26t", (224, 224), "; use 256 x 256 (AssertionError in timm's code, without a reason)"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("gmixer_12_224", (96, 128), "; use 224 x 224, or set timm_options: {img_size: [96, 128]} (Input height"),
            marks=pytest.mark.slow,
        ),
        ("legacy_xception", (96, 128), "; no nearby size that it takes was found: use another model (its map of stri"),
    ],
)
def test_advice_on_sizes_helps(name, size, words):
    with pytest.raises(UserError) as caught:
        Encoder(name).fit(size)
    assert words in str(caught.value)
    if "img_size" in words:
        Encoder(name, timm_options={"img_size": list(size)}).fit(size)
    if "; use 2" in words:
        side = int(words[6:9])
        Encoder(name).fit((side, side))


def test_out_of_memory_is_one_line():
    with pytest.raises(UserError, match=r"^timm_options: out of memory: timm cannot make test_vit with {'embed"):
        Encoder("test_vit", timm_options={"embed_dim": 64 * 10**12})  # petabytes: refused before any page is touched
