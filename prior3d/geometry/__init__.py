"""Exact pinhole geometry on batches of posed depth maps; no losses, no data reading, no learned parts.

Conventions: meters; OpenCV axes (x right, y down, z forward); pixels (x, y) with centers at +0.5; depth along the
optical axis, 0 = unknown. Everything runs in float32 (float64 for float64 inputs), with elementwise operations, which
neither autocast nor TF32 changes: under bf16 a point 4 m away would move by up to 3 cm. Only bounds of the overlap
multiply matrices, in float64, which both leave alone, too.
"""

from prior3d.geometry.cameras import (
    baseline,
    invert_rigid,
    known_depth,
    pixel_centers,
    project,
    unproject,
    unproject_pixels,
    view_angle,
    warp_pixels,
)
from prior3d.geometry.matching import ViewMatches, default_search_radius, match_views, match_views_batched
from prior3d.geometry.normals import normals_from_depth
from prior3d.geometry.overlap import pairwise_overlap
from prior3d.geometry.overlap_bounds import overlap_bounds
from prior3d.geometry.precision import exact, full_precision, in_full_precision, working_dtype

__all__ = [
    "ViewMatches",
    "baseline",
    "default_search_radius",
    "exact",
    "full_precision",
    "in_full_precision",
    "invert_rigid",
    "known_depth",
    "match_views",
    "match_views_batched",
    "normals_from_depth",
    "overlap_bounds",
    "pairwise_overlap",
    "pixel_centers",
    "project",
    "unproject",
    "unproject_pixels",
    "view_angle",
    "warp_pixels",
    "working_dtype",
]
