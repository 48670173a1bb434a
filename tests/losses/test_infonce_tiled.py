"""PointInfoNCE in tiles: the plain loss, whatever the tile; memory; precision; no second derivative."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from prior3d.losses import Exclusion, contrastive, masked_point_info_nce
from prior3d.losses.infonce_tiled import tiled_row_losses

GROUPS, ROWS, CHANNELS = 3, 23, 6


def example(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Matching rows of all lengths with some noise, and which of them are valid; the second group has none."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(GROUPS, ROWS, CHANNELS, generator=generator, dtype=torch.float64)
    keys = queries + 0.7 * torch.randn(GROUPS, ROWS, CHANNELS, generator=generator, dtype=torch.float64)
    scale = torch.logspace(-2, 2, ROWS, dtype=torch.float64)[:, None]
    valid = torch.rand(GROUPS, ROWS, generator=generator) < 0.7
    valid[1] = False
    return (queries * scale).to(dtype).requires_grad_(), (keys / scale).to(dtype).requires_grad_(), valid


def exclusion(kind: str) -> Exclusion | Tensor | None:
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(GROUPS, ROWS, 3, generator=generator)
    scene = torch.tensor([4, 4, 7])[:, None].expand(GROUPS, ROWS)
    made = {"none": None, "points": Exclusion(points, 0.4), "scenes": Exclusion(points, 0.4, scene)}
    return made[kind]


def value_and_gradients(plain_pairs: int, *args: object, **options: object) -> list[Tensor]:
    before, contrastive.PLAIN_PAIRS = contrastive.PLAIN_PAIRS, plain_pairs
    try:
        loss = masked_point_info_nce(*args, **options)
        return [loss.detach(), *torch.autograd.grad(loss, args[:2])]
    finally:
        contrastive.PLAIN_PAIRS = before


@pytest.mark.parametrize("edge", [5, 23, 1000])
@pytest.mark.parametrize("kind", ["none", "points", "scenes"])
@pytest.mark.parametrize("negatives", ["pair", "batch"])
@pytest.mark.parametrize("temperature", [0.1, 0.004])  # 1 / 0.004 is beyond exp without a shift
@pytest.mark.parametrize("symmetric", [True, False])
def test_equals_the_plain_loss_whatever_the_tile(
    edge: int, kind: str, negatives: str, temperature: float, symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prior3d.losses.infonce_tiled.EDGE", edge)
    args = (*example(), temperature, symmetric, negatives, exclusion(kind))
    found, expected = value_and_gradients(0, *args), value_and_gradients(10**9, *args)
    assert expected[0] > 0.01
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11 * float(other.abs().max()))


@pytest.mark.parametrize("negatives", ["pair", "batch"])
def test_points_exclude_what_their_mask_excludes(negatives: str) -> None:
    exclude = exclusion("scenes")
    mask = exclude.mask() if negatives == "pair" else exclude.as_one_group().mask()[0]
    assert 0.05 < mask.float().mean() < 0.5
    if negatives == "batch":
        assert mask[:ROWS, ROWS : 2 * ROWS].any() and not mask[:ROWS, 2 * ROWS :].any()
    rows = (*example(), 0.1, True, negatives)
    for plain_pairs in (0, 10**9):
        found, expected = (value_and_gradients(plain_pairs, *rows, given) for given in (exclude, mask))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert expected[0] < value_and_gradients(0, *rows)[0]


@pytest.mark.parametrize("temperature", [0.3, 0.004])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gradcheck(symmetric: bool, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prior3d.losses.infonce_tiled.EDGE", 3)
    monkeypatch.setattr(contrastive, "PLAIN_PAIRS", 0)
    queries, keys, valid = (value[::2, :4] for value in example())
    queries, keys = (torch.nn.functional.normalize(rows.detach(), dim=-1).requires_grad_() for rows in (queries, keys))
    exclude = Exclusion(exclusion("points").points[::2, :4], 0.4)
    for negatives in ("pair", "batch"):
        assert torch.autograd.gradcheck(
            lambda q, k, over=negatives: masked_point_info_nce(q, k, valid, temperature, symmetric, over, exclude),
            (queries, keys),
            eps=1e-7 if temperature < 0.01 else 1e-6,
            atol=1e-4,
        )


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("temperature", [0.07, 0.002])
def test_float32_is_as_near_to_float64_as_the_plain_loss(temperature: float, noise: float) -> None:
    generator = torch.Generator().manual_seed(2)
    queries = torch.randn(1, 600, 8, generator=generator)
    keys = queries + noise * torch.randn(1, 600, 8, generator=generator)
    valid = torch.ones(1, 600, dtype=torch.bool)

    def run(plain_pairs: int, dtype: torch.dtype) -> list[Tensor]:
        rows = [value.to(dtype).requires_grad_() for value in (queries, keys)]
        return [value.double() for value in value_and_gradients(plain_pairs, *rows, valid, temperature)]

    exact, plain, tiled = run(10**9, torch.float64), run(10**9, torch.float32), run(0, torch.float32)
    for wanted, one, other in zip(exact, plain, tiled, strict=True):
        assert (other - wanted).norm() <= 2 * (one - wanted).norm() + 1e-6 * wanted.norm()


def test_many_rows_take_tiles_and_few_the_plain_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def spy(queries: Tensor, *rest: object) -> Tensor:
        sizes.append(queries.shape)
        return tiled_row_losses(queries, *rest)

    monkeypatch.setattr(contrastive, "tiled_row_losses", spy)
    queries, keys, valid = example(torch.float32)
    monkeypatch.setattr(contrastive, "PLAIN_PAIRS", GROUPS * ROWS * ROWS)
    masked_point_info_nce(queries, keys, valid, 0.1)
    assert sizes == []
    masked_point_info_nce(queries, keys, valid, 0.1, negatives="batch")
    assert sizes == [(1, GROUPS * ROWS, CHANNELS)]


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_autocast_multiplies_in_bfloat16_and_sums_in_float32(temperature: float) -> None:
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(1, 300, 8, generator=generator).bfloat16()
    keys = (queries + 0.5 * torch.randn(1, 300, 8, generator=generator)).bfloat16()
    args = (queries.requires_grad_(), keys.requires_grad_(), torch.ones(1, 300, dtype=torch.bool), temperature)
    exact = value_and_gradients(0, *args)
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradients(0, *args)
    assert found[0].dtype == torch.float32 and found[1].dtype == found[2].dtype == torch.bfloat16
    assert not torch.equal(found[0], exact[0])
    for one, other in zip(found, exact, strict=True):
        assert (one.double() - other.double()).norm() < 0.02 * other.double().norm()
    # Rows equal to their keys and orthogonal to all others: a rounded product would hide the small gradient.
    rows = torch.nn.functional.normalize(torch.randn(40, 64, generator=generator), dim=-1)
    rows = torch.linalg.qr(rows.T)[0].T[None].contiguous().requires_grad_()
    other = rows.detach().roll(1, dims=1).mul(0.1).add(rows.detach()).requires_grad_()
    args = (rows, other, torch.ones(1, 40, dtype=torch.bool), 0.1)
    exact = value_and_gradients(0, *args)
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradients(0, *args)
    assert exact[1].norm() < 0.05
    for one, other in zip(found, exact, strict=True):
        assert (one - other).norm() < 0.03 * other.norm()


def test_a_second_derivative_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "PLAIN_PAIRS", 0)
    queries, keys, valid = example()
    loss = masked_point_info_nce(queries, keys, valid, 0.1)
    with pytest.raises(RuntimeError, match="PointInfoNCE of so many rows has no second derivative"):
        torch.autograd.grad(loss, queries, create_graph=True)


def test_wrong_exclusions_are_named() -> None:
    queries, keys, valid = example()
    with pytest.raises(ValueError, match=r"points \[3, 23, 3\], got \[3, 22, 3\]"):
        masked_point_info_nce(queries, keys, valid, 0.1, exclude=Exclusion(torch.zeros(3, 22, 3), 0.1))
    with pytest.raises(ValueError, match=r"scene \[3, 23\], got \[3\]"):
        exclude = Exclusion(torch.zeros(3, 23, 3), 0.1, torch.zeros(3))
        masked_point_info_nce(queries, keys, valid, 0.1, exclude=exclude)


MEMORY = """
import torch
from pathlib import Path
from prior3d.losses import Exclusion, masked_point_info_nce
torch.set_num_threads(1)
queries, keys = (torch.randn(1, 16384, 128, requires_grad=True) for _ in range(2))
valid = torch.ones(1, 16384, dtype=torch.bool)
exclude = Exclusion(torch.rand(1, 16384, 3), 0.05, torch.zeros(1, 16384, dtype=torch.int64))
masked_point_info_nce(queries, keys, valid, 0.1, negatives="batch", exclude=exclude).backward()
assert queries.grad.abs().sum() > 0 and keys.grad.abs().sum() > 0
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) / 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_16384_rows_take_less_than_a_gibibyte() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.0  # GiB of the whole process; one float32 mask of logits alone is 1 GiB
