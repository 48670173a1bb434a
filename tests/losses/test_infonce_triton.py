"""PointInfoNCE in fused kernels: in Triton's interpreter on a CPU, and on a GPU where there is one."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prior3d.losses import Exclusion, contrastive, masked_point_info_nce

INTERPRETER = Path(__file__).parents[1] / "fixtures" / "infonce_in_interpreter.py"


@pytest.fixture(scope="module")
def interpreted() -> dict[str, list[float]]:
    """Relative errors of losses and gradients, by case; one process for all, since the switch is read at import."""
    pytest.importorskip("triton", reason="needs Triton")
    done = subprocess.run(
        [sys.executable, INTERPRETER], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_kernels_equal_float64_in_the_interpreter(interpreted: dict[str, list[float]]) -> None:
    exact = {case: errors for case, errors in interpreted.items() if "float32" in case}
    assert len(exact) >= 12
    assert {case: errors for case, errors in exact.items() if not max(errors) < 2e-5} == {}


@pytest.mark.slow
def test_products_of_bfloat16_cost_a_hundredth(interpreted: dict[str, list[float]]) -> None:
    rounded = {case: errors for case, errors in interpreted.items() if "bfloat16" in case}
    assert len(rounded) >= 4
    assert {case: errors for case, errors in rounded.items() if not 1e-5 < max(errors) < 2e-2} == {}


def test_without_triton_the_tiles_are_taken_and_one_line_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    contrastive._triton.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert contrastive._triton() is None and contrastive._triton() is None
    finally:
        contrastive._triton.cache_clear()
    assert [record.message for record in caplog.records] == [
        "Triton is not installed: PointInfoNCE of many rows runs in plain torch, several times slower"
    ]


def test_nothing_is_imported_from_triton_on_a_cpu() -> None:
    script = (
        "import torch; from prior3d.losses import contrastive, masked_point_info_nce; contrastive.PLAIN_PAIRS = 0\n"
        "rows = torch.eye(4)[None]; masked_point_info_nce(rows, rows, torch.ones(1, 4) > 0, 0.1)\n"
        "import sys; assert 'prior3d.losses.infonce_triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def needs_gpu(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")(test))


def on_gpu(groups: int, rows: int, channels: int, noise: float = 0.7) -> tuple[Tensor, Tensor, Tensor, Exclusion]:
    generator = torch.Generator().manual_seed(rows)
    queries = torch.randn(groups, rows, channels, generator=generator)
    keys = queries + noise * torch.randn(groups, rows, channels, generator=generator)
    valid = torch.rand(groups, rows, generator=generator) < 0.9
    points = torch.rand(groups, rows, 3, generator=generator)
    scene = torch.randint(2, (groups, 1), generator=generator).expand(groups, rows)
    queries, keys, valid, points, scene = (value.cuda() for value in (queries, keys, valid, points, scene))
    return queries.requires_grad_(), keys.requires_grad_(), valid, Exclusion(points, 0.1, scene.contiguous())


def run(*args: object, **options: object) -> list[Tensor]:
    loss = masked_point_info_nce(*args, **options)
    return [loss.detach(), *torch.autograd.grad(loss, args[:2])]


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@needs_gpu
@pytest.mark.parametrize(
    ("channels", "temperature", "symmetric", "excluded"),
    [
        (32, 0.07, True, False),
        (96, 0.07, True, True),
        (128, 0.07, False, False),
        (128, 0.01, True, True),
        (128, 0.01, False, False),
        (256, 0.07, True, True),
    ],
)
def test_kernels_equal_float64_on_a_gpu(
    channels: int, temperature: float, symmetric: bool, excluded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrastive, "FUSED_FLOAT32", True)
    monkeypatch.setattr(contrastive, "PLAIN_PAIRS", 0)
    for groups, rows, negatives in ((1, 1000, "batch"), (5, 333, "pair"), (2, 128, "batch")):
        queries, keys, valid, exclude = on_gpu(groups, rows, channels)
        options = {"symmetric": symmetric, "negatives": negatives, "exclude": exclude if excluded else None}
        double = [value.detach().double().requires_grad_() for value in (queries, keys)]
        expected = run(*double, valid, temperature, **options)
        found = run(queries, keys, valid, temperature, **options)
        again = run(queries, keys, valid, temperature, **options)
        assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
        assert max(map(error, found, expected)) < 5e-5
        with torch.autocast("cuda", torch.bfloat16):
            rounded = run(queries, keys, valid, temperature, **options)
        assert 1e-5 < max(map(error, rounded, expected)) < (0.03 if temperature > 0.05 else 0.1)


@needs_gpu
def test_many_rows_on_a_gpu_take_little_memory_and_never_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "FUSED_FLOAT32", True)
    queries, keys, valid, _ = on_gpu(1, 65_536, 128)
    with torch.autocast("cuda", torch.bfloat16):
        run(queries, keys, valid, 0.1)  # compiles
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss = masked_point_info_nce(queries, keys, valid, 0.1)
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before < 2**29
    assert torch.isfinite(queries.grad).all() and (queries.grad[~valid] == 0).all()
    assert queries.grad[valid].norm(dim=-1).min() > 0


@needs_gpu
def test_what_invalid_slots_hold_and_strides_do_not_matter_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "FUSED_FLOAT32", True)
    monkeypatch.setattr(contrastive, "PLAIN_PAIRS", 0)
    queries, keys, valid, _ = on_gpu(3, 200, 48)
    expected = run(queries, keys, valid, 0.1)
    holes = [torch.where(valid[..., None], rows.detach(), torch.nan).requires_grad_() for rows in (queries, keys)]
    found = run(*holes, valid, 0.1)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    strided = [rows.detach().mT.contiguous().mT.requires_grad_() for rows in holes]
    assert max(map(error, run(*strided, valid, 0.1), expected)) < 2e-6
    with pytest.raises(RuntimeError, match="no second derivative"):
        loss = masked_point_info_nce(queries, keys, valid, 0.1)
        torch.autograd.grad(loss, queries, create_graph=True)
    nothing = run(queries, keys, torch.zeros_like(valid), 0.1)
    assert all((value == 0).all() for value in nothing)
