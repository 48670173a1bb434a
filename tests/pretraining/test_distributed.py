"""Two processes: the loss is that of the whole batch, and a rank with nothing to learn from holds nobody up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prior3d.data.sample.loading import DrawStream

SOMETIMES_EMPTY = '''
"""A prior that finds nothing on rank 1."""
import os
import torch
from prior3d import Prior

class SometimesEmpty(Prior):
    """Pull features to 1; on rank 1 there is nothing to do."""

    needs = ("image",)

    def __init__(self, backbone):
        super().__init__(backbone)
        self.head = torch.nn.Linear(backbone.dense_channels, 1)

    def forward(self, batch, features):
        if os.environ.get("LOCAL_RANK", "0") == "1":
            return self.zero(features), {}
        dense = features["image"].dense
        return (self.head(dense.movedim(2, -1)) - 1).square().mean(), {}
'''


@pytest.mark.slow
def test_two_ranks_with_an_empty_batch_on_one_finish(recipe, tmp_path):
    (tmp_path / "empty.py").write_text(SOMETIMES_EMPTY)
    text = recipe.read_text()
    start, end = text.index("priors:"), text.index("optim:")
    path = tmp_path / "two.yaml"
    priors = "priors: {sometimes_empty: {}, view_invariance: {points: 64, min_angle: 60}}\nplugins: [empty.py]\n"
    path.write_text(text[:start] + priors + text[end:])
    out = tmp_path / "out"
    program = Path(sys.executable).parent / "prior3d-train"
    arguments = [path, "trainer.devices=2", "trainer.max_steps=4", "probes.correspondence.pairs_per_bin=2"]
    done = subprocess.run([program, *arguments, "--out", out], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = (file.parent for file in out.glob("*/recipe.yaml"))
    assert json.loads((folder / "summary.json").read_text())["steps"] == 4
    weights = load_file(folder / "backbone.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert done.stdout.count("run folder") == 1
    assert draws(folder) == 4 * 2 * 2  # steps, ranks, samples
    last = [folder, "trainer.devices=1", "trainer.max_steps=6", "trainer.probe_after=false"]
    again = subprocess.run([program, "--resume", *last], capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert draws(folder) == 4 * 2 * 2 + 2 * 2
    assert json.loads((folder / "summary.json").read_text())["steps"] == 6


def draws(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["prior3d"]["draws"]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (4, 3)])
def test_another_number_of_processes_repeats_and_skips_no_draw(before, after):
    def drawn(processes, start, stop, ahead):
        streams = [DrawStream(start, stop, 3, rank, processes, ahead) for rank in range(processes)]
        return sorted(draw for stream in streams for draw in stream)

    done = drawn(before, 0, 5, 0)
    ahead = len(done) - 5 * after * 3
    assert done + drawn(after, 5, 9, ahead) == list(range((5 * before + 4 * after) * 3))
