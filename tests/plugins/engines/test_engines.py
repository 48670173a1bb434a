"""How an engine is chosen, that the built-in ones keep to the contract, and that check_engine catches broken ones."""

import logging
import textwrap

import pytest
import torch

from prior3d import cli
from prior3d.contracts.engine import NeighborEngine, SparseEngine, SplatEngine
from prior3d.errors import UserError
from prior3d.registry import Registry, current, engines, in_force
from prior3d.registry.engines import EngineChoice, choose, names
from prior3d.sparse import Convolution, SparseTensor
from prior3d.sparse.reference import convolve
from prior3d.splat.reference import rasterize_views
from prior3d.testing import check_engine
from prior3d_plugins.engines.neighbors_faiss import NeighborsFaiss
from prior3d_plugins.engines.neighbors_torch import NeighborsTorch
from prior3d_plugins.engines.sparse_spconv import SparseSpconv
from prior3d_plugins.engines.sparse_torch import SparseTorch
from prior3d_plugins.engines.sparse_triton import SparseTriton
from prior3d_plugins.engines.splat_gsplat import SplatGsplat
from prior3d_plugins.engines.splat_torch import SplatTorch

CPU = torch.device("cpu")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

QUICK = """
    from pathlib import Path

    from prior3d import SparseEngine
    from prior3d.sparse.reference import convolve


    class Quick(SparseEngine):
        \"\"\"Convolves as the reference does, and leaves a mark.\"\"\"

        rank = {rank}

        def obstacle(self, device, dtype):
            return {obstacle}

        def convolve(self, features, weight, kernel_map):
            Path({mark!r}).touch()
            return convolve(features, weight, kernel_map)
"""


@pytest.fixture
def quick(tmp_path):
    """Write a plugin file with the engine sparse/quick; return it and the file that a convolution leaves behind."""

    def write(rank=100, obstacle=None):
        mark, file = tmp_path / "convolved", tmp_path / "my_engine.py"
        file.write_text(textwrap.dedent(QUICK).format(rank=rank, obstacle=repr(obstacle), mark=str(mark)))
        return file, mark

    return write


@pytest.fixture(autouse=True)
def fresh_log():
    engines._log_once.cache_clear()
    engines._warn_once.cache_clear()


def convolution(engine):
    x = SparseTensor(torch.ones(1, 2), torch.zeros(1, 4, dtype=torch.int32))
    return Convolution(2, 2, 3, engine=engine)(x)


def test_names_are_by_job_with_or_without_it():
    assert names("sparse") == ("spconv", "torch", "triton")
    assert names("splat") == ("gsplat", "torch")
    assert names("neighbors") == ("faiss", "torch")
    assert choose("splat", "splat/torch", CPU, torch.float32) is choose("splat", "torch", CPU, torch.float32)


def test_auto_takes_the_highest_rank_without_an_obstacle_and_says_so_once(quick, caplog):
    file, mark = quick(rank=50)
    registry = Registry([file])
    with caplog.at_level(logging.INFO, logger="prior3d"), in_force(registry):
        for _ in range(2):
            assert type(choose("sparse", "auto", CPU, torch.float32)).__name__ == "Quick"
            convolution("auto")
    assert [record.getMessage() for record in caplog.records] == ["sparse engine on cpu: quick (auto)"]
    assert mark.exists()
    assert type(choose("sparse", "auto", CPU, torch.float32)) is SparseTorch  # where the file is not in force


@pytest.mark.parametrize(("rank", "obstacle"), [(-1, None), (100, "quick is not installed: pip install quick")])
def test_auto_passes_over_lower_ranks_and_obstacles(quick, caplog, rank, obstacle):
    file, _ = quick(rank, obstacle)
    with caplog.at_level(logging.INFO, logger="prior3d"):
        assert type(choose("sparse", "auto", CPU, torch.float32, Registry([file]))) is SparseTorch
    why = SparseTriton().obstacle(CPU, torch.float32)
    reason = f"; not quick: {obstacle}; not triton: {why}" if obstacle else f"; not triton: {why}"
    assert [record.getMessage() for record in caplog.records] == [f"sparse engine on cpu: torch (auto{reason})"]


