"""Matching in Triton kernels against plain torch: in Triton's interpreter on a CPU, and on a GPU where there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prior3d.geometry import ViewMatches, match_views_batched, matching, triton_support, unproject

INTERPRETER = Path(__file__).parents[1] / "fixtures" / "matching_in_interpreter.py"


@pytest.mark.slow
def test_kernels_find_the_same_matches_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="needs Triton")
    done = subprocess.run(
        [sys.executable, INTERPRETER, "search"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    matched = {name: expected for name, (_, expected, _, _) in found.items()}
    assert matched["same"] == found["same"][0] and matched["apart"] == 0
    assert min(matched[name] for name in ("walls", "own radius", "broken")) > 200
    # Distances are rounded in another order: at the limit, and between neighbors equally far, one slot may differ.
    assert {name: case for name, case in found.items() if max(case[2:]) > 1} == {}


def test_without_a_gpu_nothing_is_imported_from_triton() -> None:
    script = (
        "import torch; from prior3d.geometry import match_views; from prior3d.losses import sample_cell_matches\n"
        "k, pose = torch.tensor([[8.0, 0, 4], [0, 8, 3], [0, 0, 1]]), torch.eye(4)\n"
        "a, b = match_views(torch.ones(6, 8), torch.ones(6, 8), k, k, pose, pose)\n"
        "assert sample_cell_matches(a[None], b[None], torch.ones(1, len(a)) > 0, (3, 4), 2, 12).valid.all()\n"
        "import sys; assert not [name for name in sys.modules if name.startswith('prior3d') and 'triton' in name"
        " and name != 'prior3d.geometry.triton_support']"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_triton_is_taken_on_nvidia_gpus_that_are_not_too_old_and_missed_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device, capability = torch.device("cuda", 9), [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setitem(sys.modules, "triton", sys)

    def runs() -> bool:
        triton_support._supported.cache_clear()
        return triton_support.triton_runs_on(device)

    try:
        assert runs() and not triton_support.triton_runs_on(torch.device("cpu"))
        capability[0] = (7, 5)
        assert not runs()
        capability[0] = (9, 0)
        monkeypatch.setitem(sys.modules, "triton", None)
        assert not runs() and not triton_support.triton_runs_on(device)
        assert [record.message for record in caplog.records] == [
            "Triton is not installed: matches of pixels are searched in plain torch, many times slower"
        ]
        monkeypatch.setitem(sys.modules, "triton", sys)
        monkeypatch.setattr(torch.version, "hip", "6.0")
        assert not runs()
    finally:
        triton_support._supported.cache_clear()


def rooms(pairs: int, height: int = 240, width: int = 320) -> list[Tensor]:
    """Pairs of crops of a box from within, with noise and holes; depths [B, H, W] are views of one batch."""
    generator = torch.Generator().manual_seed(pairs)
    intrinsics = torch.tensor([[285.0, 0, 160], [0, 285, 120], [0, 0, 1]]).repeat(pairs, 2, 1, 1)
    zoom = 1 + 0.7 * torch.rand(pairs, 2, 1, generator=generator)
    corner = (zoom - 1) * torch.rand(pairs, 2, 2, generator=generator) * torch.tensor([width, height])
    intrinsics[..., :2, :] *= zoom[..., None]
    intrinsics[..., :2, 2] -= corner
    turn = 0.6 * torch.randn(pairs, 1, 3, 3, generator=generator) + 0.05 * torch.randn(
        pairs, 2, 3, 3, generator=generator
    )
    poses = torch.eye(4).repeat(pairs, 2, 1, 1)
    poses[..., :3, :3] = torch.linalg.matrix_exp(turn - turn.mT)
    center = 0.1 * torch.randn(pairs, 2, 3, generator=generator)
    poses[..., :3, 3] = center + torch.tensor([40.0, -30.0, 5.0])
    rays = unproject(torch.ones(pairs, 2, height, width), intrinsics)
    rays = torch.einsum("bvij,bvhwj->bvhwi", poses[..., :3, :3], rays)
    walls = torch.tensor([2.5, 2.0, 1.5])
    depth = ((walls * rays.sign() - center[:, :, None, None]) / rays).amin(-1)
    depth = depth + 0.003 * torch.randn(depth.shape, generator=generator)
    depth[torch.rand(depth.shape, generator=generator) < 0.05] = 0
    return [value[:, view] for value in (depth, intrinsics, poses) for view in range(2)]


def differing(found: ViewMatches, expected: ViewMatches) -> tuple[float, float]:
    """Shares of the slots that are matched in one way only, and of the matches whose pixel differs."""
    shared = found.valid & expected.valid
    other = (found.pixels_b != expected.pixels_b).any(-1) & shared
    return float((found.valid != expected.valid).float().mean()), float(other.sum() / shared.sum())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("pairs", "radius"), [(16, None), (3, 0), (2, 9)])
def test_kernels_find_what_torch_finds_on_a_gpu_without_waiting(
    pairs: int, radius: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = rooms(pairs)
    on_device = [tensor.cuda() for tensor in batch]
    options = {"max_distance": 0.05, "relative_distance": 0.02, "search_radius": radius}
    match_views_batched(*on_device, **options)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            found = match_views_batched(*on_device, **options)
            again = match_views_batched(*on_device, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.valid, again.valid) and torch.equal(found.pixels_b, again.pixels_b)
    assert found.valid.dtype == torch.bool and found.valid.float().mean() > 0.1

    monkeypatch.setattr(matching, "triton_runs_on", lambda device: False)
    expected = match_views_batched(*on_device, **options)
    assert torch.equal(found.pixels_a, expected.pixels_a)
    # The points are the same bit by bit; the squared distances may differ in their last digit.
    assert max(differing(found, expected)) < 1e-4
    on_cpu = match_views_batched(*(tensor[:2] for tensor in batch), **options)
    assert max(differing(ViewMatches(*(tensor[:2].cpu() for tensor in found)), on_cpu)) < 2e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_views_of_other_sizes_and_float64_work_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    depth_a, depth_b, *cameras = (tensor.cuda() for tensor in rooms(2))
    batch = [depth_a[:, :201, :303], depth_b[:, :, :131].mT.contiguous().mT, *cameras]
    found = match_views_batched(*batch)
    double = match_views_batched(*(tensor.double() for tensor in batch))
    monkeypatch.setattr(matching, "triton_runs_on", lambda device: False)
    expected = match_views_batched(*batch)
    assert expected.valid.any()
    assert max(differing(found, expected)) < 1e-4
    assert max(differing(double, expected)) < 2e-3
