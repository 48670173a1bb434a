"""The controls of a study: a posed dataset whose samples lack exactly the signal that a prior learns from."""

from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from prior3d.contracts.dataset import Dataset
from prior3d.contracts.fields import FIELDS
from prior3d.contracts.runner import SceneJob
from prior3d.contracts.view import View
from prior3d.data.posed.dataset import PosedDataset
from prior3d.data.posed.pairs import PairTable
from prior3d.data.posed.surface import Surface
from prior3d.errors import UserError
from prior3d.randomness import generator

Control = Literal["self", "permuted"]
"""What the samples of a study's control lack.

`self`: all views of a sample ARE its first, which is the view that would be drawn without a control; only their
augmentation differs. A prior can then gain only from augmentation, not from a second viewpoint.

`permuted`: images get the depth, intrinsics and pose of another frame of their scene, by one fixed permutation per
scene and seed that leaves no frame in its place. The geometry of a sample is still that of a mined pair. So a prior
finds the usual number of matches, but between pixels that do not show the same point. If only poses were permuted,
depth and pose would contradict each other, and nothing would match.
"""

_CANDIDATES = 64


class Controlled(PosedDataset):
    """A posed dataset with the samples of a control; fields that are read frame by frame do not change.

    Neither control affects probes, mining, surfaces or the offline stage of a prior. Both show a run the same number of
    images, from the same frames.

    Args:
        dataset: Posed dataset.
        control: What its samples lack, see `Control`.
    """

    def __init__(self, dataset: PosedDataset, control: Control) -> None:
        super().__init__(dataset.spec, dataset.pair_options, dataset.surface_options)
        self.dataset = dataset
        self.control = control
        self.scenes, self.splits, self.class_names = dataset.scenes, dataset.splits, dataset.class_names
        self.provides, self.fields, self.damaged = dataset.provides, dataset.fields, dataset.damaged
        self._image_of: dict[int, dict[int, int]] = {}

    def frame_count(self, scene: int) -> int:
        """Return the number of frames of a scene."""
        return self.dataset.frame_count(scene)

    def load(self, scene: int, frame: int, fields: frozenset[str]) -> View:
        """Decode one frame with its true geometry; see `PosedDataset.load`."""
        return self.dataset.load(scene, frame, fields)

    def scene_fingerprint(self, scene: int) -> str:
        """Return the fingerprint of the original scene."""
        return self.dataset.scene_fingerprint(scene)

    def verify(self) -> None:
        """Check the data; see `Dataset.verify`."""
        self.dataset.verify()

    def jobs(self, fields: frozenset[str]) -> Iterator[Sequence[SceneJob]]:
        """Yield the data's jobs; see `Dataset.jobs`."""
        if self.control == "permuted" and min(map(self.frame_count, range(len(self.scenes)))) < 2:
            raise UserError("permuted needs at least 2 frames in every scene", "control")
        yield from self.dataset.jobs(fields)

    def pairs(self, scene: int) -> PairTable:
        """Return the pairs of one scene."""
        return self.dataset.pairs(scene)

    def surface(self, scene: int) -> Surface:
        """Return the surface of one scene."""
        return self.dataset.surface(scene)

    def sample(self, index: int, fields: frozenset[str], generator: torch.Generator) -> list[View]:
        """Decode the views that the original dataset would, and remove what the control removes."""
        scene, frames = self.dataset.chosen_frames(index, generator)
        if self.control == "self":
            return [self.load(scene, frames[0], fields) for _ in frames]
        return [self._load_permuted(scene, frame, fields) for frame in frames]

    def describe(self) -> list[str]:
        """Return the dataset's lines for the log, and one that names the control."""
        what = {
            "self": "all views of a sample are its first, augmented apart",
            "permuted": "images have the geometry of other frames",
        }
        return [*self.dataset.describe(), f"control {self.control}: {what[self.control]}"]

    def _load_permuted(self, scene: int, frame: int, fields: frozenset[str]) -> View:
        """Load the geometry of one frame with the image of another."""
        if scene not in self._image_of:
            pairs, frames = torch.zeros(0, 2, dtype=torch.int64), torch.arange(self.frame_count(scene))
            if self.spec.views > 1:
                pairs = torch.stack([self.pairs(scene).first, self.pairs(scene).second], 1)
                frames = pairs.unique()  # a frame without a pair is never shown without a control, either
            self._image_of[scene] = permute_frames(frames, pairs, generator("permuted", self.spec.seed, scene))
        of_geometry = {field.name for field in (*FIELDS.values(), *self.fields) if field.of_geometry}
        image = self.load(scene, self._image_of[scene][frame], fields - of_geometry)
        return with_geometry(image, self.load(scene, frame, fields & of_geometry), of_geometry)


def with_control(dataset: Dataset, control: Control | None) -> Dataset:
    """Return a dataset with the samples of a control, or the dataset itself without one.

    Args:
        dataset: Dataset; must be posed if there is a control.
        control: `data.control`; None uses the control of the pair options `pairs.views: self` and
            `pairs.geometry: permuted`, its former names.

    Raises:
        UserError: The data is not posed, or the two disagree.
    """
    former = dataset.pair_options.control if isinstance(dataset, PosedDataset) else None
    if control is not None and former not in (None, control):
        raise UserError(f"this is {control}, but the older options in pairs say {former}: keep one of them", "control")
    if control is None and former is None:
        return dataset
    if not isinstance(dataset, PosedDataset):
        raise UserError("only posed data has controls", "control")
    return Controlled(dataset, control or former)


def permute_frames(frames: Tensor, pairs: Tensor, generator: torch.Generator) -> dict[int, int]:
    """Draw a permutation of a scene's frames that leaves none in its place.

    The best of several candidates brings the fewest overlapping frames together: a frame must not get an image that
    nearly fits its geometry, and the images of a pair must not be those of another pair.

    Args:
        frames: Frames [N] int64, at least two.
        pairs: Overlapping pairs [P, 2] int64 of these frames.
        generator: Source of randomness.

    Returns:
        Dict from frame to the frame that takes its place.
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


def with_geometry(image: View, geometry: View, of_geometry: Collection[str]) -> View:
    """Return the view of an image with the geometry of another frame of its scene.

    Args:
        image: View with the image and all fields that describe it (classes, pseudo-depth, index of its frame).
        geometry: View with the fields that relate pixels to the world.
        of_geometry: Names of these fields, see `Field.of_geometry`.

    Raises:
        UserError: The two frames differ in size.
    """
    if "image" in image and geometry.size not in (None, image["image"].shape[:2]):
        raise UserError(
            f"permuted needs frames of one size within a scene, got {image['image'].shape[:2]} in frame"
            f" {image.frame} and {geometry.size} in frame {geometry.frame}",
            "control",
        )
    kept = {name: value for name, value in image.values.items() if name not in of_geometry}
    taken = {name: value for name, value in geometry.values.items() if name in of_geometry}
    return View(kept | taken, image.scene, image.frame, geometry.size)


def _derangement(count: int, generator: torch.Generator) -> Tensor:
    """Return a permutation [count] without a fixed point: one cycle through all, in random order."""
    order = torch.randperm(count, generator=generator)
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return others