def test_what_is_asked_for_by_name_is_never_replaced(quick):
    file, _ = quick(100, "quick is not installed: pip install quick")
    message = "engine: sparse engine 'quick' cannot run here: quick is not installed: pip install quick"
    with pytest.raises(UserError) as caught:
        choose("sparse", "quick", CPU, torch.float32, Registry([file]))
    assert str(caught.value) == message
    with in_force(Registry([file])), pytest.raises(UserError) as caught:
        convolution("sparse/quick")
    assert str(caught.value) == message


def test_a_broken_engine_breaks_only_those_who_name_it(tmp_path, caplog):
    file = tmp_path / "broken.py"
    file.write_text("import no_such_module\nfrom prior3d import SparseEngine\nclass Fast(SparseEngine): ...\n")
    registry = Registry([file])
    assert type(choose("sparse", "auto", CPU, torch.float32, registry)) is SparseTorch
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "auto skips the sparse engine fast" in caplog.text and "no_such_module" in caplog.text
    with pytest.raises(UserError, match=r"engine: engine 'sparse/fast' .* cannot be imported: ModuleNotFoundError"):
        choose("sparse", "fast", CPU, torch.float32, registry)


@pytest.mark.parametrize("where", ["__init__", "obstacle"])
def test_a_bug_of_an_engine_breaks_only_those_who_name_it(quick, caplog, where):
    file, _ = quick()
    buggy = f"    def {where}(self, *arguments):\n        raise OSError('no driver')\n"
    file.write_text(textwrap.dedent(file.read_text()) + "\n" + buggy)
    registry = Registry([file])
    for _ in range(2):
        assert type(choose("sparse", "auto", CPU, torch.float32, registry)) is SparseTorch
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("auto skips the sparse engine quick: it is broken: OSError: no driver (")
    with pytest.raises(OSError, match="no driver"):
        choose("sparse", "quick", CPU, torch.float32, registry)


def test_an_engine_of_another_job_is_refused(tmp_path):
    file = tmp_path / "odd.py"
    file.write_text(
        "from prior3d import SparseEngine\n"
        "class Odd(SparseEngine):\n    job = 'splat'\n    def obstacle(self, device, dtype): return None\n"
        "    def convolve(self, features, weight, kernel_map): ...\n"
    )
    with pytest.raises(UserError, match="engine 'sparse/odd' does the job splat, not sparse"):
        choose("sparse", "odd", CPU, torch.float32, Registry([file]))


def test_the_registry_in_force_ends_with_the_block(quick):
    file, _ = quick()
    with in_force(Registry([file])) as _:
        choice = EngineChoice("sparse", "quick")
        with in_force(None):
            assert "quick" in names("sparse")
    assert "quick" not in names("sparse", current())
    assert type(choice.on(CPU, torch.float32)).__name__ == "Quick"  # a choice remembers where it was made


RECIPE = """
backbone: {{name: test_convnext, decoder_stride: 4, channels: 8}}
data: {{name: synthetic_rooms, rooms: 1, test_rooms: 1, frames: 4, views: 1, size: [32, 32], batch_size: 1, workers: 0}}
plugins: [my_engine.py]
priors:
  pixel_voxel: {{engine: {engine}, voxel_size: 0.2, width: 0.25, chunks: first}}
trainer: {{max_steps: 1, accelerator: cpu, draw_every: 0}}
"""


@pytest.fixture(scope="session")
def rooms(tmp_path_factory):
    return tmp_path_factory.mktemp("rooms")


@pytest.fixture
def run(tmp_path, rooms, capsys):
    """Train with the plugin file's engine; return the exit status and what stands on stderr."""

    def run(engine):
        (tmp_path / "mine.yaml").write_text(RECIPE.format(engine=engine))
        arguments = [str(tmp_path / "mine.yaml"), f"data.cache={rooms}", "--out", str(tmp_path / "runs")]
        return cli.train(arguments), capsys.readouterr().err

    return run


@pytest.mark.parametrize("engine", ["quick", "sparse/quick", "auto"])
def test_a_recipe_brings_an_engine_of_its_own(quick, run, engine):
    _, mark = quick()
    status, errors = run(engine)
    assert status == 0, errors
    assert mark.exists()


