"""The fine-tuning probe against images that say their classes, labels that say nothing, and torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from prior3d.backbone import Backbone
from prior3d.backbone.batch_norm import unfold_batch_norm
from prior3d.contracts.dataset import Dataset, DataSpec, View
from prior3d.contracts.probe import metrics_of
from prior3d.errors import UserError
from prior3d.probes import count_hits
from prior3d.probes.models import FrozenModel
from prior3d.probes.probe_data import ProbeData
from prior3d.randomness import generator
from prior3d.registry.schema import construct
from prior3d_plugins.probes.finetune_segmentation import FinetuneSegmentation, cut, label_order, random_crops

SIZE = (32, 48)
PALETTE = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)


class Quarters(Dataset):
    """Images of four quarters; each shows the color of its class, or of a class drawn independently."""

    provides = frozenset({"image", "semantic"})
    splits = ("train", "test")
    class_names = ("red", "green", "blue")

    def __init__(self, spec, *, scenes=4, frames=5, shuffled=False, unknown=False):
        super().__init__(spec)
        self.scenes = [f"scene-{index}" for index in range(scenes)]
        self.frames, self.shuffled, self.unknown = frames, shuffled, unknown

    def __len__(self):
        return len(self.scenes) * self.frames

    def fingerprint(self, frames=None):
        return ""

    def sample(self, draw, fields, generator):
        return [self.load(0, draw % self.frames, fields)]

    def frame_count(self, scene):
        return self.frames

    def load(self, scene, frame, fields):
        draws = np.random.default_rng([scene, frame, self.splits.index(self.spec.split)])
        shown, labels = (
            draws.integers(0, 3, (2, 2)).repeat(SIZE[0] // 2, 0).repeat(SIZE[1] // 2, 1).astype(np.uint8) for _ in "ab"
        )
        labels = labels if self.shuffled else shown.copy()
        if self.unknown:
            labels[:] = 255
        return View({"image": PALETTE[shown], "semantic": labels}, scene, frame)


@pytest.fixture
def opened(tmp_path):
    kept = []

    def make(**options):
        parts = {
            part: Quarters(DataSpec(size=SIZE, views=1, split=split, cache=tmp_path), **options)
            for part, split in (("train", "train"), ("held_out", "test"))
        }
        kept.append(ProbeData(parts))
        return kept[-1]

    yield make
    for data in kept:
        data.close()


def frozen(*names, **options):
    torch.manual_seed(0)
    return FrozenModel([Backbone(name, SIZE, **options).eval().requires_grad_(False) for name in names])


def probe(**options):
    return FinetuneSegmentation(**{"labels": (1.0,), "steps": 60, "batch": 4, "lr": 5e-3, "channels": 16, **options})


def test_classes_that_the_images_show_are_learned_and_labels_that_say_nothing_are_not(opened):
    model = frozen("test_convnext")
    learned = metrics_of(probe(), probe().measure(model, opened()))
    assert learned["accuracy, 100 % of labels"] > 0.95 and learned["mIoU, 100 % of labels"] > 0.9
    blind = metrics_of(probe(), probe().measure(model, opened(shuffled=True)))
    assert 0.2 < blind["accuracy, 100 % of labels"] < 0.47  # a third, of 80 independent quarters


def test_fewer_labels_and_fewer_steps_teach_less(opened):
    data, model = opened(frames=8), frozen("test_convnext")
    few = probe(labels=(1.0, 0.03), steps=40)
    found = metrics_of(few, few.measure(model, data))  # 32 images, and 1
    assert found["mIoU, 3 % of labels"] < found["mIoU, 100 % of labels"] - 0.05
    short = probe(steps=1)
    assert metrics_of(short, short.measure(model, data))["mIoU, 100 % of labels"] < found["mIoU, 100 % of labels"] - 0.2


@pytest.mark.parametrize(
    ("names", "options", "decoder"),
    [
        (("test_resnet",), {"decoder_stride": 8, "channels": 8}, "pretrained"),
        (("test_resnet", "test_convnext"), {"decoder_stride": 4, "channels": 8}, "fresh"),
        (("test_vit",), {}, "fresh"),
    ],
    ids=["own decoder", "two backbones", "no decoder"],
)
def test_every_kind_of_model_trains_and_stays_as_it_was(opened, names, options, decoder):
    model, data = frozen(*names, **options), opened()
    before = [{name: value.clone() for name, value in backbone.state_dict().items()} for backbone in model.backbones]
    scores = probe(decoder=decoder).measure(model, data)
    assert metrics_of(probe(), scores)["accuracy, 100 % of labels"] > 0.6
    assert scores.groups == tuple(f"scene-{index}" for index in range(4))
    for backbone, state in zip(model.backbones, before, strict=True):
        assert not backbone.training and not any(parameter.requires_grad for parameter in backbone.parameters())
        assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize(("decoder", "matters"), [("pretrained", True), ("fresh", False)])
def test_only_a_pretrained_decoder_hands_on_its_weights(opened, decoder, matters):
    model, data = frozen("test_convnext", decoder_stride=4, channels=8), opened()
    first = probe(decoder=decoder, steps=3).measure(model, data)
    with torch.no_grad():
        model.backbones[0].decoder.smooth[0].weight.neg_()
    second = probe(decoder=decoder, steps=3).measure(model, data)
    assert (first.to_plain() != second.to_plain()) is matters


def test_the_encoder_trains_unless_its_rate_is_zero(opened):
    model, data = frozen("test_convnext"), opened()
    own = probe(encoder_lr_scale=0.0)
    segmenter = own._segmenter(model.trainable(), 3).train()
    start = {name: value.clone() for name, value in segmenter.named_parameters()}
    own._train(segmenter, data, torch.arange(20), torch.device("cpu"), 0)
    moved = {name for name, value in segmenter.named_parameters() if not torch.equal(value, start[name])}
    assert moved and not any(name.startswith("encoders.") for name in moved)
    segmenter = probe()._segmenter(model.trainable(), 3).train()
    start = {name: value.clone() for name, value in segmenter.named_parameters()}
    probe()._train(segmenter, data, torch.arange(20), torch.device("cpu"), 0)
    unmoved = {name for name, value in segmenter.named_parameters() if torch.equal(value, start[name])}
    assert all("head.norm" in name for name in unmoved)  # before a classifier: the maps do not depend on it


def test_a_seed_decides_everything(opened):
    model, data = frozen("test_convnext"), opened()
    once, again, other = (probe(labels=(1.0, 0.2), steps=5).measure(model, data, seed).to_plain() for seed in (0, 0, 1))
    assert once == again != other
    assert (
        probe(labels=(0.2,), steps=5).measure(model, data, 0).statistics["hits, 20 % of labels"].tolist()
        == (once["statistics"]["hits, 20 % of labels"])
    ), "a share does not depend on the other shares"


def test_labels_are_taken_evenly_over_scenes():
    scenes = torch.tensor([0] * 10 + [1] * 40 + [2] * 10)
    order = label_order(scenes, 0)
    assert sorted(order.tolist()) == list(range(60))  # nested: a share is the first so many
    for count in (6, 12, 30, 54):
        taken = torch.bincount(scenes[order[:count]], minlength=3)
        assert (taken - count * torch.tensor([10, 40, 10]) / 60).abs().max() < 1.5
    assert torch.equal(order, label_order(scenes, 0)) and not torch.equal(order, label_order(scenes, 1))
    assert len(set(torch.arange(4).repeat_interleave(5)[label_order(torch.arange(4).repeat_interleave(5), 3)[:4]])) == 4


def test_crops_move_images_and_labels_together():
    semantic = torch.arange(4 * 48 * 64).view(4, 48, 64) // 37 % 3
    semantic = semantic.repeat_interleave(4, 1).repeat_interleave(4, 2).to(torch.uint8)
    image = (semantic * 100)[:, None].expand(-1, 3, -1, -1)
    found, truth = cut(image, semantic, random_crops(4, 0.3, True, generator("crops")))
    assert found.shape == image.shape and truth.shape == semantic.shape
    same = (found[:, 0] * 255 / 100 - truth).abs() < 0.01  # between two classes an image blends and labels do not
    assert same.float().mean() > 0.6 and not torch.equal(truth, semantic.long())


def test_crops_have_the_area_and_shape_asked_for_and_lie_within_the_image():
    crops = random_crops(2000, 0.4, True, generator("crops"))
    corners = crops @ torch.tensor([[-1.0, 1, -1, 1], [-1, -1, 1, 1], [1, 1, 1, 1]])
    assert corners.abs().max() <= 1 + 1e-5
    area = (crops[:, 0, 0] * crops[:, 1, 1]).abs()
    assert area.min() >= 0.4 - 1e-6 and area.min() < 0.41 and area.max() > 0.99
    assert 0.45 < (crops[:, 0, 0] < 0).float().mean() < 0.55
    stretch = (crops[:, 0, 0] / crops[:, 1, 1]).abs().log().abs().exp()
    assert 1.2 < stretch.max() <= 4 / 3 + 1e-5


def test_without_crops_and_flips_images_stay_as_they_are():
    image = torch.randint(0, 256, (3, 3, 20, 28), generator=generator("image"), dtype=torch.uint8)
    semantic = torch.randint(0, 256, (3, 20, 28), generator=generator("semantic"), dtype=torch.uint8)
    found, truth = cut(image, semantic, random_crops(3, 1.0, False, generator("crops")))
    assert (found - image / 255).abs().max() < 1e-4 and torch.equal(truth, semantic.long())
    mirrored = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]]).expand(3, -1, -1)
    assert torch.equal(cut(image, semantic, mirrored)[1], semantic.long().flip(-1))


def test_metrics_are_those_of_torchmetrics():
    draws = generator("predictions")
    truth, predicted = torch.randint(0, 4, (2, 5, 12, 16), generator=draws)
    truth[torch.rand(truth.shape, generator=draws) < 0.2] = 255
    labeled, hits, claimed = (counts.sum(0).double() for counts in count_hits(predicted, truth, 5))  # class 4 is absent
    total = {"labelled": labeled, "hits, 100 % of labels": hits, "predicted, 100 % of labels": claimed}
    found = probe().summarize(total)
    iou = multiclass_jaccard_index(predicted, truth, 5, ignore_index=255)
    right = multiclass_accuracy(predicted, truth, 5, ignore_index=255, average="micro")
    assert found == pytest.approx({"mIoU, 100 % of labels": float(iou), "accuracy, 100 % of labels": float(right)})


def test_what_cannot_be_measured_is_said_in_words(opened):
    with pytest.raises(UserError, match="test_vit has no decoder of its own"):
        probe(decoder="pretrained").measure(frozen("test_vit"), opened())
    with pytest.raises(UserError, match="no labeled pixel"):
        probe().measure(frozen("test_convnext"), opened(unknown=True))
    with pytest.raises(UserError, match="coarsest stride of test_vit is 16"):
        probe(decoder_stride=32).measure(frozen("test_vit"), opened())
    with pytest.raises(UserError, match="different shares"):
        construct(FinetuneSegmentation, key="probes.finetune", options={"labels": [0.5, 0.5]})


@pytest.mark.parametrize("scale", [1.0, 0.0])  # at 0 batch normalization goes by the batch all the same
def test_folded_statistics_are_refused_whether_the_weights_move_or_not(opened, scale):
    model = frozen("test_resnet")
    (backbone,) = model.backbones
    network = backbone.encoder.model
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.bias, 0.2, 0.2)
    first = next(name for name, layer in network.named_modules() if isinstance(layer, torch.nn.BatchNorm2d))
    tuned = probe(encoder_lr_scale=scale, steps=2)
    words = f"^the statistics of the BatchNorm layer {first} of test_resnet are folded .*unfold_batch_norm"
    with pytest.raises(UserError, match=words):
        tuned.check(backbone)
    with pytest.raises(UserError, match=words):
        tuned.measure(model, opened())
    unfold_batch_norm(network, network, [torch.randn(8, 3, *SIZE, generator=generator("images"))])
    tuned.check(backbone)
    assert tuned.measure(model, opened()).groups


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", [32, "bf16"])
def test_on_a_gpu(opened, precision):
    torch.manual_seed(0)
    model = FrozenModel([Backbone("test_convnext", SIZE).eval().requires_grad_(False).cuda()], "cuda")
    tuned = probe(precision=precision)
    assert metrics_of(tuned, tuned.measure(model, opened()))["accuracy, 100 % of labels"] > 0.95
