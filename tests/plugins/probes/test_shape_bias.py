"""The cue-conflict test with classifiers that see shape, texture or neither, and its mapping of ImageNet's classes."""

from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from prior3d.backbone import Backbone, Maps
from prior3d.backbone.batch_norm import is_folded
from prior3d.backbone.weights import read_weights
from prior3d.contracts.dataset import DataSpec
from prior3d.contracts.probe import metrics_of
from prior3d.errors import UserError
from prior3d.probes.classifier import checkpoint_classifier
from prior3d.probes.models import FrozenModel
from prior3d.probes.probe_data import ProbeData
from prior3d.randomness import generator
from prior3d_plugins.datasets.classification_folder import ClassificationFolder
from prior3d_plugins.probes.shape_bias.imagenet_classes import (
    SIXTEEN_CLASSES,
    sixteen_from_imagenet,
    sixteen_of_imagenet,
)
from prior3d_plugins.probes.shape_bias.probe import CLASSES, ShapeBias

SIZE = (4, 4)


def save(path, red, green, blue=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*SIZE, 3), (red, green, blue), np.uint8)).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Cue conflicts whose red value is the shape and whose green one is the texture; one image per class agrees."""
    folder = tmp_path_factory.mktemp("conflicts")
    for shape, name in enumerate(CLASSES):
        for step in (0, 1, 5):
            texture = (shape + step) % 16
            save(folder / name / f"{name}{step}-{CLASSES[texture]}{step + 7}.png", shape, texture)
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """One photograph per ImageNet class; red and green together are its number."""
    folder = tmp_path_factory.mktemp("clean")
    for index in range(1000):
        save(folder / f"n{index:08d}_thing.png", index // 250, index % 250, 200)
    return folder


def opened(root):
    return ProbeData({"held_out": ClassificationFolder(DataSpec(SIZE, 1, "test", root), root=root, test_fraction=1.0)})


@pytest.fixture(scope="module")
def data(root):
    made = opened(root)
    yield made
    made.close()


def seen(images):
    """Return the classes of shape and texture [n, 2], or the number of a photograph in both, and which it is."""
    red, green, blue = (images[:, :, 0, 0] * 255).round().long().unbind(1)
    photograph = blue == 200
    number = red * 250 + green
    return torch.where(photograph, number, red), torch.where(photograph, number, green), photograph


def names_it(choose):
    """Return a 1000-way classifier that is sure of one ImageNet class of what `choose` picks of shape and texture."""
    members = torch.tensor([indices[-1] for indices in SIXTEEN_CLASSES.values()])

    def classify(images):
        shape, texture, photograph = seen(images)
        picked = choose(shape, texture)
        index = torch.where(photograph, shape, members[picked.clamp(0, 15)])
        return 20.0 * nn.functional.one_hot(index, 1000)

    return classify


def measured(choose, data, **options):
    probe = ShapeBias(**options)
    return metrics_of(probe, probe.measure(FrozenModel([], classify=names_it(choose)), data))


def test_the_sixteen_classes_are_those_of_imagenet():
    known = {404: "airplane", 295: "bear", 671: "bicycle", 145: "bird", 814: "boat", 898: "bottle", 817: "car"}
    known |= {281: "cat", 765: "chair", 892: "clock", 207: "dog", 386: "elephant", 508: "keyboard", 499: "knife"}
    known |= {766: "oven", 867: "truck", 9: None, 134: None, 242: None, 0: None, 151: None, 269: None, 999: None}
    of = sixteen_of_imagenet()
    for index, name in known.items():
        assert of[index] == (-1 if name is None else CLASSES.index(name))
    assert list(CLASSES) == sorted(CLASSES) and len(CLASSES) == 16
    assert sum(map(len, SIXTEEN_CLASSES.values())) == (of >= 0).sum() == 207  # none is in two
    assert all(a < b for members in SIXTEEN_CLASSES.values() for a, b in pairwise(members))


def test_members_are_what_their_names_say(shared_data):
    names = [path.stem.partition("_")[2] for path in sorted((shared_data / "imagenet-1-per-class").iterdir())]
    expected = {
        "airplane": {"airliner"},
        "bear": {"brown_bear", "American_black_bear", "ice_bear", "sloth_bear"},
        "clock": {"analog_clock", "digital_clock", "wall_clock"},
        "elephant": {"Indian_elephant", "African_elephant"},
        "keyboard": {"computer_keyboard", "typewriter_keyboard"},
        "knife": {"cleaver"},
        "oven": {"rotisserie"},
    }
    for name, members in expected.items():
        assert {names[index] for index in SIXTEEN_CLASSES[name]} == members
    dogs = {names[index] for index in SIXTEEN_CLASSES["dog"]}
    assert {"golden_retriever", "toy_poodle", "pug"} <= dogs and not {"boxer", "timber_wolf", "dingo"} & dogs


def test_probabilities_are_averaged_over_members():
    logits = torch.randn(5, 1000, generator=generator("logits")) * 3
    probabilities = logits.double().exp() / logits.double().exp().sum(1, keepdim=True)
    expected = [[float(row[list(m)].mean()) for m in SIXTEEN_CLASSES.values()] for row in probabilities]
    np.testing.assert_allclose(sixteen_from_imagenet(logits), expected, rtol=1e-9)
    np.testing.assert_allclose(sixteen_from_imagenet(torch.zeros(1, 1000)), 1e-3)  # no class is favored by its size
    with pytest.raises(ValueError, match=r"expected logits \[N, 1000\], got \[2, 1001\]"):
        sixteen_from_imagenet(torch.zeros(2, 1001))


def test_a_classifier_of_shapes_and_one_of_textures(data):
    shape = measured(lambda shape, texture: shape, data)
    assert (shape["shape-correct"], shape["texture-correct"], shape["shape bias"]) == (1, 0, 1)
    texture = measured(lambda shape, texture: texture, data)
    assert (texture["shape-correct"], texture["texture-correct"], texture["shape bias"]) == (0, 1, 0)


def test_images_whose_cues_agree_do_not_count(data):
    scores = ShapeBias().measure(FrozenModel([], classify=names_it(lambda shape, texture: shape)), data)
    assert len(scores.groups) == 32 == scores.statistics["conflicts"].sum()
    assert "cat0-cat7" not in scores.groups and "cat1-chair8" in scores.groups


def test_rates_by_class_are_a_hand_count(data):
    # cats by their shape; of all others those with the next class's texture by that, the rest is called an elephant
    def choose(shape, texture):
        near = texture == (shape + 1) % 16
        other = torch.where(near, texture, torch.full_like(shape, CLASSES.index("elephant")))
        return torch.where(shape == CLASSES.index("cat"), shape, other)

    found = measured(choose, data)
    assert (found["shape-correct, cat"], found["shape bias, cat"]) == (1, 1)
    assert (found["shape-correct, dog"], found["shape bias, dog"]) == (0, 0)
    assert (found["shape-correct, elephant"], found["shape bias, elephant"]) == (0.5, 0.5)
    # 15 next textures, and one car has an elephant's
    assert found["shape-correct"] == 3 / 32 and found["texture-correct"] == 16 / 32
    assert found["shape bias"] == pytest.approx(3 / 19)


def test_without_a_decision_for_either_there_is_no_bias(data):
    found = measured(lambda shape, texture: (shape + 2) % 16, data)
    assert found["shape-correct"] == found["texture-correct"] == 0 and "shape bias" not in found


def test_random_decisions_are_at_chance(data):
    found = measured(lambda s, t: torch.randint(16, s.shape, generator=generator("r", int(s.sum()))), data)
    assert found["shape-correct"] < 0.25 and found["texture-correct"] < 0.25


def test_accuracy_on_clean_photographs_stands_beside_it(data, clean):
    probe = ShapeBias(clean=clean)
    scores = probe.measure(FrozenModel([], classify=names_it(lambda shape, texture: shape)), data)
    found = metrics_of(probe, scores)
    assert found["clean top-1 of 1000"] == found["clean top-1 of 16"] == found["shape-correct"] == 1
    photographs = [name for name in scores.groups if name.startswith("n0")]
    assert 400 < len(photographs) < 600 and scores.statistics["conflicts"].sum() == 32
    names = torch.tensor([int(name[1:9]) for name in photographs])
    assert scores.statistics["clean 16"].sum() == (sixteen_of_imagenet()[names] >= 0).sum()

    def off(images):  # right for 500 of 1000 classes, and for the 16 as often
        logits = names_it(lambda shape, texture: shape)(images)
        number, _, photograph = seen(images)
        return torch.where((photograph & (number >= 500))[:, None], logits.roll(1, 1), logits)

    half = metrics_of(probe, probe.measure(FrozenModel([], classify=off), data))
    assert half["clean top-1 of 1000"] == pytest.approx(float((names < 500).double().mean()))
    assert half["clean top-1 of 1000"] < half["clean top-1 of 16"] < 1  # most neighbors of a dog are dogs
    few = ShapeBias(clean=clean, clean_images=50)
    assert few.measure(FrozenModel([], classify=off), data).statistics["clean 1000"].sum() == 50


class Colors(nn.Module):
    """Stands in for a backbone: its pooled feature holds the class of the shape, normalized."""

    size = SIZE

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, images, reads):
        shape, _, photograph = seen(images)
        entry = torch.where(photograph, sixteen_of_imagenet()[shape], shape.clamp(0, 15))
        vectors = nn.functional.one_hot(entry.clamp_min(0), 16).float() * (entry >= 0)[:, None]
        noise = torch.stack([torch.randn(16, generator=generator("noise", int(s))) for s in shape])
        return Maps({4: images}, None, self.norm(vectors + 0.05 * noise))


def test_a_linear_head_is_fitted_to_clean_photographs(data, clean):
    probe = ShapeBias(head="linear", clean=clean)
    model = FrozenModel([Colors().eval()])
    found = metrics_of(probe, probe.measure(model, data))
    assert found["clean top-1 of 16"] > 0.9 and "clean top-1 of 1000" not in found
    # of classes of a single photograph, which may be in the other half, nothing can be learned
    assert found["shape-correct, dog"] == found["shape-correct, bird"] == found["shape-correct, truck"] == 1
    assert model.backbones[0].norm.num_batches_tracked == 0


def test_a_classifier_gets_the_statistics_of_clean_photographs(data, clean):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, images):
            kept.append(self)
            return names_it(lambda shape, texture: shape)(images) + 0 * self.norm(images).sum()

    kept, head = [], Head().eval()
    ShapeBias(clean=clean).measure(FrozenModel([], classify=head), data)
    assert head.norm.num_batches_tracked == 0 and kept[-1] is not head
    assert kept[-1].norm.running_mean[2] == pytest.approx(200 / 255, abs=1e-5)  # conflicts have no blue
    with pytest.raises(UserError, match="clean: a model with BatchNorm layers needs clean photographs"):
        ShapeBias().measure(FrozenModel([], classify=head), data)


@pytest.mark.parametrize(
    "name", ["mobilenetv2_035", "resnet10t", "convnext_atto", "vit_tiny_patch16_224", "mobilenetv3_small_050"]
)
def test_a_checkpoints_classifier_is_the_models_own(name):
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=7).eval()
    backbone = Backbone(name, (64, 96))
    backbone.encoder.model.load_state_dict(whole.state_dict(), strict=False)
    weights = timm.create_model(name, num_classes=7, **({"dynamic_img_size": True} if "vit" in name else {})).eval()
    weights.load_state_dict(whole.state_dict())
    images = torch.rand(2, 3, 64, 96, generator=generator("images"))
    classify = checkpoint_classifier(backbone.eval(), whole.state_dict())
    expected = weights((images - backbone.encoder.mean) / backbone.encoder.std)
    assert torch.allclose(classify(images), expected, atol=1e-4)
    assert {name.split(".")[0] for name in classify.state_dict()} == {"weight", "bias", "encoder"}


def test_a_backbone_that_is_looked_at_for_a_classifier_still_trains():
    backbone = Backbone("resnet10t", (64, 64)).train()
    classify = checkpoint_classifier(backbone, {"fc.weight": torch.rand(7, 512)})
    assert classify.encoder is backbone.encoder and backbone.encoder.model.bn1.training
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_weights_without_a_classifier_have_none():
    backbone = Backbone("resnet10t", (64, 64))
    assert checkpoint_classifier(backbone, backbone.encoder.model.state_dict()) is None
    with pytest.raises(UserError, match=r"fc\.weight is \[7, 99\] and should be \[classes, 512\] for resnet10t"):
        checkpoint_classifier(backbone, {"fc.weight": torch.zeros(7, 99)})


def test_what_a_user_can_get_wrong_is_said(root, data, clean, tmp_path):
    with pytest.raises(UserError, match=r"needs a classifier that comes with the weights, .* or set head: linear"):
        ShapeBias().measure(FrozenModel([]), data)
    with pytest.raises(ValueError, match="head: linear is fitted to clean photographs: name their folder"):
        ShapeBias(head="linear")
    with pytest.raises(UserError, match=r"^clean: no folder .*nowhere of clean photographs"):
        ShapeBias(clean=tmp_path / "nowhere").check_data(data.parts)
    shapes = FrozenModel([], classify=names_it(lambda shape, texture: shape))
    with pytest.raises(UserError, match=r"of the 1000 classes of ImageNet in .*, got 16 classes"):
        ShapeBias(clean=root).measure(shapes, data)
    for name in CLASSES:
        save(tmp_path / "plain" / name / f"{name}1.png", 0, 0)
        save(tmp_path / "other" / ("lamp" if name == "knife" else name) / f"{name}1-dog1.png", 0, 0)
    cases = [
        ("plain", r"at the end of a name, as in cat7-elephant1\.jpg, got .*airplane1"),
        ("other", r"expected folders of the 16 classes airplane, .*; knife is in only one of the two"),
    ]
    for folder, message in cases:
        refused = opened(tmp_path / folder)
        with pytest.raises(UserError, match=message):
            ShapeBias().measure(shapes, refused)
        refused.close()


def test_real_weights_name_photographs(shared_data):
    backbone = Backbone("mobilenetv2_100", (224, 224), timm_options={"pad_type": "same"}, mean=[0.5] * 3, std=[0.5] * 3)
    weights = read_weights(shared_data / "weights" / "mobilenetv2_100_from_tflite.pth")
    backbone.encoder.model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("classifier")})
    assert is_folded(backbone.encoder.model.bn1)
    classify = checkpoint_classifier(backbone.eval(), weights)
    root = shared_data / "imagenet-1-per-class"
    dataset = ClassificationFolder(DataSpec((224, 224), 1, "test", None), root=root, label="prefix", test_fraction=1.0)
    some = ProbeData({"held_out": dataset}, most=16)
    images, labels = some.field("held_out", "image"), some.field("held_out", "label")
    rows = torch.arange(16)
    with torch.no_grad():
        right = classify(images.take(rows).float() / 255).argmax(1) == labels.take(rows)
    some.close()
    assert right.sum() >= 10  # 80 % of all 1000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_scores(data, clean):
    backbone = Backbone("resnet10t", (64, 64)).eval()
    weights = {"fc.weight": torch.randn(1000, 512, generator=generator("head")), "fc.bias": torch.zeros(1000)}
    scores = []
    for device in ("cpu", "cuda"):
        classify = checkpoint_classifier(backbone.to(device), weights)
        scores.append(ShapeBias(clean=clean).measure(FrozenModel([backbone], device, classify), data))
    assert scores[0].groups == scores[1].groups
    assert (scores[0].statistics["shape"] != scores[1].statistics["shape"]).sum() <= 3


def test_a_decoder_has_no_part_in_the_classifier(data):
    """Its batch normalization must not ask for photographs where the encoder has none."""
    backbone = Backbone("convnext_atto", (32, 32), decoder_stride=4, channels=8).eval()
    weights = {"head.fc.weight": torch.randn(1000, 320), "head.fc.bias": torch.zeros(1000)}
    found = ShapeBias().measure(FrozenModel([backbone], classify=checkpoint_classifier(backbone, weights)), data)
    assert float(found.total()["conflicts"].sum()) > 0


def test_a_model_that_training_gives_statistics_is_refused_before_it_trains(clean):
    backbone = Backbone("resnet10t", (64, 64))
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)  # as weights with folded statistics have it
    ShapeBias().check(backbone)
    ShapeBias(clean=clean).check(backbone, trains=True)
    ShapeBias().check(Backbone("convnext_atto", (64, 64), decoder_stride=4, channels=8), trains=True)
    with pytest.raises(UserError, match="clean: a model with BatchNorm layers needs clean photographs"):
        ShapeBias().check(backbone, trains=True)