def test_a_recipe_whose_engine_cannot_be_had_ends_in_one_line(quick, run, tmp_path):
    quick(100, "quick is not installed: pip install quick")
    for engine, message in (
        ("quik", "unknown sparse engine 'quik', did you mean 'quick'? (there are: auto, quick, spconv, torch, triton)"),
        ("quick", "sparse engine 'quick' cannot run here: quick is not installed: pip install quick"),
    ):
        status, errors = run(engine)
        assert status == 2 and len(errors.strip().splitlines()) == 1
        assert f"engine: {message}" in errors
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("cls", [SparseTorch, SplatTorch, NeighborsFaiss, NeighborsTorch])
def test_the_built_in_engines_keep_to_the_contract(cls):
    check_engine(cls, device="cpu")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize(
    "cls", [SparseTorch, SparseTriton, SparseSpconv, SplatTorch, SplatGsplat, NeighborsFaiss, NeighborsTorch]
)
def test_the_built_in_engines_keep_to_the_contract_on_cuda(cls):
    obstacle = cls().obstacle(torch.device("cuda"), torch.float32)
    if obstacle:
        pytest.skip(obstacle)
    check_engine(cls, device="cuda")


class Reference(SparseEngine):
    """The reference itself; the broken ones derive from it."""

    def obstacle(self, device, dtype):
        return None

    def convolve(self, features, weight, kernel_map):
        return convolve(features, weight, kernel_map)


class IgnoresAnOffset(Reference):
    def convolve(self, features, weight, kernel_map):
        kept = torch.ones(len(weight), 1, 1, dtype=weight.dtype)
        kept[-1] = 0
        return convolve(features, weight * kept, kernel_map)


class WrongRowOrder(Reference):
    def convolve(self, features, weight, kernel_map):
        return convolve(features, weight, kernel_map).flip(0)


class WrongGradient(Reference):
    def convolve(self, features, weight, kernel_map):
        return convolve(features, 2 * weight - weight.detach(), kernel_map)


class NoGradientOfTheFeatures(Reference):
    def convolve(self, features, weight, kernel_map):
        return convolve(features.detach() + 0 * features, weight, kernel_map)


class RoundsOnTheWay(Reference):
    def convolve(self, features, weight, kernel_map):
        if features.dtype in (torch.float32, torch.float64):
            return convolve(features, weight, kernel_map)
        out = features.new_zeros(kernel_map.out_size, weight.shape[2])
        for k, (in_rows, out_rows) in enumerate(kernel_map.pairs):
            out = out.index_add(0, out_rows, features[in_rows] @ weight[k])
        return out


class Random(Reference):
    def convolve(self, features, weight, kernel_map):
        out = convolve(features, weight, kernel_map)
        return out * (1 + 1e-7 * torch.randint(0, 3, out.shape))


class InPlace(Reference):
    def convolve(self, features, weight, kernel_map):
        out = convolve(features, weight, kernel_map)
        with torch.no_grad():
            features.mul_(1.5)
        return out


class AssumesContiguous(Reference):
    def convolve(self, features, weight, kernel_map):
        there = features.as_strided(features.shape, (features.shape[1], 1))
        return convolve(there, weight, kernel_map)


class FailsOnNothing(Reference):
    def convolve(self, features, weight, kernel_map):
        return convolve(features + 0 * features.max(), weight, kernel_map)


class Silent(Reference):
    def obstacle(self, device, dtype):
        return "no" if device.type == "meta" else None


class WithArguments(Reference):
    def __init__(self, size):
        self.size = size


class WrongSecondBackward(Reference):
    def convolve(self, features, weight, kernel_map):
        return Once.apply(features, weight, kernel_map)


class Once(torch.autograd.Function):
    """A backward pass that is differentiated as if it were linear in the gradient alone."""

    @staticmethod
    def forward(ctx, features, weight, kernel_map):
        ctx.save_for_backward(features, weight)
        ctx.kernel_map = kernel_map
        return convolve(features, weight, kernel_map)

    @staticmethod
    def backward(ctx, gradient):
        features, weight = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        with torch.enable_grad():
            out = convolve(features, weight, ctx.kernel_map)
        grads = torch.autograd.grad(out, (features, weight), gradient.detach())
        return grads[0] + 0 * gradient.sum(), grads[1], None


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (IgnoresAnOffset, "3\\^3, 5 to 7 channels: values: relative error"),
        (WrongRowOrder, "values: relative error"),
        (WrongGradient, "gradient of the weight: relative error"),
        (NoGradientOfTheFeatures, "gradient of the features: relative error"),
        (RoundsOnTheWay, "sums over offsets are rounded on the way"),
        (Random, "deterministic = False"),
        (InPlace, "changes its inputs in place"),
        (AssumesContiguous, "inputs that are not contiguous: values"),
        (Silent, "does not say what to install"),
        (WithArguments, "its constructor needs size"),
        (WrongSecondBackward, "second backward pass"),
    ],
)
def test_broken_sparse_engines_are_caught(cls, message):
    cls.__doc__ = cls.__doc__ or "Broken."
    with pytest.raises(AssertionError, match=message):
        check_engine(cls, device="cpu")


