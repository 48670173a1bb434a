"""Rays of one fixed camera through the box of the planes, and of a small orbit around it for figures."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from prior3d.geometry import in_full_precision


@dataclass(frozen=True)
class RaySamples:
    """Samples along rays: N images, R rays, S samples.

    Attributes:
        points: [N, R, S, 3] positions in the box [-1, 1]^3.
        inside: [N, R, S] bool, whether a position lies in the box; density counts only there.
        depth: [N, R, S] depth of the samples along the camera's optical axis, in the space's unit.
        deltas: [N, R, S] length of each sample's interval; the intervals tile near to far.
        far: [N, R] depth at which the rays end.
    """

    points: Tensor
    inside: Tensor
    depth: Tensor
    deltas: Tensor
    far: Tensor


def stratified_fractions(
    positions: Tensor, samples: int, *, jitter: bool, generator: torch.Generator | None = None
) -> Tensor:
    """Draw one fraction in each of S equal bins of [0, 1], or take the bins' midpoints.

    Args:
        positions: [N, R, 2] tensor that sets the leading shape, dtype and device.
        samples: number of bins S.
        jitter: draw uniformly within each bin (training) instead of the midpoint (evaluation).
        generator: random generator; the global one of the device if None.

    Returns:
        [N, R, S] increasing fractions.
    """
    shape = (*positions.shape[:-1], samples)
    start = torch.arange(samples, device=positions.device, dtype=positions.dtype)
    if not jitter:
        return ((start + 0.5) / samples).expand(shape)
    offset = torch.rand(shape, generator=generator, device=positions.device, dtype=positions.dtype)
    return (start + offset) / samples


class Space(ABC):
    """The camera that took the image, and the box of the planes in front of it.

    The frame is that of the fixed ("canonical") camera: x right, y down, z forward, in the space's unit of length.
    """

    near: float
    far: float
    fov_degrees: float

    def _check(self) -> None:
        if not 0 < self.near < self.far:
            raise ValueError(f"expected 0 < near < far, got near {self.near} and far {self.far}")
        if not 0 < self.fov_degrees < 180:
            raise ValueError(f"expected a field of view between 0 and 180 degrees, got {self.fov_degrees}")

    def half_extents(self, aspect: float) -> tuple[float, float]:
        """Return half the image's width and height at depth 1; the field of view is that of the longer side."""
        longest = math.tan(math.radians(self.fov_degrees) / 2)
        return longest * min(1.0, aspect), longest * min(1.0, 1 / aspect)

    @abstractmethod
    def box_from_canonical(self, points: Tensor, aspect: float) -> Tensor:
        """Map positions in the fixed camera's frame, [..., 3], to the box."""

    @abstractmethod
    def depth_at(self, fraction: Tensor, near: Tensor | float, far: Tensor | float) -> Tensor:
        """Place fractions 0..1 of a ray between its near and far depth."""

    @abstractmethod
    def length_per_depth(self, directions: Tensor) -> Tensor:
        """Return the length, for density, per unit of depth along directions [..., 3] with z = 1."""

    @abstractmethod
    def corners(self, aspect: float) -> Tensor:
        """Return the box's corners [8, 3] in the fixed camera's frame."""

    @in_full_precision
    def samples(
        self,
        positions: Tensor,
        count: int,
        *,
        jitter: bool = False,
        generator: torch.Generator | None = None,
        aspect: float = 1.0,
        canonical_from_camera: Tensor | None = None,
    ) -> RaySamples:
        """Place samples along the rays through image positions.

        Args:
            positions: [N, R, 2] (u, v) in [-1, 1] across the image, u to the right, v down.
            count: samples per ray S.
            jitter: stratified draws (training) instead of the bins' midpoints (evaluation).
            generator: random generator; the global one of the device if None.
            aspect: the image's width divided by its height.
            canonical_from_camera: [4, 4] pose of another camera, for figures; the fixed camera if None.

        Returns:
            Points in the box, with their depths and interval lengths.
        """
        half_width, half_height = self.half_extents(aspect)
        u, v = positions.unbind(-1)
        directions = torch.stack([u * half_width, v * half_height, torch.ones_like(u)], dim=-1)  # [N, R, 3]
        near, far, origin, canonical_directions = self.near, self.far, directions.new_zeros(3), directions
        if canonical_from_camera is not None:
            pose = canonical_from_camera.to(directions)
            near, far = self._depth_range(pose, aspect)
            origin, canonical_directions = pose[:3, 3], _rotated(pose[:3, :3], directions)
        fraction = stratified_fractions(positions, count, jitter=jitter, generator=generator)
        depth = self.depth_at(fraction, near, far)
        edges = self.depth_at(torch.linspace(0, 1, count + 1, device=u.device, dtype=u.dtype), near, far)
        points = self.box_from_canonical(origin + depth.unsqueeze(-1) * canonical_directions.unsqueeze(-2), aspect)
        return RaySamples(
            points=points,
            inside=(points.abs() <= 1 + 1e-5).all(dim=-1),  # tolerance for rounding on the near and far faces
            depth=depth,
            deltas=edges.diff() * self.length_per_depth(directions).unsqueeze(-1),
            far=edges[-1].expand(u.shape),
        )

    def _depth_range(self, canonical_from_camera: Tensor, aspect: float) -> tuple[Tensor, Tensor]:
        corners = self.corners(aspect).to(canonical_from_camera)
        camera_from_canonical = canonical_from_camera[:3, :3].T
        z = _rotated(camera_from_canonical, corners - canonical_from_camera[:3, 3])[:, 2]
        near = z.min().clamp_min(0.1 * self.near)  # a box that reaches behind the camera is cut in front of it
        return near, z.max().maximum(1.01 * near)


