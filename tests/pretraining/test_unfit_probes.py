"""Probes that the data of a run do not fit are left out, with a line; those that the command line names are refused."""

import json

from prior3d import cli

RECIPE = """\
backbone: {{name: test_convnext2, decoder_stride: 4, channels: 8}}
data: {{name: image_folder, root: {root}, test_fraction: 0.5, size: [48, 64], batch_size: 2, views: 1, workers: 0,
  cache: {root}/../cache}}
priors: {{augmentation_invariance: {{}}}}
trainer: {{max_steps: 1, accelerator: cpu, draw_every: 0, gradients_every: 0}}
probes: {{segmentation: {{}}, glow: {{}}}}
plugins: [glow.py]
"""
GLOW = '''
import torch
from prior3d.contracts.probe import Probe, by_group


class Glow(Probe):
    """How strong features are."""

    def measure(self, model, data, seed=0):
        (features,) = data.features(model, "held_out")
        values = features.take(torch.arange(len(features))).float().abs().mean((1, 2, 3))
        return by_group(*data.groups("held_out"), {"sum": values, "count": torch.ones(len(values))})

    def summarize(self, total):
        return {"glow": float(total["sum"] / total["count"])}
'''


def test_a_probe_that_does_not_fit_is_left_out_with_a_line(tmp_path, capsys):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for index in range(8):
        Image.new("RGB", (64, 48), (index * 30, 0, 0)).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "glow.py").write_text(GLOW)
    (tmp_path / "small.yaml").write_text(RECIPE.format(root=tmp_path / "images"))
    arguments = [str(tmp_path / "small.yaml"), "--out", str(tmp_path / "runs")]
    assert cli.train([*arguments, "probes.segmentation.seeds=2"]) == 2
    words = "segmentation: needs semantic, which the data (ImageFolder) does not provide"
    assert f"small.yaml:6: probes.{words}" in capsys.readouterr().err
    assert cli.train(arguments) == 0
    assert f"left out: {words}\n" in capsys.readouterr().out
    (run,) = (tmp_path / "runs").iterdir()
    assert list(json.loads((run / "report.json").read_text())["probes"]) == ["glow"]
    assert "segmentation was left out: needs semantic" in (run / "report.md").read_text()


STREAM = '''
import numpy as np
from prior3d import Dataset, View


class Stream(Dataset):
    """Gray images without an order: there is no frame 3."""

    splits = ("train", "test")

    def __len__(self):
        return 4

    def fingerprint(self, frames=None):
        return ""

    def sample(self, index, fields, generator):
        return [View({"image": np.full((48, 64, 3), 40 * (index % 4), np.uint8)}, 0, index % 4)]
'''


def test_probes_are_left_out_where_a_dataset_cannot_give_single_frames(tmp_path, capsys):
    (tmp_path / "glow.py").write_text(GLOW)
    (tmp_path / "stream.py").write_text(STREAM)
    text = RECIPE.format(root=tmp_path / "images")
    data = f"data: {{name: stream, size: [48, 64], batch_size: 2, views: 1, workers: 0, cache: {tmp_path}}}\n"
    text = (
        text[: text.index("data:")] + data + text[text.index("priors:") :].replace("[glow.py]", "[glow.py, stream.py]")
    )
    (tmp_path / "small.yaml").write_text(text.replace("segmentation: {}, ", ""))
    arguments = [str(tmp_path / "small.yaml"), "--out", str(tmp_path / "runs")]
    words = "glow: reads frames one by one, and the data (Stream) has no frame_count"
    assert cli.train([*arguments, "probes.glow.seeds=2"]) == 2
    assert f"probes.{words}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert cli.train(arguments) == 0
    assert f"left out: {words}\n" in capsys.readouterr().out
