"""A small labelled data set in memory, and models whose features are known."""

import numpy as np
import pytest
import torch
from torch import nn

from prior3d.backbone import Maps
from prior3d.data.dataset import Dataset, DataSpec, View
from prior3d.probes.models import FrozenModel
from prior3d.probes.probe_data import ProbeData


class Squares(Dataset):
    """Images of 16 x 24 pixels: a grey value says the class of each half."""

    provides = frozenset({"image", "semantic", "depth", "label"})
    splits = ("train", "validation", "test")
    class_names = ("dark", "middle", "bright")

    def __init__(self, spec, *, counts: tuple[int, ...] = (3, 2)):
        super().__init__(spec)
        self.counts = counts
        self.scenes = [f"scene-{index}" for index in range(len(counts))]

    def __len__(self):
        return sum(self.counts)

    def sample(self, draw, fields, generator):
        return [self.load(0, draw % self.counts[0], fields)]

    def frame_count(self, scene):
        return self.counts[scene]

    def load(self, scene, frame, fields):
        rng = np.random.default_rng([scene, frame, ("train", "validation", "test").index(self.spec.split)])
        left, right = rng.integers(0, 3, 2)
        classes = np.repeat([left, right], 12)[None].repeat(16, 0).astype(np.uint8)
        image = (classes * 100)[..., None].repeat(3, -1)
        return View(
            image=image,
            depth=1.0 + classes.astype(np.float32),
            semantic=classes,
            label=int(left),
            scene=scene,
            frame=frame,
        )


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
def pixels():
    return FrozenModel([Pixels()])


@pytest.fixture
def two_parts():
    return FrozenModel([Pixels(), Pixels(10.0)])
