"""The contract of an engine in one function: `check_engine`."""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prior3d.contracts.engine import (
    Engine,
    Gaussians,
    KernelMap,
    NeighborEngine,
    SparseEngine,
    SplatEngine,
    SplatOperator,
)
from prior3d.registry.engines import choose
from prior3d.sparse import SparseTensor
from prior3d.splat.operator import RenderedViews
from prior3d.testing.members import check_members

Bounds = dict[torch.dtype, float]

_HALF: Bounds = {torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
"""Relative error from two roundings of half precision: one of the products, one of the sum."""


def check_engine(
    cls: type[Engine], *, device: torch.device | str | None = None, tolerance: float | None = None
) -> Engine:
    """Assert that an engine keeps the contract of its job, with the torch engine as reference for values and gradients.

    For every job, it checks that the constructor takes no arguments, the job and rank are declared, and obstacles are
    sentences. If there is no obstacle, it checks values; empty and one-row inputs; non-contiguous inputs; unchanged
    inputs; and that the value of `deterministic` is correct. Sparse: gradients; kernels of odd, even and strided maps
    and their transposes; half precision summed in float32; a second backward pass that works or raises. Splat:
    gradients, several views, backgrounds, and that the operator's gather is the transpose of its render, with and
    without a grid; that scenes rendered together are those of each.
    Neighbors: order and rows.

    Args:
        cls: class of the engine.
        device: device to check on; by default a CUDA device if the engine can run on one, else the CPU.
        tolerance: relative error against the torch engine in float32; by default 1e-5. For splatting, 1e-3 in values
            and 1e-2 in gradients, because the edges at alpha = 1/255 may fall to either side.

    Returns:
        The engine, for further tests.

    Raises:
        AssertionError: names the rule that is broken.
    """
    engine = _check_declarations(cls)
    device = torch.device(device) if device is not None else _device_for(engine)
    obstacle = engine.obstacle(device, torch.float32)
    assert obstacle is None, f"nothing more can be checked on {device}: {obstacle}"
    check = {"sparse": _check_sparse, "splat": _check_splat, "neighbors": _check_neighbors}[engine.job]
    check(engine, device, tolerance)
    return engine


def _check_declarations(cls: type[Engine]) -> Engine:
    bases = {"sparse": SparseEngine, "splat": SplatEngine, "neighbors": NeighborEngine}
    assert isinstance(cls, type) and issubclass(cls, Engine), f"{cls} is not a subclass of prior3d's Engine"
    assert inspect.getdoc(cls), f"{cls.__name__} has no docstring"
    job = getattr(cls, "job", None)
    assert job in bases, f"{cls.__name__}: job is {job!r}, there are {', '.join(bases)}"
    assert issubclass(cls, bases[job]), f"{cls.__name__} does the job {job} and is not a {bases[job].__name__}"
    check_members(cls)
    assert isinstance(cls.rank, int), f"{cls.__name__}: rank is {cls.rank!r}, should be an integer"
    needed = [p for p in inspect.signature(cls).parameters.values() if p.default is p.empty and p.kind < p.VAR_KEYWORD]
    needed = [parameter for parameter in needed if parameter.kind is not parameter.VAR_POSITIONAL]
    assert not needed, f"{cls.__name__}: its constructor needs {', '.join(map(str, needed))}; engines are made without"
    engine = cls()
    for kind in ("cpu", "cuda", "meta"):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            obstacle = engine.obstacle(torch.device(kind), dtype)
            assert obstacle is None or isinstance(obstacle, str), f"obstacle returns {obstacle!r}, not text or None"
            if isinstance(obstacle, str):
                helps = "install" in obstacle or "take engine" in obstacle
                assert helps, f"obstacle {obstacle!r} on {kind} does not say what to install or what to take instead"
                assert "\n" not in obstacle, f"obstacle {obstacle!r} has more than one line"
    return engine


def _device_for(engine: Engine) -> torch.device:
    if torch.cuda.is_available() and engine.obstacle(torch.device("cuda"), torch.float32) is None:
        return torch.device("cuda")
    return torch.device("cpu")


def _close(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    assert found.shape == wanted.shape, f"{what}: shape {list(found.shape)}, should be {list(wanted.shape)}"
    assert found.device.type == wanted.device.type, f"{what}: on {found.device}, should be on {wanted.device}"
    assert torch.isfinite(found).all(), f"{what}: not finite"
    error = (found.double() - wanted.double()).norm().item()
    size = wanted.double().norm().item()
    assert error <= tolerance * size, f"{what}: relative error {error / max(size, 1e-30):.1e}, allowed {tolerance:.0e}"


def _check_repeats(engine: Engine, run: Callable[[], Sequence[Tensor]]) -> None:
    if engine.deterministic:
        first, second = run(), run()
        same = all(torch.equal(*pair) for pair in zip(first, second, strict=True))
        assert same, "equal inputs give other bytes the second time: set deterministic = False"


# sparse


def _check_sparse(engine: SparseEngine, device: torch.device, tolerance: float | None) -> None:
    tolerance = tolerance or 1e-5
    for name, kernel_map in _kernel_maps(device).items():
        for channels in ((5, 7), (16, 32)):
            _check_convolution(engine, name, kernel_map, channels, device, tolerance)
    half = [dtype for dtype in _HALF if engine.obstacle(device, dtype) is None]
    for dtype in half:
        _check_half(engine, dtype, _kernel_maps(device)["3^3"], device)
    if engine.obstacle(device, torch.float64) is None:
        features, weight = _sparse_inputs(_kernel_maps(device)["3^3"], (3, 2), device, torch.float64)
        out = engine.convolve(features, weight, _kernel_maps(device)["3^3"])
        assert out.dtype == torch.float64, f"float64 features give {out.dtype}"
    _check_second_backward(engine, _kernel_maps(device)["3^3"], device)


def _kernel_maps(device: torch.device) -> dict[str, KernelMap]:
    """Return kernel maps of random voxels: every kind of operation, in shuffled row order, with one voxel and none."""
    draws = torch.Generator().manual_seed(0)
    cells = torch.randint(0, 7, (160, 3), generator=draws).unique(dim=0)
    cells = cells[torch.randperm(len(cells), generator=draws)]
    coordinates = torch.cat([torch.arange(len(cells))[:, None] % 2, cells], 1).int().to(device)

    def manager(rows: Tensor) -> SparseTensor:
        return SparseTensor(torch.zeros(len(rows), 1, device=device), rows, batch_size=2)

    several, one, none = (manager(rows).manager for rows in (coordinates, coordinates[:1], coordinates[:0]))
    several.coarser(1, 2)
    return {
        "3^3": several.kernel_map(1, 1, 3),
        "5^3, dilated": several.kernel_map(1, 1, 5, 2),
        "2^3, strided": several.kernel_map(1, 2, 2),
        "2^3, transposed": several.kernel_map(1, 2, 2).transposed,
        "3^3, strided": several.kernel_map(1, 2, 3),
        "3^3 on one voxel": one.kernel_map(1, 1, 3),
        "3^3 on no voxel": none.kernel_map(1, 1, 3),
    }


def _sparse_inputs(
    kernel_map: KernelMap, channels: tuple[int, int], device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    features = torch.randn(kernel_map.in_size, channels[0], generator=draws, dtype=torch.float64)
    weight = torch.randn(len(kernel_map.counts), *channels, generator=draws, dtype=torch.float64)
    return features.to(device, dtype), weight.to(device, dtype)


def _convolved(engine: SparseEngine, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> list[Tensor]:
    """Return the output, and the gradients of features and weight for a fixed non-contiguous gradient of the output."""
    features, weight = features.detach().requires_grad_(), weight.detach().requires_grad_()
    out = engine.convolve(features, weight, kernel_map)
    gradient = torch.randn(out.shape[::-1], generator=torch.Generator().manual_seed(2)).to(out).T
    return [out.detach(), *torch.autograd.grad(out, (features, weight), gradient)]


_SPARSE_PARTS = ("values", "gradient of the features", "gradient of the weight")


def _check_convolution(
    engine: SparseEngine,
    name: str,
    kernel_map: KernelMap,
    channels: tuple[int, int],
    device: torch.device,
    tolerance: float,
) -> None:
    reference = choose("sparse", "torch", device, torch.float32)
    features, weight = _sparse_inputs(kernel_map, channels, device)
    before = features.clone(), weight.clone()
    where = f"{name}, {channels[0]} to {channels[1]} channels"
    wanted = _convolved(reference, features, weight, kernel_map)
    with torch.no_grad():
        engine.convolve(features, weight, kernel_map)
    assert torch.equal(features, before[0]) and torch.equal(weight, before[1]), f"{where}: changes its inputs in place"
    found = _convolved(engine, features, weight, kernel_map)
    for part, got, want in zip(_SPARSE_PARTS, found, wanted, strict=True):
        assert got.dtype == want.dtype, f"{where}: {part} are {got.dtype}, should be {want.dtype}"
        _close(got, want, tolerance, f"{where}: {part}")
    strided = torch.stack([features, features], 2)[..., 0], weight.transpose(1, 2).contiguous().transpose(1, 2)
    assert kernel_map.in_size < 2 or not strided[0].is_contiguous()
    for part, got, want in zip(_SPARSE_PARTS, _convolved(engine, *strided, kernel_map), wanted, strict=True):
        _close(got, want, tolerance, f"{where}, inputs that are not contiguous: {part}")
    _check_repeats(engine, lambda: _convolved(engine, features, weight, kernel_map))


def _check_half(engine: SparseEngine, dtype: torch.dtype, kernel_map: KernelMap, device: torch.device) -> None:
    """Check half precision: rounded inputs and result, with the sum over offsets in float32."""
    features, weight = _sparse_inputs(kernel_map, (16, 8), device, dtype)
    found = _convolved(engine, features, weight, kernel_map)
    reference = choose("sparse", "torch", device, torch.float32)
    wanted = _convolved(reference, features.float(), weight.float(), kernel_map)
    for part, got, want in zip(_SPARSE_PARTS, found, wanted, strict=True):
        assert got.dtype == dtype, f"{part} of {dtype} inputs are {got.dtype}"
        _close(got, want, _HALF[dtype], f"{dtype}: {part}")
    # 27 offsets of one channel each: 256 + 26 x 0.5 is lost if every partial sum is rounded
    weight = torch.full((len(kernel_map.counts), 1, 1), 0.5, device=device, dtype=dtype)
    weight[kernel_map.identity] = 256.0 if dtype == torch.bfloat16 else 2048.0
    ones = torch.ones(kernel_map.in_size, 1, device=device, dtype=dtype)
    got = engine.convolve(ones, weight, kernel_map)
    want = reference.convolve(ones.float(), weight.float(), kernel_map)
    assert torch.equal(got, want.to(dtype)), f"{dtype}: sums over offsets are rounded on the way; sum in float32"


def _check_second_backward(engine: SparseEngine, kernel_map: KernelMap, device: torch.device) -> None:
    features, weight = (tensor.requires_grad_() for tensor in _sparse_inputs(kernel_map, (3, 2), device))
    out = engine.convolve(features, weight, kernel_map)
    (first,) = torch.autograd.grad(out.square().sum(), features, create_graph=True)
    try:
        torch.autograd.grad(first.square().sum(), weight)
    except RuntimeError:
        return
    raised = "a second backward pass neither works nor raises: mark backward with once_differentiable"
    with torch.no_grad():
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)).to(weight)
    objective = _squared_gradient(engine, features.detach(), kernel_map)
    analytic = (torch.autograd.grad(objective(weight), weight)[0] * direction).sum()
    step = 1e-2
    numeric = (objective(weight + step * direction) - objective(weight - step * direction)) / (2 * step)
    assert torch.isclose(analytic, numeric, rtol=2e-2), raised


def _squared_gradient(engine: SparseEngine, features: Tensor, kernel_map: KernelMap) -> Callable[[Tensor], Tensor]:
    def objective(weight: Tensor) -> Tensor:
        inputs = features.clone().requires_grad_()
        out = engine.convolve(inputs, weight, kernel_map)
        (gradient,) = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        return gradient.square().sum()

    return objective


# splat

_SIZE = (25, 35)


def _check_splat(engine: SplatEngine, device: torch.device, tolerance: float | None) -> None:
    reference = choose("splat", "torch", device, torch.float32)
    values_within, gradients_within = (tolerance, tolerance) if tolerance else (1e-3, 1e-2)
    intrinsics, poses = _cameras(device)
    for count, channels in ((120, 3), (120, 40), (1, 2)):
        gaussians, values = _random_gaussians(count, channels, device)
        background = torch.linspace(-1, 1, channels, device=device)
        wanted, found = (_rasterized(e, gaussians, values, intrinsics, poses, background) for e in (reference, engine))
        where = f"{count} Gaussians, {channels} channels"
        for part, got, want in zip(_SPLAT_PARTS, found, wanted, strict=True):
            within = values_within if part in _SPLAT_PARTS[:3] else gradients_within
            _close(got, want, within, f"{where}: {part}")
        strided = torch.stack([values, values], 2)[..., 0]
        got = engine.rasterize(gaussians, strided, intrinsics, poses, _SIZE, background)[0]
        _close(got, wanted[0], values_within, f"{where}, values that are not contiguous")
    _check_repeats(engine, lambda: _rasterized(engine, gaussians, values, intrinsics, poses, background))
    gaussians, values = _random_gaussians(120, 4, device)
    for grid in (None, (5, 7), (4, 9)):
        _check_operator(engine, reference, gaussians, values, (intrinsics, poses), grid, values_within)
        _check_scenes(engine, reference, gaussians, values, (intrinsics, poses), grid, values_within)
    away = poses.clone()
    away[:, 2, 3] += 50  # behind everything
    nothing = engine.rasterize(gaussians, values, intrinsics, away, _SIZE, values.new_zeros(4))
    assert not any(part.any() for part in nothing), "a view of nothing shows something"


_SPLAT_PARTS = (
    "values",
    "depth",
    "alpha",
    "gradient of the means",
    "gradient of the quaternions",
    "gradient of the scales",
    "gradient of the opacities",
    "gradient of the values",
    "gradient of the background",
)


def _cameras(device: torch.device) -> tuple[Tensor, Tensor]:
    intrinsics = torch.tensor([[30.0, 0, 17.3], [0, 28, 12.1], [0, 0, 1]]).repeat(2, 1, 1)
    poses = torch.eye(4).repeat(2, 1, 1)
    for pose, turn in zip(poses, (0.0, 0.4), strict=True):
        cos, sin = torch.tensor(turn).cos(), torch.tensor(turn).sin()
        pose[0, 0], pose[0, 2], pose[2, 0], pose[2, 2] = cos, sin, -sin, cos
        pose[:3, 3] = torch.tensor([0.2 - turn, 0.1, -0.3])
    return intrinsics.to(device), poses.to(device)


def _random_gaussians(count: int, channels: int, device: torch.device) -> tuple[Gaussians, Tensor]:
    """Return needles and blobs in front of and next to the cameras, some nearly opaque."""
    draws = torch.Generator().manual_seed(0)
    means = (torch.rand(count, 3, generator=draws) - 0.5) * torch.tensor([2.0, 1.5, 1.5]) + torch.tensor([0, 0, 1.5])
    scales = 0.02 * 10 ** torch.rand(count, 3, generator=draws)
    quaternions = torch.randn(count, 4, generator=draws)
    opacities = 0.1 + 0.85 * torch.rand(count, generator=draws)
    values = torch.rand(count, channels, generator=draws) * 2 - 1
    return Gaussians(means, quaternions, scales, opacities).to(device), values.to(device)


def _rasterized(
    engine: SplatEngine, gaussians: Gaussians, values: Tensor, intrinsics: Tensor, poses: Tensor, background: Tensor
) -> list[Tensor]:
    """Return the rendering and the gradients of every differentiable input."""
    shape = (gaussians.means, gaussians.quaternions, gaussians.scales, gaussians.opacities)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (*shape, values, background)]
    outputs = engine.rasterize(Gaussians(*leaves[:4]), leaves[4], intrinsics, poses, _SIZE, leaves[5])
    draws = torch.Generator().manual_seed(2)
    weights = [torch.randn(out.shape, generator=draws).to(out) for out in outputs]
    weights[1] = weights[1] * (outputs[2].detach() > 0.05)  # expected depth divides by alpha
    total = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    return [*(out.detach() for out in outputs), *torch.autograd.grad(total, leaves)]


def _check_scenes(
    engine: SplatEngine,
    reference: SplatEngine,
    gaussians: Gaussians,
    values: Tensor,
    cameras: tuple[Tensor, Tensor],
    grid: tuple[int, int] | None,
    tolerance: float,
) -> None:
    few = torch.arange(len(gaussians) // 3, device=values.device)
    scenes, columns = [gaussians[few], gaussians], [values[few], values]
    views = [1, len(cameras[0]) - 1]
    found = engine.render_scenes(scenes, columns, views, *cameras, _SIZE, grid)
    if found is None:
        return
    parts = zip(scenes, columns, *(camera.split(views) for camera in cameras), strict=True)
    wanted = [reference.operator(scene, *camera, _SIZE, grid).render(own) for scene, own, *camera in parts]
    _close(found, torch.cat(wanted), tolerance, "render_scenes")


def _check_operator(
    engine: SplatEngine,
    reference: SplatEngine,
    gaussians: Gaussians,
    values: Tensor,
    cameras: tuple[Tensor, Tensor],
    grid: tuple[int, int] | None,
    tolerance: float,
) -> None:
    where = "operator" if grid is None else f"operator with a grid of {grid[0]} x {grid[1]} cells"
    made: list[SplatOperator] = []
    for one in (reference, engine):
        operator = one.operator(gaussians, *cameras, _SIZE, grid)
        made.append(RenderedViews(one, gaussians, *cameras, _SIZE, grid) if operator is None else operator)
    wanted, found = made
    facts = [(operator.views, operator.count, tuple(operator.size)) for operator in made]
    assert facts[0] == facts[1], f"{where}: views, count and size are {facts[1]}, should be {facts[0]}"
    assert torch.equal(found.areas, wanted.areas), f"{where}: areas are not pixels per cell"
    maps = torch.randn(found.views, 3, *found.size, generator=torch.Generator().manual_seed(4)).to(values)
    _close(found.render(values), wanted.render(values), tolerance, f"{where}: render")
    _close(found.gather(maps), wanted.gather(maps), tolerance, f"{where}: gather")
    _close(found.mass(), wanted.mass(), tolerance, f"{where}: mass")
    _close(found.seen(), wanted.seen(), tolerance, f"{where}: seen")
    there = (found.render(values[:, :3]).double() * maps).sum()
    back = (found.gather(maps).double() * values[:, :3]).sum()
    scale = found.mass().double().sum()
    assert (there - back).abs() < 1e-4 * scale, f"{where}: gather is not the transpose of render"
    _close(found.render(values[:, :1]), found.render(values)[:, :1], 1e-5, f"{where}: channels mix")


# neighbors


def _check_neighbors(engine: NeighborEngine, device: torch.device, tolerance: float | None) -> None:
    draws = torch.Generator().manual_seed(0)
    memory = torch.nn.functional.normalize(torch.randn(400, 24, generator=draws), dim=1).to(device)
    for asked, rows, k in ((300, 400, 9), (7, 400, 400), (1, 400, 1), (5, 1, 1), (0, 400, 3)):
        queries = torch.nn.functional.normalize(torch.randn(asked, 24, generator=draws), dim=1).to(device)
        where = f"{asked} queries, memory of {rows}, k = {k}"
        before = queries.clone(), memory.clone()
        similarities, found = engine.nearest(memory[:rows], queries, k)
        assert similarities.shape == found.shape == (asked, k), f"{where}: shapes {list(found.shape)}"
        assert similarities.dtype == torch.float32, f"{where}: similarities are {similarities.dtype}"
        assert found.dtype == torch.int64, f"{where}: rows are {found.dtype}, should be int64"
        assert similarities.device == found.device == memory.device, f"{where}: on {found.device}"
        assert torch.equal(queries, before[0]) and torch.equal(memory, before[1]), f"{where}: changes its inputs"
        products = queries.double() @ memory[:rows].double().T
        wanted = products.sort(1, descending=True).values[:, :k]
        within = tolerance or 1e-5
        assert (similarities.diff(dim=1) <= 0).all(), f"{where}: similarities do not fall along each row"
        if asked:
            assert found.min() >= 0 and found.max() < rows, f"{where}: rows outside the memory"
            assert (products.gather(1, found) - wanted).abs().max() < within, f"{where}: the rows are not the nearest"
            assert (similarities - wanted).abs().max() < within, f"{where}: similarities are not those of the rows"
            assert (found.sort(1).values.diff(dim=1) > 0).all(), f"{where}: a row is found twice"
    strided, queries = torch.stack([memory, -memory], 2)[..., 0], memory[::7].T.contiguous().T
    rows = engine.nearest(strided, queries, 1)[1][:, 0]
    assert torch.equal(rows, torch.arange(0, 400, 7, device=device)), "inputs that are not contiguous: wrong rows"
    _check_repeats(engine, lambda: engine.nearest(memory, queries, 5))
