"""Overlap: how much of the same surface two posed depth maps show, used to mine view pairs."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from prior3d.contracts.runner import Progress, silent
from prior3d.geometry.overlap_samples import AnyDepthMaps, CameraNumbers, Samples
from prior3d.geometry.overlap_surface import DenseSurface, DepthMapSurface
from prior3d.geometry.precision import exact

_POINTS_AT_ONCE = {"cpu": 65_536, "cuda": 4_000_000}
"""Points to project at once: few enough for the caches of a CPU, and many for a GPU."""

_MAPS_AT_ONCE = 64
"""Depth maps on a GPU at once."""

Item = TypeVar("Item")


@torch.no_grad()
def pairwise_overlap(
    depth: AnyDepthMaps,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    first: Tensor,
    second: Tensor,
    max_distance: float = 0.02,
    relative_distance: float = 0.01,
    samples: int = 1024,
    chunk: int | None = None,
    progress: Progress = silent,
    device: torch.device | str | None = None,
) -> Tensor:
    """Estimate the overlap of many view pairs of one scene: (matched in a + matched in b) / (valid in a + valid in b).

    A pixel is matched if the other view measured a surface point within `max(max_distance, relative_distance * z)` of
    its 3D point, where z is its depth in its own view. Only a regular grid of a view's pixels is tested, but against
    the other view's depth at full resolution, which affects the result and is never interpolated.

    On a CPU, `torch.get_num_threads()` threads share the frames. Results do not depend on threads, chunks or devices.

    Args:
        depth: [F, H, W] meters along the optical axis, 0 (or nan, inf) = unknown; or a sequence of F maps [H, W], each
            of which is asked for twice.
        intrinsics: [F, 3, 3] pixels, centers at +0.5.
        world_from_camera: [F, 4, 4] poses, meters. A pose that is not finite overlaps with nothing.
        first: [P] int64, frame a of each pair.
        second: [P] int64, frame b of each pair.
        max_distance: distance limit in meters.
        relative_distance: distance limit as a share of the depth; 0 is Pri3D's definition, 0.01 suits sensors.
        samples: approximate number of pixels to test per view, unknown ones included.
        chunk: number of sampled pixels to test at once, which limits the memory; by default what suits the device.
        progress: reports how many frames have been compared with their partners.
        device: where to compute; by default where the depth is.

    Returns:
        [P] float32, 0 to 1; 0 for pairs of frames without any known depth.

    Reference:
        Hou et al., Pri3D, 2021, arXiv 2104.11225. Its code compares clouds thinned to 5 cm within 7.5 cm and takes the
        larger of the two directions; this function computes the measure that the paper defines.

    >>> depth, poses = torch.full((2, 6, 8), 2.0), torch.eye(4).repeat(2, 1, 1)
    >>> intrinsics = torch.tensor([[8.0, 0, 4], [0, 8, 3], [0, 0, 1]]).repeat(2, 1, 1)
    >>> pairwise_overlap(depth, intrinsics, poses, torch.tensor([0]), torch.tensor([1]))
    tensor([1.])
    """
    _check(depth, intrinsics, world_from_camera, first, second)
    if samples < 1 or (chunk is not None and chunk < 1):
        raise ValueError(f"expected samples >= 1 and chunk >= 1, got {samples} and {chunk}")
    if not len(first):
        return torch.zeros(0, device=first.device)
    device = torch.device(device) if device is not None else depth[0].device
    views = Samples(depth, intrinsics, world_from_camera, samples, max_distance, relative_distance)
    a, b = first.cpu(), second.cpu()
    matched = _count_matched(views, depth, torch.cat([a, b]), torch.cat([b, a]), chunk, device, progress)
    counted = views.known[a] + views.known[b]
    overlap = (matched[: len(a)] + matched[len(a) :]).float() / counted.clamp(min=1)
    return overlap.to(first.device)


def _check(depth: AnyDepthMaps, intrinsics: Tensor, world_from_camera: Tensor, first: Tensor, second: Tensor) -> None:
    if isinstance(depth, Tensor) and depth.dim() != 3:
        raise ValueError(f"expected depth of shape [F, H, W], got {list(depth.shape)}")
    count = len(depth)
    if intrinsics.shape != (count, 3, 3) or world_from_camera.shape != (count, 4, 4):
        shapes = f"{list(intrinsics.shape)} and {list(world_from_camera.shape)}"
        raise ValueError(f"expected intrinsics [{count}, 3, 3] and world_from_camera [{count}, 4, 4], got {shapes}")
    if first.shape != second.shape or first.dim() != 1:
        raise ValueError(f"expected first and second of one shape [P], got {list(first.shape)}, {list(second.shape)}")


def _count_matched(
    views: Samples,
    depth: AnyDepthMaps,
    source: Tensor,
    target: Tensor,
    chunk: int | None,
    device: torch.device,
    progress: Progress,
) -> Tensor:
    """Return the number [D] of samples of each source frame on a surface that its target frame measured."""
    on_cpu = device.type == "cpu"
    at_once = max(1, (chunk or _POINTS_AT_ONCE["cpu" if on_cpu else "cuda"]) // views.points.shape[-1])
    order = target.argsort(stable=True)
    targets, counts = target[order].unique_consecutive(return_counts=True)
    by_target = list(zip(targets.tolist(), order.split(counts.tolist()), strict=True))
    step = 1 if on_cpu else _MAPS_AT_ONCE
    groups = [by_target[place : place + step] for place in range(0, len(by_target), step)]
    count = partial(_count_on_cpu if on_cpu else _count_on_gpu, views.to(device), depth, source, at_once)
    results = _parallel(count, groups, torch.get_num_threads() if on_cpu else 1)
    found = list(progress(results, "comparing views", len(groups)))
    matched = torch.empty(len(source), dtype=torch.int64)
    matched[order] = torch.cat(found).cpu()  # the only wait for a GPU
    return matched


@torch.no_grad()  # which other threads do not inherit
def _count_on_cpu(
    views: Samples, depth: AnyDepthMaps, source: Tensor, at_once: int, group: Sequence[tuple[int, Tensor]]
) -> Tensor:
    """Return the number of matched samples of the pairs with one target, in order."""
    ((target, pairs),) = group
    surface = DepthMapSurface(exact(depth[target])[0].cpu())
    camera = CameraNumbers(views.cameras[target].numpy())
    found = []
    for frames in source[pairs].split(at_once):
        points = [axis.numpy().take(frames.numpy(), axis=0) for axis in views.points]
        limit = views.limit.numpy().take(frames.numpy(), axis=0)
        found.append(torch.from_numpy(surface.count_met(points, limit, camera)))
    return torch.cat(found)


@torch.no_grad()
def _count_on_gpu(
    views: Samples, depth: AnyDepthMaps, source: Tensor, at_once: int, group: Sequence[tuple[int, Tensor]]
) -> Tensor:
    """Return the number of matched samples of the pairs with each of these targets, in order."""
    device = views.points.device
    surface = DenseSurface([exact(depth[target])[0].to(device, non_blocking=True) for target, _ in group])
    numbers = torch.cat([torch.full_like(pairs, number) for number, (_, pairs) in enumerate(group)])
    targets = torch.tensor([target for target, _ in group])
    found = []
    for frames, number in zip(
        source[torch.cat([pairs for _, pairs in group])].split(at_once), numbers.split(at_once), strict=True
    ):
        frames_there, number_there, targets_there = (t.to(device) for t in (frames, number, targets[number]))
        points = [axis.index_select(0, frames_there) for axis in views.points]
        limit = views.limit.index_select(0, frames_there)
        camera = CameraNumbers(views.cameras[targets_there][:, None])
        found.append(surface.count_met(points, limit, camera, number_there[:, None]))
    return torch.cat(found)


def _parallel(function: Callable[[Item], Tensor], items: Sequence[Item], threads: int) -> Iterator[Tensor]:
    """Yield what the function returns for each item, in order, from several threads."""
    if threads == 1 or len(items) == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(function, items)
    finally:  # after Ctrl-C, too
        pool.shutdown(cancel_futures=True)
