"""Matching and sampling in Triton kernels: in Triton's interpreter on a CPU, and on a GPU where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prior3d.geometry import match_views_batched
from prior3d.losses import sample_one_per_cell
from prior3d.losses.one_per_cell import _LAST, _picked_priorities

INTERPRETER = Path(__file__).parents[1] / "fixtures" / "matching_in_interpreter.py"
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_kernels_equal_plain_torch_in_the_interpreter():
    pytest.importorskip("triton", reason="needs Triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, INTERPRETER], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def views(pairs=4, height=240, width=320):
    """Pairs of one bumpy surface from two nearby poses, with holes."""
    draws = torch.Generator().manual_seed(0)
    row, column = torch.meshgrid(torch.arange(height) / 40, torch.arange(width) / 40, indexing="ij")
    depth = 2 + 0.2 * (row.sin() + (2 * column).cos()).repeat(2 * pairs, 1, 1)
    depth = depth + 0.005 * torch.randn(depth.shape, generator=draws)
    depth[torch.rand(depth.shape, generator=draws) < 0.1] = 0
    cameras = torch.tensor([[290.0, 0, width / 2], [0, 290, height / 2], [0, 0, 1]]).repeat(pairs, 1, 1)
    poses = torch.eye(4).repeat(2, pairs, 1, 1)
    poses[1, :, :3, 3] = 0.03 * torch.randn(pairs, 3, generator=draws)
    return depth[:pairs], depth[pairs:], cameras, cameras, *poses


@pytest.mark.gpu
@gpu
def test_matches_on_a_gpu_are_those_of_the_cpu():
    given = views()
    wanted = match_views_batched(*given, max_distance=0.05)
    found = match_views_batched(*(tensor.cuda() for tensor in given), max_distance=0.05)
    valid = found.valid.cpu()
    assert wanted.valid.float().mean() > 0.2
    assert (valid != wanted.valid).float().mean() < 1e-3  # ties and rounding
    both = valid & wanted.valid
    assert (found.pixels_b.cpu()[both] != wanted.pixels_b[both]).float().mean() < 1e-3
    assert torch.equal(found.pixels_a.cpu(), wanted.pixels_a)


@pytest.mark.gpu
@gpu
def test_samples_on_a_gpu_keep_the_rule_repeat_and_never_wait():
    draws = torch.Generator().manual_seed(0)
    a, b = (torch.randint(count, (4, 70_000), generator=draws).cuda() for count in (4800, 4700))
    valid = (torch.rand(4, 70_000, generator=draws) < 0.6).cuda()
    found = []
    sample_one_per_cell(a, b, valid, 1024, num_cells_a=4800, num_cells_b=4700)  # compiles
    for _ in range(2):
        torch.manual_seed(3)
        torch.cuda.set_sync_debug_mode("error")
        try:
            found.append(sample_one_per_cell(a, b, valid, 1024, num_cells_a=4800, num_cells_b=4700))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    index, chosen = found[0]
    assert chosen.all()
    for cells in (a, b):
        assert all(len(row.unique()) == 1024 for row in cells.gather(1, index))
    assert valid.gather(1, index).all()
    torch.manual_seed(3)
    high = 2**62 // 70_000
    priority = torch.randint(high, a.shape, device="cuda") * 70_000 + torch.arange(70_000, device="cuda")
    plain = _picked_priorities(a, b, valid, priority, 4800, 4700)
    order, wanted = plain.topk(1024, dim=1, largest=False)
    assert (order < _LAST).all() and torch.equal(wanted, index)
