"""Grids in one pass: in Triton's interpreter where there is no GPU, and on a GPU where there is one."""

import os
import subprocess
import sys

import grids_in_interpreter as checks
import pytest
import torch

from prior3d.sparse import SparseTensor, grids_in_one_pass, mink_unet_small, start_grid

pytest.importorskip("triton")

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def interpret(name):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, checks.__file__, name]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


@pytest.mark.parametrize("name", ["nearest", "refused"])
def test_lookups_and_errors(name):
    assert interpret(name) == [name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["same_voxels", "limits"])
def test_the_public_functions_make_the_same(name):
    assert interpret(name) == [name]


def test_a_cpu_has_no_such_grids():
    assert not grids_in_one_pass(torch.device("cpu"))


def test_the_maps_of_a_network_are_those_that_it_reads():
    network = mink_unet_small(1, 4)
    x = SparseTensor(torch.ones(2, 1), torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.int32))
    network.eval()(x)
    assert set(x.manager._kernel_maps) == set(network.kernel_maps())


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("name", ["same_voxels", "limits", "nearest", "refused"])
def test_the_same_on_a_gpu(name):
    getattr(checks, name)()


@pytest.mark.gpu
@gpu
def test_a_grid_and_a_network_wait_once(monkeypatch):
    """The sizes are read; the pairs' numbers come with them, so that no engine waits for those."""
    net = mink_unet_small(1, 8, engine="triton").cuda()
    waits, wait = [], torch.cuda.Event.synchronize

    def count(event):
        waits.append(event)
        wait(event)

    monkeypatch.setattr(torch.cuda.Event, "synchronize", count)

    def step(seed, mode):
        cells, items = (part.cuda() for part in checks.points(seed, 20000 + seed, 30))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(mode)
        try:
            grid = start_grid(cells, items, 3, net.kernel_maps()).finish()
            features = torch.ones(len(grid.coordinates), 1, device="cuda")
            net(SparseTensor(features, manager=grid.manager)).features.square().mean().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    step(0, "default")  # compiles and times
    waits.clear()
    step(1, "error")
    assert len(waits) == 1
