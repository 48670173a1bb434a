"""The one table of every field a batch may hold: shape, dtype, unit, meaning.

A batch is a plain dict of tensors. B is the batch size, V the number of views of a sample (1 for single images), H x W
the one image size of a run. Plugins may add fields of their own, named `<plugin>/<field>`.
"""

from dataclasses import dataclass

IGNORE_CLASS = 255
"""Class id of pixels that no probe may count."""

UNKNOWN_DEPTH = 0.0
"""Depth value that means: not measured."""


@dataclass(frozen=True)
class Field:
    """What one entry of a batch holds."""

    name: str
    shape: str
    dtype: str
    meaning: str


_TABLE = (
    Field("image", "[B, V, 3, H, W]", "uint8, float32 0..1 on the device", "augmented RGB views"),
    Field("image_clean", "[B, V, 3, H, W]", "uint8, float32 0..1 on the device", "as image, no photometric changes"),
    Field("depth", "[B, V, H, W]", "float32", "metres along the optical axis, 0 = unknown"),
    Field("pseudo_depth", "[B, V, H, W]", "float32", "depth or disparity of unknown scale and shift, 0 = unknown"),
    Field("pseudo_kind", "[B]", "int64", "0 = pseudo_depth is depth, 1 = it is disparity"),
    Field("intrinsics", "[B, V, 3, 3]", "float32", "pinhole matrix in pixels, pixel centres at +0.5"),
    Field("world_from_camera", "[B, V, 4, 4]", "float32", "pose, metres; OpenCV axes: x right, y down, z forward"),
    Field("semantic", "[B, V, H, W]", "int64", "class ids, 255 = ignore; probes only, no prior may read it"),
    Field("normals", "[B, V, 3, H, W]", "float32", "unit, camera axes, towards the camera, 0 = unknown; probes only"),
    Field("label", "[B]", "int64", "class id of a whole image; probes only"),
    Field("surface", "[N, 3]", "float32", "reconstruction in each view's frustum box, packed; metres, world"),
    Field("surface_view", "[N]", "int64", "b * V + v: the view whose frustum box a surface point lies in"),
    Field("surface_color", "[N, 3]", "float32 0..1", "RGB of each surface point: mean of the raw pixels that saw it"),
    Field("scene", "[B]", "int64", "index into the run's scene manifest"),
    Field("frame", "[B, V]", "int64", "index of the frame within its scene"),
    Field("image_crops", "[B, 2, 3, H, W]", "uint8, float32 0..1 on the device", "two augmented crops of ONE image"),
    Field("crop_from_image", "[B, 2, 3, 3]", "float32", "homography: pixels of that image to pixels of each crop"),
)

FIELDS: dict[str, Field] = {field.name: field for field in _TABLE}

PROBES_ONLY = frozenset({"semantic", "normals", "label"})
"""Labels: what probes measure with, and no prior may read."""

IMAGE_FIELDS = frozenset({"image", "image_clean", "image_crops"})
"""Fields that hold colour images: bytes until they are on the device."""

DERIVED_FIELDS: dict[str, str] = {
    "image_clean": "image",
    "image_crops": "image",
    "crop_from_image": "image",
    "pseudo_kind": "pseudo_depth",
    "surface_view": "surface",
}
"""Fields that come with (or are made from) another one: a dataset declares only the latter."""

SURFACE_FIELDS = frozenset({"surface", "surface_view", "surface_color"})
"""Fields cut out of a scene's fused surface, which is prepared for runs that read any of them."""

ALWAYS = frozenset({"scene", "frame"})
"""Fields every sample has, whatever the dataset: where it comes from."""


def is_known(name: str) -> bool:
    """Whether a field name is in the table or is a plugin's own (`<plugin>/<field>`)."""
    return name in FIELDS or "/" in name


def missing_fields(needs: tuple[str, ...], provides: frozenset[str]) -> list[str]:
    """Return those of `needs` that a dataset providing `provides` cannot give.

    Args:
        needs: field names; "depth|pseudo_depth" means that either will do.
        provides: field names a dataset declares.
    """

    def available(name: str) -> bool:
        return name in provides or name in ALWAYS or DERIVED_FIELDS.get(name) in provides

    return [need for need in needs if not any(available(name) for name in need.split("|"))]