@dataclass(frozen=True)
class FrustumSpace(Space):
    """The default space: the box's axes are u, v and normalized inverse depth.

    The XY plane is aligned with the pixels, and z runs from the near plane (-1) to the far plane (+1), evenly in
    inverse depth. Depth has no unit (near is 1 by convention) and density is per unit of depth, so the rays of the
    fixed camera need no intrinsics: the field of view cancels.

    Attributes:
        near: depth of the near plane.
        far: depth of the far plane.
        fov_degrees: assumed field of view of the longer image side, in degrees. Only other cameras (the orbit) use it:
            the volume does not determine it, so a wrong value shears the orbit's pictures but never affects training.

    >>> FrustumSpace().samples(torch.zeros(1, 2, 2), count=4).points.shape
    torch.Size([1, 2, 4, 3])
    """

    near: float = 1.0
    far: float = 3.0
    fov_degrees: float = 50.0

    def __post_init__(self) -> None:
        self._check()

    def box_from_canonical(self, points: Tensor, aspect: float) -> Tensor:
        """Map positions [..., 3] in the fixed camera's frame to (u, v, z); those behind it fall outside the box."""
        half_width, half_height = self.half_extents(aspect)
        x, y, z = points.unbind(-1)
        inverse = 1 / z.clamp_min(1e-3 * self.near)
        beyond_near = (1 / self.near - inverse) / (1 / self.near - 1 / self.far)
        return torch.stack([x * inverse / half_width, y * inverse / half_height, 2 * beyond_near - 1], dim=-1)

    def depth_at(self, fraction: Tensor, near: Tensor | float, far: Tensor | float) -> Tensor:
        """Place fractions of a ray evenly in inverse depth."""
        return 1 / ((1 - fraction) / near + fraction / far)

    def length_per_depth(self, directions: Tensor) -> Tensor:
        """Return length 1: density is per unit of depth, since the true length would need a field of view."""
        return torch.ones_like(directions[..., 0])

    def corners(self, aspect: float) -> Tensor:
        """Return the frustum's corners [8, 3] in the fixed camera's frame."""
        half_width, half_height = self.half_extents(aspect)
        return _corners([(depth, half_width * depth, half_height * depth) for depth in (self.near, self.far)])


@dataclass(frozen=True)
class CubeSpace(Space):
    """A cube in front of a long lens: the box's axes are the fixed camera's x, y, z.

    Attributes:
        fov_degrees: field of view of the longer image side, in degrees.
        radius: distance from the camera to the cube's center, in half sides of the cube.

    Reference:
        The camera of G3DR, Reddy et al. 2024, arXiv 2403.00939: 18 degrees, distance 5, cube of half side 1.

    >>> CubeSpace().samples(torch.zeros(1, 2, 2), count=4).points.shape
    torch.Size([1, 2, 4, 3])
    """

    fov_degrees: float = 18.0
    radius: float = 5.0

    def __post_init__(self) -> None:
        self._check()

    @property
    def near(self) -> float:
        """Depth of the cube's front face."""
        return self.radius - 1

    @property
    def far(self) -> float:
        """Depth of the cube's back face."""
        return self.radius + 1

    def box_from_canonical(self, points: Tensor, aspect: float) -> Tensor:
        """Map positions in the fixed camera's frame, [..., 3], to the cube."""
        x, y, z = points.unbind(-1)
        return torch.stack([x, y, z - self.radius], dim=-1)

    def depth_at(self, fraction: Tensor, near: Tensor | float, far: Tensor | float) -> Tensor:
        """Place fractions of a ray evenly in depth."""
        return near + fraction * (far - near)

    def length_per_depth(self, directions: Tensor) -> Tensor:
        """Return the length along the ray per unit of depth."""
        return directions.norm(dim=-1)

    def corners(self, aspect: float) -> Tensor:
        """Return the cube's corners [8, 3] in the fixed camera's frame."""
        return _corners([(depth, 1.0, 1.0) for depth in (self.near, self.far)])


def _corners(faces: list[tuple[float, float, float]]) -> Tensor:
    signs = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    return torch.tensor([(sx * x, sy * y, z) for z, x, y in faces for sx, sy in signs])


def _rotated(rotation: Tensor, vectors: Tensor) -> Tensor:
    # [3, 3] on [..., 3] by broadcasting: a matrix product may run in TF32
    return (rotation * vectors.unsqueeze(-2)).sum(dim=-1)
