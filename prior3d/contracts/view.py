"""One decoded image with its other fields, before any augmentation."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(eq=False)
class View:
    """Fields of one image by name, at the file's own resolution, with the scene and frame of the image.

    A view holds each field of `prior3d.contracts.fields` without the axes B and V, as NumPy arrays, channels last:

    - image: [h, w, 3] uint8 RGB.
    - depth: [h', w'] float32 meters along the optical axis, 0 = unknown. It is REGISTERED to the image: the same field
        of view, possibly at another resolution. So are all maps.
    - pseudo_depth: [h', w'] float32, 0 = unknown; pseudo_kind is an int, 0 depth or 1 disparity.
    - intrinsics: [3, 3] float64, pixels of `image`, centers at +0.5.
    - world_from_camera: [4, 4] float64, meters, OpenCV axes.
    - semantic: [h', w'] uint8 class ids, 255 = ignore.
    - normals: [h', w', 3] float32, unit length, camera axes (OpenCV), pointing toward the camera; 0 = unknown.
    - label: int, class id of the whole image.

    Fields that were not requested, or that the data does not have, are absent.

    >>> view = View({"label": 3}, scene=0, frame=7)
    >>> view["label"], "depth" in view, view.get("depth")
    (3, False, None)

    Attributes:
        values: the fields.
        scene: index into `Dataset.scenes`.
        frame: index within the scene.
        size: height and width of `image`; set with the intrinsics even if the image itself is not decoded.
    """

    values: dict[str, object] = field(default_factory=dict)
    scene: int = 0
    frame: int = 0
    size: tuple[int, int] | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a field; raise ValueError if it is absent."""
        value = self.get(name)
        if value is None:
            raise ValueError(f"expected {name} in every view, got none in scene {self.scene}, frame {self.frame}")
        return value

    def __setitem__(self, name: str, value: object) -> None:
        self.values[name] = value

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def get(self, name: str) -> np.ndarray | None:
        """Return a field, or None if it is absent."""
        return self.values.get(name)
