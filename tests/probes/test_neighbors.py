"""Nearest neighbors against brute force, votes against a count by hand."""

import importlib
import sys
import types

import pytest
import torch
from torch.nn import functional as F

from prior3d.errors import UserError
from prior3d.probes.neighbors import nearest, vote
from prior3d.randomness import generator
from prior3d_plugins.engines.neighbors_faiss import NeighborsFaiss


def unit_rows(count, channels=16, stream="rows"):
    return F.normalize(torch.randn(count, channels, generator=generator(stream)), dim=1)


@pytest.mark.parametrize("engine", ["auto", "faiss", "torch"])
@pytest.mark.parametrize("queries", [1, 7, 300])  # FAISS takes other code below 20 queries
def test_equals_brute_force(engine, queries):
    memory, asked = unit_rows(500), unit_rows(queries, stream="queries")
    products = (asked.double()[:, None] * memory.double()[None]).sum(-1)
    expected = products.argsort(1, descending=True)[:, :9]
    similarities, rows = nearest(memory, asked, 9, engine)
    assert rows.dtype == torch.int64
    assert torch.equal(rows, expected)
    assert similarities.dtype == torch.float32
    torch.testing.assert_close(similarities.double(), products.gather(1, expected), rtol=0, atol=1e-6)


def test_chunks_change_nothing(monkeypatch):
    memory, asked = unit_rows(50), unit_rows(33, stream="queries")
    whole = nearest(memory, asked, 3, "torch")
    monkeypatch.setattr("prior3d_plugins.engines.neighbors_torch._CHUNK", 200)
    in_chunks = nearest(memory, asked, 3, "torch")
    assert torch.equal(whole[1], in_chunks[1])


@pytest.mark.parametrize("engine", ["faiss", "torch"])
def test_a_small_memory_gives_fewer_neighbors_and_no_query_none(engine):
    similarities, rows = nearest(unit_rows(3), unit_rows(5), 20, engine)
    assert similarities.shape == rows.shape == (5, 3)
    assert rows.min() >= 0
    assert nearest(unit_rows(3), unit_rows(5)[:0], 2, engine)[1].shape == (0, 2)


def test_half_precision_and_strided_rows_are_taken():
    memory = unit_rows(40).half()
    similarities, rows = nearest(memory, memory[::2], 1)
    assert torch.equal(rows[:, 0], torch.arange(0, 40, 2))
    assert similarities.min() > 0.99


@pytest.mark.parametrize(
    ("memory", "queries", "k"), [((4, 3), (2, 5), 1), ((4, 3), (2, 3), 0), ((0, 3), (2, 3), 1), ((3,), (2, 3), 1)]
)
def test_refuses_what_does_not_fit(memory, queries, k):
    with pytest.raises(ValueError, match="expected"):
        nearest(torch.zeros(memory), torch.zeros(queries), k)


def test_votes_are_softmax_weights_summed_by_class():
    similarities = torch.tensor([[0.9, 0.5, 0.5]])
    labels = torch.tensor([[2, 0, 0]])
    weights = torch.tensor([0.9, 0.5, 0.5]).div(0.2).exp()
    expected = torch.tensor([[weights[1] + weights[2], 0.0, weights[0]]]) / weights.sum()
    torch.testing.assert_close(vote(similarities, labels, 3, temperature=0.2), expected)


def test_a_low_temperature_follows_the_nearest_and_a_high_one_the_majority():
    similarities, labels = torch.tensor([[0.9, 0.8, 0.8]]), torch.tensor([[1, 0, 0]])
    assert vote(similarities, labels, 2, temperature=0.01).argmax() == 1
    assert vote(similarities, labels, 2, temperature=10.0).argmax() == 0


def test_without_faiss_its_name_says_what_to_install_and_auto_does_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    message = "^engine: neighbors engine 'faiss' cannot run here: FAISS is not installed: pip install faiss-cpu"
    with pytest.raises(UserError, match=message):
        nearest(unit_rows(3), unit_rows(2), 1, "faiss")
    assert nearest(unit_rows(3), unit_rows(3), 1)[1][:, 0].tolist() == [0, 1, 2]


def test_an_unknown_engine_is_refused():
    with pytest.raises(
        UserError, match=r"unknown neighbors engine 'fais', did you mean 'faiss'\? .*auto, faiss, torch"
    ):
        nearest(unit_rows(3), unit_rows(2), 1, "fais")


@pytest.fixture
def faiss_on_gpu():
    """FAISS as on a machine with CUDA, its index on the CPU: what it is called with can be seen."""
    faiss = importlib.import_module("faiss")
    return types.SimpleNamespace(
        IndexFlatIP=faiss.IndexFlatIP,
        omp_set_num_threads=faiss.omp_set_num_threads,
        get_num_gpus=lambda: 1,
        StandardGpuResources=lambda: "resources",
    )


def test_faiss_has_an_obstacle_on_cuda_unless_it_is_built_for_it(monkeypatch, faiss_on_gpu):
    engine = NeighborsFaiss()
    cuda = torch.device("cuda")
    monkeypatch.setattr("prior3d_plugins.engines.neighbors_faiss._faiss", lambda: faiss_on_gpu)
    assert engine.obstacle(cuda, torch.float32) is None
    faiss_on_gpu.get_num_gpus = lambda: 0
    assert engine.obstacle(cuda, torch.float32).endswith("pip install faiss-gpu-cu12")
    del faiss_on_gpu.get_num_gpus
    assert "built for the CPU alone" in engine.obstacle(cuda, torch.float32)
    assert engine.obstacle(torch.device("cpu"), torch.float32) is None
    assert "not on mps" in engine.obstacle(torch.device("mps"), torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("engine", ["auto", "torch", "faiss"])
def test_on_cuda_as_on_the_cpu(engine):
    if engine == "faiss" and (obstacle := NeighborsFaiss().obstacle(torch.device("cuda"), torch.float32)):
        pytest.skip(obstacle)
    memory, asked = unit_rows(3000, 64), unit_rows(400, 64, "queries")
    similarities, rows = nearest(memory.cuda(), asked.cuda(), 5, engine)
    expected, expected_rows = nearest(memory, asked, 5, "faiss")
    assert rows.device.type == similarities.device.type == "cuda"
    torch.testing.assert_close(similarities.cpu(), expected, rtol=0, atol=1e-5)
    assert (rows.cpu() == expected_rows).float().mean() > 0.999
    if engine == "faiss":
        with pytest.raises(ValueError, match="at most 2048 neighbors"):
            nearest(memory.cuda(), asked.cuda(), 2049, engine)
