"""Ray-casting of a room: one ray through every pixel center, all views of the room at once."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from prior3d.geometry import full_precision
from prior3d_plugins.datasets.synthetic_rooms.catalog import CLASSES
from prior3d_plugins.datasets.synthetic_rooms.primitives import NEAR, dot, facing, intersect, slabs, unit_normals
from prior3d_plugins.datasets.synthetic_rooms.rooms import SURFACES, Piece, Room
from prior3d_plugins.datasets.synthetic_rooms.sensor import Sensor
from prior3d_plugins.datasets.synthetic_rooms.textures import Texture

_SURFACE_CLASSES = tuple(CLASSES.index(name) for name in SURFACES)
_RAYS_AT_ONCE = 1 << 20  # about 300 MB


@dataclass(frozen=True)
class RoomViews:
    """All views of a room.

    Attributes:
        image: Images [F, H, W, 3] uint8 RGB.
        depth: Depth [F, H, W] float32 along the optical axis, meters; a closed room has no unknown depth.
        semantic: Class ids [F, H, W] uint8, see `catalog.CLASSES`.
        normals: Unit vectors [F, H, W, 3] int8 in world axes times 127, toward the camera.
    """

    image: np.ndarray
    depth: np.ndarray
    semantic: np.ndarray
    normals: np.ndarray


@dataclass(frozen=True)
class _Rays:
    """One ray through every pixel center; the rays of all views are in one row, N = F * H * W of them."""

    world_from_camera: np.ndarray  # [F, 4, 4] meters
    columns: np.ndarray  # [W] and
    rows: np.ndarray  # [H]: x and y of the rays in camera axes, at depth 1
    origins: Tensor  # [3, N] meters, world
    directions: Tensor  # [3, N] world, the length that covers a depth of 1 m along the optical axis


@dataclass
class _Hits:
    """What each ray has hit so far."""

    depth: Tensor  # [N] meters along the optical axis
    normals: Tensor  # [3, N] outward, world axes
    semantic: Tensor  # [N] uint8
    texture: Tensor  # [N] int16, index into the list of the room's textures


@torch.no_grad()
def render(
    room: Room,
    world_from_camera: np.ndarray,
    intrinsics: np.ndarray,
    size: tuple[int, int],
    sensor: Sensor,
    highlights: float = 0.0,
) -> RoomViews:
    """Render views of a room.

    Args:
        room: Room to render.
        world_from_camera: Poses [F, 4, 4], meters, inside the room, OpenCV axes.
        intrinsics: Matrix [3, 3], pixels, the same for all views, without skew.
        size: Height and width in pixels.
        sensor: Exposure and noise of the F views.
        highlights: Brightness of the lamp's reflection on the glossiest surfaces; 1 is white.
    """
    step = max(1, _RAYS_AT_ONCE // (size[0] * size[1]))
    parts = []
    with full_precision(torch.device("cpu")):
        for first in range(0, len(world_from_camera), step):
            rays = _cast(world_from_camera[first : first + step], intrinsics, size)
            parts.append(_render_views(room, rays, float(intrinsics[0, 0]), sensor, first, highlights))
    return RoomViews(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(RoomViews)))


def _render_views(room: Room, rays: _Rays, focal: float, sensor: Sensor, first: int, highlights: float) -> RoomViews:
    hits = _hit_surfaces(room, rays)
    textures = list(room.surfaces)
    for piece in room.pieces:
        _hit_piece(piece, len(textures), rays, hits)
        textures += piece.textures
    points = rays.origins + rays.directions * hits.depth
    colors = _colors(textures, hits, points, footprint=hits.depth / focal)
    colors *= _shading(room, points, hits.normals)
    if highlights:
        colors += highlights * _mirrored_lamp(room, textures, hits, points, rays.directions)
    shape = (len(rays.world_from_camera), len(rays.rows), len(rays.columns))
    return RoomViews(
        image=sensor.take(colors.view(3, *shape), first),
        depth=hits.depth.view(shape).numpy(),
        semantic=hits.semantic.view(shape).numpy(),
        normals=(hits.normals.view(3, *shape) * 127).round().to(torch.int8).permute(1, 2, 3, 0).contiguous().numpy(),
    )


def _cast(world_from_camera: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> _Rays:
    columns = (np.arange(size[1]) + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    rows = (np.arange(size[0]) + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]
    camera_rays = np.stack([*np.meshgrid(columns, rows), np.ones(size)]).reshape(3, -1)
    directions = (world_from_camera[:, :3, :3] @ camera_rays).transpose(1, 0, 2).reshape(3, -1)
    origins = np.repeat(world_from_camera[:, :3, 3].T, camera_rays.shape[1], axis=1)
    numbers = torch.from_numpy(origins).float(), torch.from_numpy(directions).float()
    return _Rays(world_from_camera, columns, rows, *numbers)


def _hit_surfaces(room: Room, rays: _Rays) -> _Hits:
    """Intersect rays with the walls, the floor and the ceiling, from inside."""
    half = rays.origins.new_tensor(room.size)[:, None] / 2
    origins, directions = rays.origins / half - 1, rays.directions / half
    _, depth = slabs(origins, directions)
    outward = facing(origins + directions * depth)
    number = (dot(outward.abs(), torch.tensor([0.0, 2.0, 4.0])) + (outward.sum(0) > 0)).short()
    semantic = torch.tensor(_SURFACE_CLASSES, dtype=torch.uint8)[number.int()]
    return _Hits(depth, -outward, semantic, number)


def _hit_piece(piece: Piece, first_texture: int, rays: _Rays, hits: _Hits) -> None:
    """Intersect rays with a piece of furniture; all its primitives share its frame."""
    near = _rays_near(piece, rays)
    rotation = rays.origins.new_tensor(piece.world_from_piece[:3, :3])
    shift = rays.origins.new_tensor(piece.world_from_piece[:3, 3:])
    origins = rotation.T @ (rays.origins[:, near] - shift)
    directions = rotation.T @ rays.directions[:, near]
    depth = hits.depth[near]
    for primitive in piece.design.primitives:
        distance, unit_origins, unit_directions = intersect(primitive, origins, directions)
        met = (distance < depth).nonzero()[:, 0]
        distance = distance[met]
        depth[met] = distance
        normals = unit_normals(primitive, unit_origins[:, met] + unit_directions[:, met] * distance)
        hits.normals[:, near[met]] = rotation @ normals
        hits.texture[near[met]] = first_texture + primitive.material
        hits.semantic[near[met]] = piece.class_id
    hits.depth[near] = depth


def _rays_near(piece: Piece, rays: _Rays) -> Tensor:
    """Return the indices of the rays within each view's rectangle around the piece: only a few rays can hit it."""
    starts, ends = (np.linalg.inv(rays.world_from_camera) @ piece.world_from_piece @ points for points in _edges(piece))
    # Only points in front of the camera project: cut each edge [F, 4, 12] at the near plane.
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = (NEAR - starts[:, 2]) / (ends[:, 2] - starts[:, 2])
    cut_points = starts + np.where(np.isfinite(cut), cut, 0.0)[:, None] * (ends - starts)
    in_front = [np.where(points[:, 2:3] < NEAR, cut_points, points) for points in (starts, ends)]
    points = np.concatenate(in_front, axis=2)
    seen = np.tile(np.maximum(starts[:, 2], ends[:, 2]) > NEAR, 2)
    inside = []
    for axis, grid in ((1, rays.rows), (0, rays.columns)):
        place = points[:, axis] / points[:, 2].clip(NEAR)
        low, high = np.where(seen, place, np.inf).min(1), np.where(seen, place, -np.inf).max(1)
        inside.append((low[:, None] <= grid) & (grid <= high[:, None]))
    return torch.from_numpy((inside[0][:, :, None] & inside[1][:, None, :]).ravel()).nonzero()[:, 0]


