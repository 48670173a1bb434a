"""The pixel-voxel prior in one pass: in Triton's interpreter where there is no GPU, and on a GPU where there is one."""

import os
import subprocess
import sys

import pixel_voxel_in_interpreter as checks
import pytest
import torch

from prior3d import Features
from prior3d.testing import example_backbone, example_batch, example_features
from prior3d_plugins.priors.pixel_voxel import PixelVoxel

pytest.importorskip("triton")

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def interpret(name):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, checks.__file__, name]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_matches_are_sampled_once_per_voxel():
    checks.sampled()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["matches", "drawn", "whole"])
def test_in_the_interpreter(name):
    assert interpret(name) == [name]


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("name", ["matches", "drawn", "sampled", "whole"])
def test_the_same_on_a_gpu(name):
    getattr(checks, name)()


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": "first", "voxels": "color"},
        {"max_voxels": 60, "chunk_far": 1.5},
        {"negatives": "batch", "exclude_radius": 0.1, "unet": "34c", "width": 0.25},
    ],
)
def test_a_step_waits_once(options, monkeypatch):
    """Forward and backward pass wait for the device where the sizes of the grids are read, and nowhere else."""
    batch = example_batch()
    batch["surface_color"] = batch["surface"] / 8 + 0.5
    batch = {name: value.cuda() for name, value in batch.items()}
    prior = PixelVoxel(example_backbone(), voxel_size=0.1, engine="triton", **options).cuda()
    waits, wait = [], torch.cuda.Event.synchronize

    def count(event):
        waits.append(event)
        wait(event)

    monkeypatch.setattr(torch.cuda.Event, "synchronize", count)

    def step(mode):
        features = {"image": Features(dense=example_features(batch, ("image",))["image"].dense.detach().cuda())}
        features["image"].dense.requires_grad_()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(mode)
        try:
            with torch.autocast("cuda", torch.bfloat16):
                loss, _ = prior(batch, features)
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return loss

    step("default")  # compiles and times
    waits.clear()
    loss = step("error")
    assert len(waits) == 1 and loss > 0 and torch.isfinite(loss)
