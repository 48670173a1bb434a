"""Measure splatting, the targets of a step and the lifting of a scene, in every engine that runs here.

    python tools/bench splat --gaussians 200000 --size 384 512 --channels 3 64 384
    python tools/bench splat --cases targets --scenes 8 --views 32
    python tools/bench splat --cases lifting --frames 150 --image 476 630 --stride 14

"rasterize" renders one view, forward and backward in the values and the Gaussians. "targets" renders the targets of
views spread over scenes, "together" as a step does and "one by one". "lifting" lifts a scene from images and depth maps
in memory; "depth alone" is the part that lays the Gaussians. The scene is a box that cameras look at from inside. Its
teacher is one random linear map of patches, so the teacher's time is not in it. Ratios are to the torch engine, or else
to the first engine; for lifting, to "depth alone". Times are medians after a warm-up, with the device synchronized;
memory is the allocator's peak. Without options, sizes are large on a GPU and small on a CPU.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

import torch
from table import Cell, format_table
from torch import Tensor
from torch.nn import functional as F

from prior3d import Scene, UserError
from prior3d.registry.engines import choose, names
from prior3d.splat import EngineChoice, Gaussians, gaussians_from_depth, rasterize
from prior3d_plugins.priors.gaussian_distillation.lifting import Grid, Lifting, ShownScene, lift_scene
from prior3d_plugins.priors.gaussian_distillation.targets import render_targets

ROOM = torch.tensor([6.0, 3.0, 5.0])
"""Edges of the room in meters, y down."""

LARGE = {"gaussians": 200_000, "size": (384, 512), "channels": [3, 64, 384], "scenes": 8, "views": 32, "features": 384}
LARGE |= {"frames": 150, "image": (476, 630), "stride": 14}
SMALL = {"gaussians": 500, "size": (24, 32), "channels": [3, 8], "scenes": 2, "views": 4, "features": 8}
SMALL |= {"frames": 6, "image": (48, 64), "stride": 8}


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a table per case."""
    on_gpu = torch.cuda.is_available()
    args = read(arguments, LARGE if on_gpu else SMALL)
    device = torch.device("cuda" if on_gpu else "cpu")
    print(torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads")
    engines = [name for name in args.engines or sorted(names("splat"), key="torch".__ne__) if runs(name, device)]
    for case in args.cases:
        for title, rows in CASES[case](args, engines, device):
            print(f"\n{title}\n{format_table(rows, 'ms', next(iter(rows)))}", flush=True)


def read(arguments: Sequence[str], sizes: dict[str, object]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("tools/bench splat", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--engines", nargs="+", help="names of engines; all that run here if left out")
    parser.add_argument("--gaussians", type=int, help="Gaussians of a scene to rasterize, or to render targets from")
    parser.add_argument("--size", type=int, nargs=2, help="height and width to rasterize")
    parser.add_argument("--channels", type=int, nargs="+", help="channels to rasterize")
    parser.add_argument("--scenes", type=int, help="scenes of the targets")
    parser.add_argument("--views", type=int, help="views that get targets, over all scenes")
    parser.add_argument("--features", type=int, help="channels of targets and of lifted features")
    parser.add_argument("--frames", type=int, help="views to lift a scene from")
    parser.add_argument("--image", type=int, nargs=2, help="height and width of the images of targets and lifting")
    parser.add_argument("--stride", type=int, help="image pixels per cell")
    parser.add_argument("--repeats", type=int, default=10)
    parser.set_defaults(**sizes)
    return parser.parse_args(arguments)


def runs(name: str, device: torch.device) -> bool:
    try:
        choose("splat", name, device, torch.float32)
    except UserError as refusal:
        print(f"without {name}: {refusal}")
        return False
    return True


Tables = Iterator[tuple[str, dict[str, dict[str, Cell]]]]


def rasterized(args: argparse.Namespace, engines: list[str], device: torch.device) -> Tables:
    gaussians = room_gaussians(args.gaussians, 0, device)
    intrinsics, pose = camera_of(tuple(args.size)).to(device), poses_in_room(1, 0)[0].to(device)
    for channels in args.channels:
        leaves = [getattr(gaussians, name).clone().requires_grad_() for name in SHAPE]
        values = torch.randn(len(gaussians), channels, device=device).requires_grad_()
        gradient = torch.randn(channels, *args.size, device=device)
        rows = {}
        for engine in engines:
            step = partial(there_and_back, (*leaves, values), (intrinsics, pose), gradient, engine)
            rows[engine] = measured(step, args.repeats, device)
        yield f"rasterize {len(gaussians):,} Gaussians at {args.size[0]} x {args.size[1]}, {channels} channels", rows


def there_and_back(given: tuple[Tensor, ...], camera: tuple[Tensor, Tensor], gradient: Tensor, engine: str) -> None:
    shown = rasterize(Gaussians(*given[:4]), given[4], *camera, tuple(gradient.shape[1:]), engine=engine)
    torch.autograd.grad((shown.values * gradient).sum(), given)


def targets(args: argparse.Namespace, engines: list[str], device: torch.device) -> Tables:
    grid, per_scene = grid_of(args), -(-args.views // args.scenes)
    intrinsics = camera_of(tuple(args.image)).to(device)
    scenes, views, poses = [], [], []
    for scene in range(args.scenes):
        gaussians = room_gaussians(args.gaussians, scene, device)
        scenes.append(ShownScene(gaussians, torch.randn(len(gaussians), args.features + 3, device=device)))
        views.append(min(per_scene, args.views - sum(views)))
        poses.append(poses_in_room(views[-1], scene))
    scenes, views = zip(*((one, count) for one, count in zip(scenes, views, strict=True) if count), strict=True)
    cameras = intrinsics.repeat(args.views, 1, 1), torch.cat(poses).to(device)
    rows = {}
    for engine in engines:
        rows[f"{engine}, one by one"] = measured(
            partial(one_by_one, scenes, views, *cameras, grid, EngineChoice("splat", engine)), args.repeats, device
        )
        together = partial(render_targets, scenes, views, *cameras, grid, 0.5, EngineChoice("splat", engine))
        rows[f"{engine}, together"] = measured(together, args.repeats, device)
    cells = f"{grid.cells[0]} x {grid.cells[1]} cells, {args.features} channels"
    yield f"targets of {args.views} views of {len(scenes)} scenes of {args.gaussians:,} Gaussians, {cells}", rows


def one_by_one(
    scenes: Sequence[ShownScene],
    views: Sequence[int],
    intrinsics: Tensor,
    poses: Tensor,
    grid: Grid,
    engine: EngineChoice,
) -> None:
    each = [scene for scene, count in zip(scenes, views, strict=True) for _ in range(count)]
    for scene, camera, pose in zip(each, intrinsics.split(1), poses.split(1), strict=True):
        render_targets([scene], [1], camera, pose, grid, 0.5, engine)


def lifting(args: argparse.Namespace, engines: list[str], device: torch.device) -> Tables:
    grid = grid_of(args)
    views = {"frame": torch.arange(args.frames)[None], **room_views(args.frames, tuple(args.image), device)}
    scene = Scene(0, "room", args.frames, lambda frames: {name: value[:, frames] for name, value in views.items()})
    linear = torch.randn(args.features, 3, args.stride, args.stride, device=device) / args.stride
    down, across = (cells * args.stride for cells in grid.cells)

    def teach(images: Tensor) -> Tensor:
        padded = F.pad(images[0], (0, across - images.shape[-1], 0, down - images.shape[-2]))
        return F.conv2d(padded, linear, stride=args.stride)[None]

    maps = [views[name][0] for name in ("depth", "intrinsics", "world_from_camera")]
    options = {
        engine: Lifting("average", args.frames, None, 3, grid, EngineChoice("splat", engine)) for engine in engines
    }
    footprint = (maps[0] / maps[1][:, :1, :1]).median().item() * args.stride / grid.fineness
    repeats = max(1, args.repeats // 5)
    rows = {"depth alone": measured(lambda: gaussians_from_depth(*maps, spacing=footprint), repeats, device)}
    for engine, option in options.items():
        rows[engine] = measured(partial(lift_scene, scene, teach, option), repeats, device)
    count = len(gaussians_from_depth(*maps, spacing=footprint))
    image = f"{args.frames} views of {args.image[0]} x {args.image[1]}, {args.features} channels"
    yield f"lifting {image} to {count:,} Gaussians, {grid.cells[0]} x {grid.cells[1]} cells; a stand-in teaches", rows


CASES: dict[str, Callable[[argparse.Namespace, list[str], torch.device], Tables]] = {
    "rasterize": rasterized,
    "targets": targets,
    "lifting": lifting,
}
SHAPE = ("means", "quaternions", "scales", "opacities")


def grid_of(args: argparse.Namespace) -> Grid:
    return Grid(tuple(-(-side // args.stride) for side in args.image), args.stride, 2)


def camera_of(size: tuple[int, int]) -> Tensor:
    """Return intrinsics [3, 3] of a horizontal field of view of 70 degrees."""
    focal = size[1] / 2 / math.tan(math.radians(35))
    return torch.tensor([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1]])


def poses_in_room(count: int, seed: int) -> Tensor:
    """Return poses [V, 4, 4] near the middle of the room that look around in all directions."""
    draws = torch.Generator().manual_seed(seed)
    poses = torch.eye(4).repeat(count, 1, 1)
    yaw = 2 * math.pi * (torch.arange(count) / count + torch.rand(1, generator=draws))
    poses[:, 0, 0], poses[:, 0, 2], poses[:, 2, 0], poses[:, 2, 2] = yaw.cos(), yaw.sin(), -yaw.sin(), yaw.cos()
    poses[:, :3, 3] = (torch.rand(count, 3, generator=draws) - 0.5) * ROOM / 2
    return poses


def room_gaussians(count: int, seed: int, device: torch.device) -> Gaussians:
    """Return discs on the walls of the room, as wide as half the distance between them."""
    draws = torch.Generator().manual_seed(seed)
    areas = ROOM.prod() / ROOM
    axis = torch.multinomial(areas, count, replacement=True, generator=draws)
    means = (torch.rand(count, 3, generator=draws) - 0.5) * ROOM
    side = torch.randint(2, (count,), generator=draws) - 0.5
    means[torch.arange(count), axis] = side * ROOM[axis]
    turned = torch.tensor([[1.0, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])  # from z to x, y and z, as w, x, y, z
    width = 0.5 * (2 * areas.sum() / count).sqrt()
    scales = torch.tensor([1.0, 1.0, 0.1]) * width
    return Gaussians(means, turned[axis], scales.repeat(count, 1), torch.full((count,), 0.8)).to(device)


def room_views(count: int, size: tuple[int, int], device: torch.device) -> dict[str, Tensor]:
    """Return noise as images, and the depth and cameras of views in the room, [1, V, ...]."""
    intrinsics, poses = camera_of(size).to(device), poses_in_room(count, 0).to(device)
    y, x = (torch.arange(side, device=device) + 0.5 for side in size)
    along_x, along_y = (x - intrinsics[0, 2]) / intrinsics[0, 0], (y - intrinsics[1, 2]) / intrinsics[1, 1]
    rays = torch.stack(torch.broadcast_tensors(along_x, along_y[:, None], along_x.new_ones(())), -1)
    half = ROOM.to(device) / 2
    depth = []
    for pose in poses:
        directions = (rays[..., None, :] * pose[:3, :3]).sum(-1)
        walls = torch.where(directions > 0, half - pose[:3, 3], -half - pose[:3, 3]) / directions
        depth.append(walls.nan_to_num(torch.inf).amin(-1))
    images = torch.rand(1, count, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    cameras = {"intrinsics": intrinsics.repeat(1, count, 1, 1), "world_from_camera": poses[None]}
    return {"image": images, "depth": torch.stack(depth)[None], **cameras}


def measured(call: Callable[[], object], repeats: int, device: torch.device) -> dict[str, Cell]:
    """Return the median time in ms and the peak of the allocator."""
    call()
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    found: dict[str, Cell] = {"ms": median(times)}
    if device.type == "cuda":
        found["GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