def test_an_engine_that_fails_on_nothing_is_caught():
    FailsOnNothing.__doc__ = "Broken."
    with pytest.raises(RuntimeError, match="numel"):
        check_engine(FailsOnNothing, device="cpu")


class Splat(SplatEngine):
    """The reference's rendering alone: its operator is made from it."""

    def obstacle(self, device, dtype):
        return None

    def rasterize(self, gaussians, values, intrinsics, world_from_camera, size, background):
        return rasterize_views(gaussians, values, intrinsics, world_from_camera, size, background)


class NoBackground(Splat):
    def rasterize(self, gaussians, values, intrinsics, world_from_camera, size, background):
        return super().rasterize(gaussians, values, intrinsics, world_from_camera, size, 0 * background)


class FirstViewOnly(Splat):
    def rasterize(self, gaussians, values, intrinsics, world_from_camera, size, background):
        first = world_from_camera[:1].expand_as(world_from_camera)
        return super().rasterize(gaussians, values, intrinsics, first, size, background)


class NoGradientOfTheScales(Splat):
    def rasterize(self, gaussians, values, intrinsics, world_from_camera, size, background):
        scales = gaussians.scales.detach() + 0 * gaussians.scales
        frozen = type(gaussians)(gaussians.means, gaussians.quaternions, scales, gaussians.opacities)
        return super().rasterize(frozen, values, intrinsics, world_from_camera, size, background)


class Gathers(Splat):
    def operator(self, gaussians, intrinsics, world_from_camera, size, grid):
        return Doubled(SplatTorch().operator(gaussians, intrinsics, world_from_camera, size, grid))


class MixesScenes(Splat):
    def render_scenes(self, scenes, values, views, intrinsics, world_from_camera, size, grid):
        last = SplatTorch().operator(scenes[-1], intrinsics, world_from_camera, size, grid)
        return last.render(values[-1])


class Doubled:
    """An operator whose gather is twice what it should be."""

    def __init__(self, operator):
        self.__dict__["operator"] = operator

    def __getattr__(self, name):
        return getattr(self.operator, name)

    def gather(self, maps):
        return 2 * self.operator.gather(maps)


def test_an_engine_with_rendering_alone_is_enough():
    check_engine(Splat, device="cpu")


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NoBackground, "120 Gaussians, 3 channels: values"),
        (FirstViewOnly, "values: relative error"),
        (NoGradientOfTheScales, "gradient of the scales"),
        (Gathers, "operator: gather"),
        (MixesScenes, "render_scenes: relative error"),
    ],
)
def test_broken_splat_engines_are_caught(cls, message):
    cls.__doc__ = "Broken."
    with pytest.raises(AssertionError, match=message):
        check_engine(cls, device="cpu")


class Neighbors(NeighborEngine):
    """By products."""

    def obstacle(self, device, dtype):
        return None

    def nearest(self, memory, queries, k):
        return tuple((queries @ memory.T).topk(k, dim=1))


class Unsorted(Neighbors):
    def nearest(self, memory, queries, k):
        return tuple(part.flip(1) for part in super().nearest(memory, queries, k))


class ByDistance(Neighbors):
    def nearest(self, memory, queries, k):
        similarities, rows = super().nearest(memory, queries, k)
        return 2 - 2 * similarities, rows


class Approximate(Neighbors):
    def nearest(self, memory, queries, k):
        half = max(k, len(memory) // 2)
        return super().nearest(memory[:half], queries, k)


class Int32(Neighbors):
    def nearest(self, memory, queries, k):
        similarities, rows = super().nearest(memory, queries, k)
        return similarities, rows.int()


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Unsorted, "do not fall"),
        (ByDistance, "do not fall"),
        (Approximate, "not the nearest"),
        (Int32, "should be int64"),
    ],
)
def test_broken_neighbor_engines_are_caught(cls, message):
    cls.__doc__ = "Broken."
    with pytest.raises(AssertionError, match=message):
        check_engine(cls, device="cpu")
