"""What the controls of a study change about a sample: frames that carry the geometry of others, and nothing else."""

import torch
from torch import Tensor

from prior3d.contracts.dataset import View
from prior3d.errors import UserError

GEOMETRY = frozenset({"depth", "intrinsics", "world_from_camera", "normals"})
"""Fields that tie the pixels of a view to the world; the others are of its image."""

_CANDIDATES = 64


def permute_frames(frames: Tensor, pairs: Tensor, generator: torch.Generator) -> dict[int, int]:
    """Draw a permutation of a scene's frames that leaves none in its place.

    Of several candidates the one is taken that brings the fewest overlapping frames together: neither shall a frame
    get an image that nearly fits its geometry, nor shall the images of a pair be those of another pair.

    Args:
        frames: [N] int64, at least two.
        pairs: [P, 2] int64, those of these frames that overlap.
        generator: source of randomness.

    Returns:
        frame to the frame that takes its place.
    """
    count = len(frames)
    if count < 2:
        raise ValueError(f"expected at least 2 frames, got {count}")
    place = {frame: number for number, frame in enumerate(frames.tolist())}
    places = [[place[frame] for frame in column] for column in pairs.T.tolist()]
    first, second = torch.tensor(places, dtype=torch.int64).view(2, -1)
    overlapping = torch.zeros(count, count, dtype=torch.bool)
    overlapping[first, second] = overlapping[second, first] = True

    def overlaps(others: Tensor) -> float:
        own = overlapping[torch.arange(count), others].float().mean()
        return float(own + overlapping[others[first], others[second]].float().sum() / max(1, len(first)))

    candidates = [_derangement(count, generator) for _ in range(_CANDIDATES)]
    return dict(zip(frames.tolist(), frames[min(candidates, key=overlaps)].tolist(), strict=True))


def with_geometry(image: View, geometry: View) -> View:
    """Return the view of an image with the geometry of another frame of its scene.

    Args:
        image: gives the image and all that describes it (classes, pseudo-depth, the number of its frame).
        geometry: gives the fields of `GEOMETRY`.

    Raises:
        UserError: if the two frames differ in size.
    """
    if "image" in image and geometry.size not in (None, image["image"].shape[:2]):
        raise UserError(
            f"geometry: permuted needs frames of one size within a scene, got {image['image'].shape[:2]} in frame"
            f" {image.frame} and {geometry.size} in frame {geometry.frame}",
            "data.pairs",
        )
    kept = {name: value for name, value in image.values.items() if name not in GEOMETRY}
    taken = {name: value for name, value in geometry.values.items() if name in GEOMETRY}
    return View(kept | taken, image.scene, image.frame, geometry.size)


def _derangement(count: int, generator: torch.Generator) -> Tensor:
    """Return a permutation [count] without a fixed point: one cycle through all in an order of its own."""
    order = torch.randperm(count, generator=generator)
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return others
