"""PointInfoNCE against closed forms and a float64 reference; sampling against its guarantees."""

import math

import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from torch import Tensor
from torch.nn import functional as F

from prior3d.losses import gather_negatives, masked_point_info_nce, point_info_nce, sample_one_per_cell


@pytest.fixture(params=["plain", "tiled"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Few rows take the plain loss; here they take tiles too."""
    if request.param == "tiled":
        monkeypatch.setattr("prior3d.losses.contrastive.PLAIN_PAIRS", 0)
        monkeypatch.setattr("prior3d.losses.infonce_tiled.EDGE", 16)
    return request.param


both_ways = pytest.mark.usefixtures("way")


def reference(queries: Tensor, keys: Tensor, temperature: float, symmetric: bool) -> Tensor:
    """The definition, one row at a time, in float64."""
    queries, keys = (rows.double() / rows.double().norm(dim=1, keepdim=True) for rows in (queries, keys))
    losses = []
    for one, other in ((queries, keys), (keys, queries))[: 2 if symmetric else 1]:
        for row in range(len(one)):
            scores = torch.stack([(one[row] * candidate).sum() / temperature for candidate in other])
            losses.append(-torch.log_softmax(scores, 0)[row])
    return torch.stack(losses).mean()


def embeddings(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Random queries and keys of all lengths, with gradient."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-3, 3, shape[-2], dtype=dtype)[:, None]
    return tuple((torch.randn(*shape, generator=generator, dtype=dtype) * scale).requires_grad_() for _ in range(2))


@both_ways
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("temperature", [0.05, 0.4, 2.0])
def test_equals_the_float64_reference(symmetric: bool, temperature: float) -> None:
    queries, keys = embeddings(30, 8)
    loss = point_info_nce(queries, keys, temperature, symmetric)
    assert loss.shape == () and loss.dtype == torch.float32
    expected = reference(queries, keys, temperature, symmetric)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    found = torch.autograd.grad(loss, (queries, keys))
    for gradient, wanted in zip(found, torch.autograd.grad(expected, (queries, keys)), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


@both_ways
@pytest.mark.parametrize("symmetric", [True, False])
def test_gradcheck(symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    queries, keys = (torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda q, k: point_info_nce(q, k, 0.3, symmetric), (queries, keys))
    valid = torch.tensor([[True, True, False], [True, False, True]])
    groups = [rows.detach().view(2, 3, 4).requires_grad_() for rows in (queries, keys)]
    for negatives in ("pair", "batch"):
        assert torch.autograd.gradcheck(
            lambda q, k, n=negatives: masked_point_info_nce(q, k, valid, 0.3, symmetric, n), groups
        )


@both_ways
@pytest.mark.parametrize("rows", [1, 2, 37])
def test_equal_embeddings_give_log_n(rows: int) -> None:
    same = torch.randn(1, 5).expand(rows, 5)
    assert point_info_nce(same, same, 0.1).item() == pytest.approx(math.log(rows), abs=1e-5)


@both_ways
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_orthonormal_rows_closed_form(temperature: float) -> None:
    rows = torch.eye(12)
    expected = math.log(math.exp(1 / temperature) + 11) - 1 / temperature
    assert point_info_nce(rows * 7, rows * 0.01, temperature).item() == pytest.approx(expected, abs=2e-6)
    # Every row's key is its worst match: opposite, while the others are orthogonal.
    expected = math.log(math.exp(-1 / temperature) + 11) + 1 / temperature
    assert point_info_nce(rows, -rows, temperature).item() == pytest.approx(expected, rel=1e-5)


@both_ways
def test_symmetric_is_the_mean_of_both_directions() -> None:
    queries, keys = embeddings(20, 6)
    there, back = point_info_nce(queries, keys, 0.1, False), point_info_nce(keys, queries, 0.1, False)
    assert abs(there - back) > 1e-3
    torch.testing.assert_close(point_info_nce(queries, keys, 0.1), (there + back) / 2)
    torch.testing.assert_close(point_info_nce(queries, keys, 0.1), point_info_nce(keys, queries, 0.1))


@both_ways
def test_length_and_order_of_rows_do_not_matter() -> None:
    queries, keys = embeddings(20, 6)
    order = torch.randperm(20)
    loss = point_info_nce(queries, keys, 0.1)
    torch.testing.assert_close(point_info_nce(1e-4 * queries, 1e4 * keys, 0.1), loss)
    torch.testing.assert_close(point_info_nce(queries[order], keys[order], 0.1), loss)


@both_ways
@pytest.mark.parametrize("fill", [0.0, 1e-30])
def test_zero_vectors_give_finite_values_and_gradients(fill: float) -> None:
    queries, keys = torch.randn(5, 4), torch.randn(5, 4)
    queries[1], keys[1], keys[3] = fill, fill, fill
    queries.requires_grad_(), keys.requires_grad_()
    loss = point_info_nce(queries, keys, 0.07)
    loss.backward()
    assert torch.isfinite(loss)
    assert max(queries.grad.abs().max(), keys.grad.abs().max()) < 1e3
    nothing = torch.zeros(5, 4, requires_grad=True)
    assert point_info_nce(nothing, nothing, 0.07).item() == pytest.approx(math.log(5))


@both_ways
def test_extreme_temperature_stays_finite() -> None:
    queries, keys = embeddings(20, 6)
    loss = point_info_nce(queries, keys, 1e-4)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(queries.grad).all()


def test_autocast_and_half_precision_run_in_float32() -> None:
    queries, keys = (rows.detach().bfloat16().requires_grad_() for rows in embeddings(64, 32))
    expected = point_info_nce(queries.float(), keys.float(), 0.05)
    expected_gradients = torch.autograd.grad(expected, (queries, keys))
    with torch.autocast("cpu", torch.bfloat16):
        loss = point_info_nce(queries, keys, 0.05)
        gradients = torch.autograd.grad(loss, (queries, keys))
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    assert all(torch.equal(one, other) for one, other in zip(gradients, expected_gradients, strict=True))


@both_ways
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("negatives", ["pair", "batch"])
def test_masked_equals_compacted(symmetric: bool, negatives: str) -> None:
    queries, keys = embeddings(4, 10, 6, dtype=torch.float64)
    valid = torch.rand(4, 10, generator=torch.Generator().manual_seed(0)) < 0.6
    valid[2] = False
    loss = masked_point_info_nce(queries, keys, valid, 0.2, symmetric, negatives)
    if negatives == "batch":
        expected = point_info_nce(queries[valid], keys[valid], 0.2, symmetric)
    else:
        groups = [(queries[g][valid[g]], keys[g][valid[g]]) for g in (0, 1, 3)]
        expected = torch.stack([point_info_nce(q, k, 0.2, symmetric) for q, k in groups]).mean()
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, (queries, keys))
    for gradient, wanted in zip(found, torch.autograd.grad(expected, (queries, keys)), strict=True):
        torch.testing.assert_close(gradient, wanted)
        assert (gradient[~valid] == 0).all()


@both_ways
@pytest.mark.parametrize("negatives", ["pair", "batch"])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_what_invalid_slots_hold_does_not_matter(negatives: str, garbage: float) -> None:
    queries, keys = (rows.detach() for rows in embeddings(2, 6, 4))
    valid = torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
    expected = masked_point_info_nce(queries, keys, valid, 0.2, negatives=negatives)
    queries[~valid], keys[~valid] = garbage, -garbage
    queries.requires_grad_(), keys.requires_grad_()
    loss = masked_point_info_nce(queries, keys, valid, 0.2, negatives=negatives)
    loss.backward()
    assert torch.equal(loss, expected)
    assert (queries.grad[~valid] == 0).all() and (keys.grad[~valid] == 0).all()
    assert torch.isfinite(queries.grad).all() and queries.grad.abs().max() > 0


@both_ways
@pytest.mark.parametrize("negatives", ["pair", "batch"])
@pytest.mark.parametrize("shape", [(2, 5, 4), (0, 5, 4), (2, 0, 4)])
def test_nothing_valid_is_a_connected_zero(negatives: str, shape: tuple[int, int, int]) -> None:
    queries = torch.full(shape, math.inf, requires_grad=True)
    keys = torch.full(shape, math.nan, requires_grad=True)
    loss = masked_point_info_nce(queries, keys, torch.zeros(shape[:2], dtype=torch.bool), 0.1, negatives=negatives)
    assert loss.item() == 0 and loss.shape == () and loss.dtype == torch.float32
    loss.backward()
    assert (queries.grad == 0).all() and (keys.grad == 0).all()


@both_ways
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("negatives", ["pair", "batch"])
def test_excluded_pairs_are_no_negatives(symmetric: bool, negatives: str) -> None:
    generator = torch.Generator().manual_seed(5)
    queries, keys = embeddings(2, 5, 4, dtype=torch.float64)
    valid = torch.tensor([[True, True, True, True, False], [True, False, True, True, True]])
    shape = (10, 10) if negatives == "batch" else (2, 5, 5)
    exclude = torch.rand(shape, generator=generator) < 0.4
    loss = masked_point_info_nce(queries, keys, valid, 0.3, symmetric, negatives, exclude)

    q, k = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
    rows = [(g, i) for g in range(2) for i in range(5) if valid[g, i]]
    losses: dict[int, list[Tensor]] = {0: [], 1: []}
    for g, i in rows:
        own = (q[g, i] * k[g, i]).sum() / 0.3
        for direction in range(2 if symmetric else 1):
            total = own.exp()
            for h, j in rows:
                first, second = ((g, i), (h, j)) if direction == 0 else ((h, j), (g, i))
                if negatives == "batch":
                    excluded = exclude[first[0] * 5 + first[1], second[0] * 5 + second[1]]
                else:
                    excluded = h != g or exclude[g, first[1], second[1]]
                if (h, j) != (g, i) and not excluded:
                    total = total + ((q[first] * k[second]).sum() / 0.3).exp()
            losses[g].append(total.log() - own)
    means = [torch.stack(losses[g]) for g in range(2)]
    expected = torch.cat(means).mean() if negatives == "batch" else torch.stack([m.mean() for m in means]).mean()
    torch.testing.assert_close(loss, expected)


@both_ways
def test_excluding_everything_leaves_no_loss() -> None:
    queries, keys = embeddings(2, 5, 4)
    everything = torch.ones(2, 5, 5, dtype=torch.bool)
    loss = masked_point_info_nce(queries, keys, torch.ones(2, 5, dtype=torch.bool), 0.3, exclude=everything)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_wrong_input_is_named() -> None:
    queries, keys, valid = torch.ones(2, 3, 4), torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="expected at least one matching row"):
        point_info_nce(torch.ones(0, 4), torch.ones(0, 4), 0.1)
    with pytest.raises(ValueError, match=r"one shape \[N, C\], got \[3, 4\] and \[2, 4\]"):
        point_info_nce(torch.ones(3, 4), torch.ones(2, 4), 0.1)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"expected temperature > 0, got {temperature}"):
            point_info_nce(queries[0], keys[0], temperature)
    with pytest.raises(ValueError, match=r"got \[\[2, 3, 4\], \[2, 3, 4\], \[3, 2\]\]"):
        masked_point_info_nce(queries, keys, valid.T, 0.1)
    with pytest.raises(ValueError, match="expected valid of bool"):
        masked_point_info_nce(queries, keys, valid.float(), 0.1)
    with pytest.raises(ValueError, match="'pair' or 'batch', got 'ranks'"):
        masked_point_info_nce(queries, keys, valid, 0.1, negatives="ranks")
    with pytest.raises(ValueError, match=r"expected exclude to cover \[2, 3, 3\] pairs, got \[1, 6, 6\]"):
        masked_point_info_nce(queries, keys, valid, 0.1, exclude=torch.ones(1, 6, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"one shape \[B, N\]"):
        sample_one_per_cell(torch.ones(2, 3), torch.ones(2, 3), valid.T, 4, num_cells_a=9, num_cells_b=9)
    with pytest.raises(ValueError, match="expected count >= 0, got -1"):
        sample_one_per_cell(torch.ones(2, 3), torch.ones(2, 3), valid, -1, num_cells_a=9, num_cells_b=9)


def test_gathering_alone_changes_nothing() -> None:
    keys = torch.randn(3, 4)
    assert gather_negatives(keys) is keys


def cells(matches: int = 600, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Three sets of matches between maps of 60 and 50 cells that lie near each other."""
    generator = torch.Generator().manual_seed(seed)
    cells_a = torch.randint(60, (3, matches), generator=generator)
    cells_b = (cells_a + torch.randint(-3, 4, (3, matches), generator=generator)) % 50
    return cells_a, cells_b, torch.rand(3, matches, generator=generator) < torch.tensor([[0.9], [0.1], [0.0]])


@pytest.mark.parametrize("count", [0, 7, 50, 1000])
def test_no_cell_is_used_twice(count: int) -> None:
    cells_a, cells_b, valid = cells()
    stream = torch.Generator().manual_seed(0)
    index, picked = sample_one_per_cell(
        cells_a, cells_b, valid, count, num_cells_a=60, num_cells_b=50, generator=stream
    )
    assert index.shape == picked.shape == (3, count)
    assert index.dtype == torch.int64 and picked.dtype == torch.bool
    assert not picked[2].any()
    for number in range(2):
        chosen = index[number][picked[number]]
        assert valid[number][chosen].all()
        for cell in (cells_a[number], cells_b[number]):
            assert len(cell[chosen].unique()) == len(chosen)
        used = valid[number]
        pairs = (torch.ones(int(used.sum())), (cells_a[number][used], cells_b[number][used]))
        most = int((maximum_bipartite_matching(csr_matrix(pairs, shape=(60, 50))) >= 0).sum())
        assert min(count, 0.85 * most) <= len(chosen) <= min(count, most)
        assert not picked[number][len(chosen) :].any()  # valid ones first


def test_every_match_that_conflicts_with_none_is_picked() -> None:
    order = torch.randperm(40)[None]
    index, picked = sample_one_per_cell(order, order.flip(1), torch.ones(1, 40) > 0, 40, num_cells_a=40, num_cells_b=40)
    assert picked.all() and sorted(index[0].tolist()) == list(range(40))


def test_all_matches_of_a_cell_have_the_same_chance() -> None:
    cells_a, cells_b = torch.zeros(4000, 4, dtype=torch.int64), torch.tensor([0, 1, 2, 3]).expand(4000, 4)
    generator = torch.Generator().manual_seed(0)
    index, picked = sample_one_per_cell(
        cells_a, cells_b, torch.ones(4000, 4) > 0, 1, num_cells_a=1, num_cells_b=4, generator=generator
    )
    assert picked.all()
    assert (index.flatten().bincount(minlength=4) - 1000).abs().max() < 110  # four standard deviations


def test_randomness_comes_from_the_generator_or_the_global_state() -> None:
    def draw(generator: torch.Generator | None) -> Tensor:
        return sample_one_per_cell(*cells(), 20, num_cells_a=60, num_cells_b=50, generator=generator)[0]

    assert torch.equal(draw(torch.Generator().manual_seed(1)), draw(torch.Generator().manual_seed(1)))
    assert not torch.equal(draw(torch.Generator().manual_seed(1)), draw(torch.Generator().manual_seed(2)))
    torch.manual_seed(3)
    first = draw(None)
    assert not torch.equal(first, draw(None))
    torch.manual_seed(3)
    assert torch.equal(first, draw(None))


def test_cells_of_invalid_slots_are_never_looked_at() -> None:
    cells_a, cells_b, valid = cells()
    cells_a[~valid], cells_b[~valid] = -1, 10**9
    _, picked = sample_one_per_cell(cells_a, cells_b, valid, 20, num_cells_a=60, num_cells_b=50)
    assert picked[0].all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_without_tf32_and_without_waiting_for_the_device() -> None:
    queries, keys = embeddings(2, 500, 256)
    cells_a, cells_b, valid = cells(500)
    valid = valid[:2]
    expected = masked_point_info_nce(queries.double(), keys.double(), valid, 0.05)
    expected_gradients = torch.autograd.grad(expected, (queries, keys))
    on_device = [rows.detach().cuda().requires_grad_() for rows in (queries, keys)]
    valid_there, cells_there = valid.cuda(), [cells_a[:2].cuda(), cells_b[:2].cuda()]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            loss = masked_point_info_nce(*on_device, valid_there, 0.05)
            index, picked = sample_one_per_cell(*cells_there, valid_there, 40, num_cells_a=60, num_cells_b=50)
        gradients = torch.autograd.grad(loss, on_device)
        masked_point_info_nce(*on_device, valid_there, 0.05, negatives="batch")
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.set_float32_matmul_precision(before)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.cpu(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    for cell in cells_there:
        chosen = cell.gather(1, index)[0][picked[0]]
        assert len(chosen.unique()) == len(chosen) > 30
