"""What is in a scene, in a few lines."""

import numpy as np
import torch

from prior3d.data.inspecting.sample import SceneSample
from prior3d.data.posed.pairs import ANGLE_BINS_DEG, NARROW_ANGLE_DEG
from prior3d.data.spacing import evenly_chosen
from prior3d.geometry import pairwise_overlap

_OVERLAP_BINS = ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.01))
_PAIR_FRAMES = 24


def summary_lines(sample: SceneSample) -> list[str]:
    """Return lines about a scene's sizes, depth, poses and pairs."""
    (height, width), (rows, columns) = sample.size, sample.depth_size
    lines = [f"{sample.name}: {len(sample.poses)} frames, images {width}x{height}, depth {columns}x{rows}"]
    known = sample.known_depth()
    if len(known):
        low, middle, high = np.percentile(known, [5, 50, 95])
        unknown = np.mean([(frame.depth == 0).mean() for frame in sample.frames.values()])
        lines.append(f"  depth {low:.2f} to {high:.2f} m (5-95 %), median {middle:.2f} m, unknown {unknown:.0%}")
    steps, turns = motion(sample.poses)
    extent = np.ptp(sample.poses[:, :3, 3], axis=0)
    moved = f", per frame {100 * np.median(steps):.1f} cm and {np.median(turns):.1f} degrees" if len(steps) else ""
    lines.append(f"  poses: extent {' x '.join(f'{value:.2f}' for value in extent)} m{moved}")
    overlap, angle = pair_matrix(sample)
    upper = np.triu_indices(len(overlap), 1)
    if len(upper[0]):
        lines.append("  pairs by overlap: " + _shares(overlap[upper], _OVERLAP_BINS, 100, "%"))
        seen = angle[upper][overlap[upper] >= _OVERLAP_BINS[2][0]]
        if len(seen):
            lines.append(
                "  pairs with overlap of 30 % by angle: "
                + _shares(seen, ((0, NARROW_ANGLE_DEG), (NARROW_ANGLE_DEG, 15), *ANGLE_BINS_DEG[1:]), 1, " degrees")
            )
    return lines


def motion(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far [F - 1], meters, and by how much [F - 1], degrees, the camera moves from frame to frame."""
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    traces = np.einsum("fij,fij->f", poses[:-1, :3, :3], poses[1:, :3, :3])
    return steps, np.degrees(np.arccos(np.clip((traces - 1) / 2, -1, 1)))


def pair_matrix(sample: SceneSample) -> tuple[np.ndarray, np.ndarray]:
    """Return overlap [N, N] and angle [N, N] in degrees between up to 24 sampled frames."""
    frames = list(sample.frames.values())
    frames = [frames[index] for index in evenly_chosen(len(frames), _PAIR_FRAMES)]
    count = len(frames)
    overlap = np.eye(count)
    if count > 1 and len({frame.depth.shape for frame in frames}) == 1:
        depth = torch.from_numpy(np.stack([frame.depth for frame in frames]))
        cameras = torch.from_numpy(np.stack([frame.intrinsics for frame in frames])).float()
        poses = torch.from_numpy(np.stack([frame.world_from_camera for frame in frames]))
        first, second = torch.triu_indices(count, count, offset=1)
        found = pairwise_overlap(depth, cameras, poses, first, second, 0.03, 0.03, 256).numpy()
        first, second = first.numpy(), second.numpy()  # a tensor of one index would index as a number
        overlap[first, second] = overlap[second, first] = found
    axes = np.array([frame.world_from_camera[:3, 2] for frame in frames]).reshape(-1, 3)
    return overlap, np.degrees(np.arccos(np.clip(axes @ axes.T, -1, 1)))


def _shares(values: np.ndarray, bins: tuple[tuple[float, float], ...], factor: float, unit: str) -> str:
    shares = [((values >= low) & (values < high)).mean() for low, high in bins]
    return ", ".join(
        f"{factor * low:.0f}-{min(factor * high, 100 if unit == '%' else 180):.0f}{unit}: {share:.0%}"
        for (low, high), share in zip(bins, shares, strict=True)
    )
