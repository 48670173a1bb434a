"""Sampling of matches in Triton kernels against plain torch, and the gathering of features."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prior3d.losses import gather_cells, gather_pairs, matches, one_per_cell, sample_cell_matches, sample_one_per_cell

INTERPRETER = Path(__file__).parents[1] / "fixtures" / "matching_in_interpreter.py"


@pytest.mark.slow
def test_kernels_pick_the_same_matches_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="needs Triton")
    done = subprocess.run(
        [sys.executable, INTERPRETER, "sample"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 15
    assert found["cells 7"] == found["strided 7"] == [7, 7, 0] and found["one view 0"] == [0, 0, 0]
    assert found["cells 1000"][0] > 40 and min(found["pixels 300"]) > 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("stride", "count"), [(4, 384), (14, 384), (4, 6000)])
def test_kernels_pick_what_torch_picks_on_a_gpu_without_waiting(
    stride: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    slots = torch.arange(240 * 320)
    pixels_a = (torch.stack([slots % 320, slots // 320], -1) + 0.5).expand(16, -1, 2)
    pixels_b = (pixels_a * 1.1 + torch.randn(16, 240 * 320, 2, generator=generator) - 9).cuda()
    valid = ((pixels_b > 0) & (pixels_b < 240)).all(-1)
    valid[3] = False
    grid = (-(-240 // stride), -(-320 // stride))
    arguments = (pixels_a.cuda(), pixels_b, valid, grid, stride, count)
    sample_cell_matches(*arguments)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.manual_seed(1)
        found = sample_cell_matches(*arguments)
        torch.manual_seed(1)
        again = sample_cell_matches(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    for module in (matches, one_per_cell):
        monkeypatch.setattr(module, "triton_runs_on", lambda device: False)
    torch.manual_seed(1)
    expected = sample_cell_matches(*arguments)
    assert expected.valid.any() and not expected.valid[3].any()
    chosen = expected.valid
    if stride == 4:  # torch multiplies by the inverse on a GPU, which is exact for powers of two alone
        assert torch.equal(found.valid, chosen)
        assert all(torch.equal(one[chosen], other[chosen]) for one, other in zip(found, expected, strict=True))
    assert (found.valid.sum(1) - chosen.sum(1)).abs().max() <= 2
    for cells in (found.cells_a, found.cells_b):
        for row in range(16):
            kept = cells[row][found.valid[row]]
            assert len(kept.unique()) == len(kept)
    assert torch.equal(found.pixels_b[found.valid], pixels_b.gather(1, _twice(found.index))[found.valid])


def _twice(index: torch.Tensor) -> torch.Tensor:
    return index[..., None].expand(-1, -1, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cells_of_other_types_and_a_generator_pick_the_same_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    cells_a = torch.randint(900, (4, 5000), device="cuda", generator=generator)
    cells_b = torch.randint(700, (4, 5000), device="cuda", generator=generator).mT.contiguous().mT
    valid = torch.rand(4, 5000, device="cuda", generator=generator) < 0.5
    cells_a[~valid] = -(10**12)

    def draw(count: int, cells_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stream = torch.Generator("cuda").manual_seed(5)
        sizes = {"num_cells_a": 900, "num_cells_b": 700, "generator": stream}
        return sample_one_per_cell(cells_a, cells_b, valid, count, **sizes)

    found = [draw(count, cells) for count in (0, 50, 5500) for cells in (cells_b, cells_b.int())]
    monkeypatch.setattr(one_per_cell, "triton_runs_on", lambda device: False)
    wanted = [draw(count, cells_b) for count in (0, 0, 50, 50, 5500, 5500)]
    for (index, picked), (index_there, picked_there) in zip(found, wanted, strict=True):
        assert torch.equal(picked, picked_there)
        assert torch.equal(index[picked], index_there[picked])


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_pairs_of_features_and_their_gradient_equal_those_gathered_view_by_view(
    views: int, channels_last: bool, device: str
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(3 * views, 5, 4, 6, generator=generator, dtype=torch.float64)
    if channels_last:
        dense = dense.contiguous(memory_format=torch.channels_last)
    dense = dense.to(device).unflatten(0, (3, views)).requires_grad_()
    cells_a, cells_b = (torch.randint(24, (2, 3 * (views - 1), 7), generator=generator)).to(device)
    found = gather_pairs(dense, cells_a, cells_b)
    others = [slice(3 * number, 3 * number + 3) for number in range(views - 1)]
    expected = (
        torch.cat([gather_cells(dense[:, 0], cells_a[groups]) for groups in others]),
        torch.cat([gather_cells(dense[:, 1 + number], cells_b[groups]) for number, groups in enumerate(others)]),
    )
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    weights = [torch.randn(rows.shape, generator=generator, dtype=torch.float64).to(device) for rows in expected]
    gradients = [torch.autograd.grad(pair, dense, weights)[0] for pair in (found, expected)]
    torch.testing.assert_close(*gradients)
    on_gpu = device == "cuda" and channels_last
    assert (gradients[0].stride() == dense.stride()) == (on_gpu or not channels_last)
    assert torch.autograd.gradcheck(lambda maps: gather_pairs(maps, cells_a, cells_b), (dense,), nondet_tol=1e-9)


def test_wrong_cells_of_pairs_are_named() -> None:
    cells = torch.zeros(2, 7, dtype=torch.int64)
    for dense, other in ((torch.ones(2, 1, 3, 4, 5), cells), (torch.ones(2, 2, 3, 4, 5), cells[:1])):
        with pytest.raises(ValueError, match=r"expected dense \[B, V, C, h, w\] and cells \[\(V - 1\) \* B, N\], got"):
            gather_pairs(dense, cells, other)
