"""A stranger's dataset brings fields of its own, and a stranger's prior reads them, through the real commands."""

import json

import numpy as np
import pytest

from prior3d import cli

PLUGINS = '''
from pathlib import Path

import numpy as np
import torch

from prior3d.contracts.dataset import Dataset, View
from prior3d.contracts.fields import Field
from prior3d.contracts.prior import Prior
from prior3d.files import fingerprint

asked = []


class AcmeFlow(Dataset):
    """Images with optical flow and tracked points, one .npz for each.

    Args:
        spec: what every dataset gets.
        root: folder of the files.
        brings: "nothing" leaves out what says what the flow is; "depth" calls it as prior3d calls depth.
    """

    provides = frozenset({"image", "acme/flow", "acme/tracks"})
    fields = (
        Field("acme/flow", "[B, V, 2, H, W]", "float32", "shares of the image's size", moves="vectors"),
        Field("acme/tracks", "[N, 2]", "float32", "pixels of the file", batches="pack"),
    )

    def __init__(self, spec, *, root: Path, brings: str = "all"):
        super().__init__(spec)
        self.files = sorted(root.glob("*.npz"))
        self.scenes = ["all"]
        if brings != "all":
            self.fields = () if brings == "nothing" else (Field("depth", "[B, V, H, W]", "float32", "mine"),)

    def __len__(self):
        return len(self.files)

    def fingerprint(self, frames=None):
        return fingerprint(self.files if frames is None else [self.files[frame] for _, frame in frames])

    def frame_count(self, scene):
        return len(self.files)

    def sample(self, index, fields, generator):
        return [self.load(0, index % len(self.files), fields)]

    def load(self, scene, frame, fields):
        asked.append(fields)
        with np.load(self.files[frame]) as arrays:
            image = arrays["image"]
            return View({name: arrays[name.removeprefix("acme/")] for name in fields}, scene, frame, image.shape[:2])


class FollowFlow(Prior):
    """Learns where pixels go."""

    encodes = ("image",)
    needs = ("acme/flow", "acme/tracks")

    def __init__(self, backbone, *, unknown: bool = False):
        super().__init__(backbone)
        self.head = torch.nn.Conv2d(backbone.dense_channels, 2, 1)
        if unknown:
            self.needs = ("acme/flow", "acme/stream")

    def forward(self, batch, features):
        flow, tracks, view = batch["acme/flow"], batch["acme/tracks"], batch["acme/tracks_view"]
        assert flow.dtype == torch.float32 and tuple(flow.shape[1:]) == (1, 2, 32, 48)
        assert len(tracks) == len(view) and int(view.max()) < len(flow)
        target = flow.flatten(0, 1)[:, :, 2::4, 2::4]
        loss = (self.head(features["image"].dense.flatten(0, 1)) - target).square().mean()
        return loss, {"tracks": torch.tensor(len(tracks) / len(flow)), "flow": flow.mean()}
'''
RECIPE = """
seed: 3
backbone: {{name: convnext_atto, decoder_stride: 4, channels: 8}}
data:
  {{name: acme_flow, root: {root}, size: [32, 48], views: 1, batch_size: 2, workers: {workers}, augment: null}}
priors: {{follow_flow: {{}}}}
trainer: {{max_steps: 2, accelerator: cpu, log_every: 1, gradients_every: 0, draw_every: 0}}
plugins: [acme.py]
"""


@pytest.fixture
def recipe(tmp_path):
    """Four files, two tracked points in each; flow is 0.25 to the right everywhere."""
    (tmp_path / "acme.py").write_text(PLUGINS)
    root = tmp_path / "files"
    root.mkdir()
    for number in range(4):
        image = np.random.default_rng(number).integers(0, 255, (32, 48, 3), np.uint8)
        flow = np.full((32, 48, 2), [0.25, 0.0], np.float32)
        np.savez(root / f"{number}.npz", image=image, flow=flow, tracks=np.ones((2, 2), np.float32))
    path = tmp_path / "flow.yaml"
    path.write_text(RECIPE.format(root=root, workers=1))
    return path


def test_a_field_goes_from_a_strangers_dataset_to_a_strangers_prior(recipe, tmp_path):
    assert cli.train([str(recipe), "--out", str(tmp_path / "out")]) == 0
    (summary,) = (tmp_path / "out").glob("*/summary.json")
    assert json.loads(summary.read_text())["losses, mean of the last batches"]["follow_flow"] > 0


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "priors.follow_flow.unknown=true",
            "priors.follow_flow: follow_flow needs acme/stream, which acme_flow does not provide",
        ),
        ("data.brings=nothing", "data.name: AcmeFlow provides acme/flow, and nothing says what that is"),
        ("data.brings=depth", "data.name: AcmeFlow brings a field depth, which is one of prior3d's own"),
    ],
)
def test_what_no_dataset_brings_is_refused_before_data_is_read(recipe, tmp_path, capsys, override, expected):
    from prior3d.registry import Registry

    dataset = Registry([tmp_path / "acme.py"]).get("datasets", "acme_flow")
    __import__("sys").modules[dataset.__module__].asked.clear()
    assert cli.train([str(recipe), override, "data.workers=0", "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and expected in line
    assert __import__("sys").modules[dataset.__module__].asked == [] and not (tmp_path / "out").exists()
