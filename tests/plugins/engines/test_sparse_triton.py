"""The engine sparse/triton: in Triton's interpreter where there is no GPU, and on a GPU where there is one."""

import json
import os
import subprocess
import sys

import pytest
import sparse_triton_in_interpreter as checks
import torch

from prior3d import sparse
from prior3d.errors import UserError
from prior3d.registry.engines import choose
from prior3d_plugins.engines.sparse_triton import SparseTriton

pytest.importorskip("triton")

from prior3d_plugins.engines.sparse_triton import forms, operation, tuning
from prior3d_plugins.engines.sparse_triton.tuning import Config, Table

CPU = torch.device("cpu")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def interpret(*arguments):
    """Run checks in a process of their own, where Triton interprets its kernels on the CPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, checks.__file__, *map(str, arguments)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


@pytest.mark.slow
def test_splits_and_a_second_backward_pass():
    assert interpret("split", "once") == ["split", "once"]


@pytest.mark.slow
def test_dense_convolutions():
    assert interpret("dense") == ["dense"]


@pytest.mark.slow
def test_recorded_operations_there_and_back(shared_data):
    assert interpret("reference", shared_data / "minkowski_reference.npz", "down_up_k2s2") == ["down_up_k2s2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in checks.OPERATIONS if name != "down_up_k2s2"])
def test_recorded_operations(shared_data, name):
    assert interpret("reference", shared_data / "minkowski_reference.npz", name) == [name]


@pytest.mark.slow
def test_the_contract():
    assert interpret("contract") == ["contract"]


@pytest.mark.slow
def test_torch_compile():
    assert interpret("compiled") == ["compiled"]


def test_obstacles_say_what_to_do_instead(monkeypatch):
    engine = SparseTriton()
    assert engine.obstacle(CPU, torch.float32) == (
        "Triton runs on CUDA devices, not on cpu: install a CUDA build of PyTorch, or take engine sparse/torch"
    )
    assert "float64: convert, or take engine sparse/torch" in engine.obstacle(torch.device("cuda"), torch.float64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    old = "the GPU has compute capability 7.5, below 8.0: take engine sparse/torch"
    assert engine.obstacle(torch.device("cuda", 9), torch.float32) == old


def test_auto_does_not_take_it_yet_and_a_name_is_refused_in_one_line():
    assert type(choose("sparse", "auto", CPU, torch.float32)) is not SparseTriton
    with pytest.raises(UserError, match=r"^engine: sparse engine 'triton' cannot run here: .*/torch$"):
        choose("sparse", "triton", CPU, torch.float32)


@pytest.mark.parametrize(("allow", "wanted"), [(False, "ieee"), (True, "tf32")])
def test_float32_products_are_as_precise_as_torchs(allow, wanted):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high" if allow else "highest")
        assert operation.product_precision(torch.float32) == wanted
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("channels", [16, 32, 48, 64, 96, 128, 192, 256, 384])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_candidates_are_few_and_share_their_instructions(channels, itemsize):
    for rows in (1000, 10**6):
        found = tuning.tile_candidates(rows, channels, channels, itemsize, False)
        assert 1 < len(found) == len(set(found)) <= 8
        assert all(config.rows in forms.TILES and config.warps % 4 == 0 for config in found)
    pairs = tuning.pair_candidates(channels, channels, itemsize, False)
    assert 1 < len(pairs) == len(set(pairs)) <= 8
    # Matrix units of a Hopper GPU take 64 rows at once; smaller blocks run on others, which round otherwise.
    assert len({config.rows >= 64 for config in pairs}) == 1


@pytest.fixture
def clock(monkeypatch):
    """A GPU whose configurations take the time that a test says; returns those times and what was timed."""
    times, timed = {}, []

    def time(config, launch):
        timed.append(config)
        launch(config, False)
        return times.get(config, 1.0)

    monkeypatch.setattr(tuning, "_time", time)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU/1")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return times, timed


OPTIONS = [Config(64, 64, 32, 4, 2), Config(128, 64, 32, 4, 2)]


def ask(table, key=("tiles", 3)):
    return table.choose(key, lambda: OPTIONS, lambda config, compile_only: None)


def test_a_class_of_shapes_is_timed_once_and_kept(tmp_path, clock):
    times, timed = clock
    times[OPTIONS[0]] = 2.0
    folder = tmp_path / "cache"
    table = Table(folder, torch.device("cuda"))
    assert [ask(table), ask(table)] == [OPTIONS[1]] * 2
    assert timed == OPTIONS
    (file,) = folder.iterdir()
    assert file.name.startswith("A_GPU_1-triton-") and json.loads(file.read_text()) == {"tiles 3": list(OPTIONS[1])}
    assert ask(Table(folder, torch.device("cuda"))) == OPTIONS[1] and timed == OPTIONS  # another process
    other = Table(folder, torch.device("cuda"))
    ask(table, ("tiles", 4))
    ask(other, ("tiles", 5))
    assert set(json.loads(file.read_text())) == {"tiles 3", "tiles 4", "tiles 5"}


@pytest.mark.parametrize("text", ["{", "[1]", '{"tiles 3": 4}', '{"tiles 3": [1, 2]}', '{"tiles 3": [1, 2, 3, 4, 5]}'])
def test_a_table_that_makes_no_sense_is_made_again(tmp_path, clock, text):
    ask(Table(tmp_path, torch.device("cuda")))
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    assert ask(Table(tmp_path, torch.device("cuda"))) in OPTIONS
    assert json.loads(file.read_text())["tiles 3"] in [list(config) for config in OPTIONS]


def test_a_folder_that_cannot_be_written_costs_a_timing_alone(tmp_path, clock):
    (tmp_path / "file").write_text("")
    assert ask(Table(tmp_path / "file" / "cache", torch.device("cuda"))) in OPTIONS


def test_what_no_configuration_can_run_names_the_other_engine(tmp_path, clock):
    times, _ = clock
    times |= dict.fromkeys(OPTIONS, float("inf"))
    with pytest.raises(RuntimeError, match="no configuration of tiles 3 runs on this GPU; take engine sparse/torch"):
        ask(Table(None, torch.device("cuda")))


def test_pieces_cover_the_pairs_of_each_offset():
    pieces = forms.pieces_of(torch.tensor([0, 1300, 512, 1, 0]), CPU, 1)
    wanted = [[0, 512, 0], [1300, 1812, 3], [1812, 1813, 4], [512, 1024, 1], [1024, 1300, 2]]
    assert pieces.limits.tolist() == wanted  # in the order of the rows, whatever the offset
    assert pieces.ends.tolist() == [0, 3, 4, 5, 5]


# On a GPU.


def scene(count, seed=0):
    """Voxels of wavy surfaces, on the GPU."""
    draws = torch.Generator().manual_seed(seed)
    flat = torch.randint(0, 120, (count, 2), generator=draws)
    height = (20 * (flat[:, 0] / 17.0).sin() + flat[:, 1] / 3 + 2 * torch.rand(count, generator=draws)).int()
    item = torch.randint(0, 2, (count,), generator=draws)
    rows = torch.stack([item, flat[:, 0], flat[:, 1], height], 1).int().unique(dim=0)
    return rows[torch.randperm(len(rows), generator=draws)].cuda()


def products(dtype, channels=(32, 48), allow_tf32=False, seed=0):
    """Output and gradients of one convolution, and the same from float64."""
    rows = scene(20000, seed)
    x = sparse.SparseTensor(torch.zeros(len(rows), 1).cuda(), rows)
    kernel_map = x.manager.kernel_map(1, 1, 3)
    draws = torch.Generator().manual_seed(seed)
    features = torch.randn(len(rows), channels[0], generator=draws).to(dtype).cuda().requires_grad_()
    weight = torch.randn(27, *channels, generator=draws).to(dtype).cuda().requires_grad_()
    gradient = torch.randn(len(rows), channels[1], generator=draws).to(dtype).cuda()
    torch.set_float32_matmul_precision("high" if allow_tf32 else "highest")
    try:
        out = SparseTriton().convolve(features, weight, kernel_map)
        found = [out.detach(), *torch.autograd.grad(out, (features, weight), gradient)]
    finally:
        torch.set_float32_matmul_precision("highest")
    wide = [tensor.detach().double().requires_grad_() for tensor in (features, weight)]
    out = sparse.convolve(*wide, kernel_map)
    return found, [out.detach(), *torch.autograd.grad(out, wide, gradient.double())]


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize(
    ("dtype", "allow_tf32", "bound"),
    [
        (torch.bfloat16, False, 4e-3),  # one rounding of the result: 2^-9 at most, about 2e-3 of the norm
        (torch.float16, False, 5e-4),
        (torch.float32, True, 1e-3),
        (torch.float32, False, 1e-6),
    ],
)
@pytest.mark.parametrize("channels", [(3, 32), (32, 48), (96, 96), (64, 256), (256, 7)])
def test_precision_on_a_gpu(dtype, allow_tf32, bound, channels):
    for found, wanted in zip(*products(dtype, channels, allow_tf32), strict=True):
        assert found.dtype == dtype
        assert (found.double() - wanted).norm() <= bound * wanted.norm()


@pytest.mark.gpu
@gpu
def test_the_checks_of_the_interpreter_on_a_gpu(shared_data):
    checks.contract()
    checks.dense()
    checks.once()
    checks.compiled()
    checks.reference(shared_data / "minkowski_reference.npz")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_configuration_changes_a_bit(dtype, monkeypatch):
    results = []
    for index in range(8):

        def choose(self, key, candidates, launch, index=index):
            options = candidates()
            return options[index % len(options)]

        monkeypatch.setattr(Table, "choose", choose)
        results.append(products(dtype, (96, 256), allow_tf32=True)[0])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.gpu
@gpu
def test_a_network_waits_for_its_grid_alone():
    """After the grid and its levels are there, neither pass waits for the device."""
    net = sparse.mink_unet_small(3, 8, engine="triton").cuda()

    def step(seed, mode):
        x = sparse.SparseTensor(torch.rand(len(scene(9000, seed)), 3).cuda(), scene(9000, seed))
        x.manager.prepare(1, [2, 4, 8, 16])
        torch.cuda.set_sync_debug_mode(mode)
        try:
            net(x).features.square().mean().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    step(0, "default")  # compiles and times
    step(1, "error")