def _edges(piece: Piece) -> tuple[np.ndarray, np.ndarray]:
    """Return the two ends [4, 12] each of the edges of the box around a piece, homogeneous, in its frame."""
    corners = np.stack(np.meshgrid(*np.array(piece.design.bounds).T, [1.0], indexing="ij")).reshape(4, 2, 2, 2)
    ends = [[np.moveaxis(corners, axis, 1)[:, end].reshape(4, 4) for axis in (1, 2, 3)] for end in (0, 1)]
    return np.concatenate(ends[0], axis=1), np.concatenate(ends[1], axis=1)


def _colors(textures: list[Texture], hits: _Hits, points: Tensor, footprint: Tensor) -> Tensor:
    """Return the colors [3, N] of the surfaces without lighting."""
    order = hits.texture.argsort()
    counts = torch.bincount(hits.texture.long(), minlength=len(textures)).tolist()
    colors = torch.empty_like(points)
    for texture, rays in zip(textures, order.split(counts), strict=True):
        if len(rays):
            colors[:, rays] = texture.color(points[:, rays], footprint[rays])
    return colors


def _shading(room: Room, points: Tensor, normals: Tensor) -> Tensor:
    """Return the view-independent brightness [N] of each point: a lamp, ambient light, darker corners."""
    toward = points.new_tensor(room.light)[:, None] - points
    square = dot(toward, toward)
    lamp = (dot(toward, normals) / square.sqrt()).clamp(min=0) / (1 + square / 16)
    sky = 0.5 + 0.08 * normals[2] + 0.05 * normals[0]
    wall = torch.minimum(points, points.new_tensor(room.size)[:, None] - points)
    corner = 1 - 0.3 * (torch.exp(-wall / 0.15).sum(0) - 1).clamp(0, 1)
    return (sky + 0.65 * lamp) * corner


def _mirrored_lamp(room: Room, textures: list[Texture], hits: _Hits, points: Tensor, directions: Tensor) -> Tensor:
    """Return how much light of the lamp [N] each point reflects to the camera that sees it, 0..1.

    Reference: Blinn, Models of light reflection for computer synthesized pictures, 1977: the angle between the normal
    and the direction half way between lamp and camera.
    """
    lamp = points.new_tensor(room.light)[:, None] - points
    lamp /= dot(lamp, lamp).sqrt()
    half = lamp - directions / dot(directions, directions).sqrt()
    cosine = (dot(half, hits.normals) / dot(half, half).sqrt().clamp(min=1e-6)).clamp(0, 1)
    gloss, shininess = points.new_tensor([(texture.gloss, texture.shininess) for texture in textures]).T
    number = hits.texture.long()
    facing_lamp = (dot(lamp, hits.normals) > 0).float()
    return gloss[number] * facing_lamp * torch.exp(shininess[number] * cosine.clamp(min=1e-6).log())
