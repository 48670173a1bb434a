"""Negatives of all ranks: loss and gradients of two processes equal those of one with both batches."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist

from prior3d.losses import contrastive, gather_negatives, masked_point_info_nce

RANKS = 2


def example(rank):
    stream = torch.Generator().manual_seed(rank)
    queries, keys = torch.randn(2, 2, 5, 4, generator=stream)
    valid = torch.tensor([[True] * 5, [True, False, True, True, False]])
    return queries.requires_grad_(), keys, (valid if rank == 0 else torch.zeros_like(valid))


def on_a_rank(rank, store, results, plain_pairs):
    torch.set_num_threads(1)
    contrastive.PLAIN_PAIRS = plain_pairs
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    queries, keys, valid = example(rank)
    gathered = [gather_negatives(value) for value in (queries, keys, valid)]
    loss = masked_point_info_nce(*gathered, 0.2, negatives="batch")
    loss.backward()
    results.put((rank, loss.item(), queries.grad.tolist(), gathered[2].dtype == torch.bool))
    dist.destroy_process_group()


@pytest.mark.parametrize("plain_pairs", [10**6, 0])
def test_two_ranks_equal_one(tmp_path, plain_pairs):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    args = (tmp_path / "store", results, plain_pairs)
    ranks = [context.Process(target=on_a_rank, args=(r, *args)) for r in range(RANKS)]
    for process in ranks:
        process.start()
    found = sorted(results.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join(60)
    examples = [example(rank) for rank in range(RANKS)]
    whole = [torch.cat(parts) for parts in zip(*examples, strict=True)]
    loss = masked_point_info_nce(*whole, 0.2, negatives="batch")
    loss.backward()
    for rank, value, gradient, is_bool in found:
        assert is_bool
        torch.testing.assert_close(torch.tensor(value), loss.detach())
        # summed over ranks, which DistributedDataParallel's mean turns into the gradient of the one loss
        torch.testing.assert_close(torch.tensor(gradient), RANKS * examples[rank][0].grad)


def test_one_process_alone_keeps_its_rows():
    queries = example(0)[0]
    assert gather_negatives(queries) is queries
