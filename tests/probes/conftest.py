"""Small labelled data sets in memory, and models whose features are known."""

import numpy as np
import pytest
import torch
from torch import nn

from prior3d.backbone import Maps
from prior3d.contracts.dataset import Dataset, DataSpec, View
from prior3d.probes.models import FrozenModel
from prior3d.probes.probe_data import ProbeData
from prior3d.randomness import generator

SPLITS = ("train", "validation", "test")


class Squares(Dataset):
    """Images of 16 x 24 pixels: a grey value says the class of each half."""

    provides = frozenset({"image", "semantic", "depth", "label"})
    splits = SPLITS
    class_names = ("dark", "middle", "bright")

    def __init__(self, spec, *, counts: tuple[int, ...] = (3, 2)):
        super().__init__(spec)
        self.counts = counts
        self.scenes = [f"scene-{index}" for index in range(len(counts))]

    def __len__(self):
        return sum(self.counts)

    def fingerprint(self, frames=None):
        return ""

    def sample(self, draw, fields, generator):
        return [self.load(0, draw % self.counts[0], fields)]

    def frame_count(self, scene):
        return self.counts[scene]

    def load(self, scene, frame, fields):
        rng = np.random.default_rng([scene, frame, SPLITS.index(self.spec.split)])
        left, right = rng.integers(0, 3, 2)
        classes = np.repeat([left, right], 12)[None].repeat(16, 0).astype(np.uint8)
        image = (classes * 100)[..., None].repeat(3, -1)
        depth = 1.0 + classes.astype(np.float32)
        return View({"image": image, "depth": depth, "semantic": classes, "label": int(left)}, scene, frame)


class Numbered(Dataset):
    """Black images of 16 x 24 pixels, numbered in the first one; a function of (rng, frame) makes their labels."""

    splits = SPLITS

    def __init__(self, spec, labels, *, frames: tuple[int, ...] = (12, 12), class_names: tuple[str, ...] = ()):
        super().__init__(spec)
        self.labels, self.frames, self.class_names = labels, frames, class_names
        self.provides = frozenset({"image", *labels(np.random.default_rng(0), 0)})
        self.scenes = [f"room-{index}" for index in range(len(frames))]

    def __len__(self):
        return sum(self.frames)

    def fingerprint(self, frames=None):
        return ""

    def sample(self, draw, fields, generator):
        raise NotImplementedError

    def frame_count(self, scene):
        return self.frames[scene]

    def load(self, scene, frame, fields):
        split = SPLITS.index(self.spec.split)
        image = np.zeros((*self.spec.size, 3), np.uint8)
        image[0, 0, 0] = split * 100 + scene * 20 + frame
        labels = self.labels(np.random.default_rng([split, scene, frame]), frame)
        return View({"image": image, **labels}, scene, frame, self.spec.size)


class Planted(FrozenModel):
    """Features looked up by the number of an image: for each backbone a function of (labels, generator) makes them."""

    def __init__(self, data, field, *look_ups):
        super().__init__(())
        self.tables = [{} for _ in look_ups]
        for part in data.parts:
            images, labels = (
                data.field(part, name).take(torch.arange(len(data.frames[part]))) for name in ("image", field)
            )
            labels = labels.float() if labels.is_floating_point() else labels.long()
            for table, look_up in zip(self.tables, look_ups, strict=True):
                table |= dict(zip(images[:, 0, 0, 0].tolist(), look_up(labels, generator(part)), strict=True))

    def read(self, images, kind="dense"):
        numbers = (images[:, 0, 0, 0] * 255).round().long().tolist()
        return tuple(torch.stack([table[number] for number in numbers]) for table in self.tables)


class Pixels(nn.Module):
    """Stands in for a backbone: the mean colours of cells of 4 x 4 pixels, times a factor."""

    size = (16, 24)

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, images, reads):
        cells = nn.functional.avg_pool2d(images, 4) * self.factor
        return Maps({4: cells}, cells, cells.mean((2, 3)) if "pooled" in reads else None)

    def encode_dense(self, images):
        return self(images, ("dense",)).dense


@pytest.fixture
def squares(tmp_path):
    def make(split="train", **options):
        return Squares(DataSpec(size=(16, 24), views=1, split=split, cache=tmp_path), **options)

    return make


@pytest.fixture
def data(squares):
    opened = ProbeData({"train": squares(), "held_out": squares("test")})
    yield opened
    opened.close()


@pytest.fixture
def open_data(tmp_path):
    """Open numbered images with the labels that a function makes; see `Numbered`."""
    opened = []

    def make(labels, **options):
        parts = {
            part: Numbered(DataSpec(size=(16, 24), views=1, split=split, cache=tmp_path), labels, **options)
            for part, split in (("train", "train"), ("held_out", "test"))
        }
        opened.append(ProbeData(parts))
        return opened[-1]

    yield make
    for data in opened:
        data.close()


@pytest.fixture
def planted():
    """Make a model of numbered images from a field of their data; see `Planted`."""
    return Planted


@pytest.fixture
def pixels():
    return FrozenModel([Pixels()])


@pytest.fixture
def two_parts():
    return FrozenModel([Pixels(), Pixels(10.0)])
