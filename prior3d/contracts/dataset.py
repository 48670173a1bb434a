"""The contract of a dataset: which fields it provides, its scenes, and how one sample is decoded."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch

from prior3d.contracts.fields import FIELDS, Field, FieldTable
from prior3d.contracts.runner import SceneJob
from prior3d.contracts.view import View
from prior3d.errors import DamagedFile, UserError

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class DataSpec:
    """What every dataset is told, whatever its own options.

    Attributes:
        size: height and width of the run's images, in pixels; datasets decode at their native size.
        views: views per sample, V.
        split: which part of the data this object serves.
        cache: folder for what is computed once (rendered rooms, pair tables); shared between runs.
        seed: the run's seed; a dataset's content must not depend on it, only the order of its samples.
    """

    size: tuple[int, int]
    views: int
    split: Split
    cache: Path
    seed: int = 0


class SceneSurface(Protocol):
    """The points of a scene, of which a box can be cut out.

    Attributes:
        points: [N, 3] float32, metres, world axes.
        colors: [N, 3] uint8 RGB, of the same rows; None where there are none.
    """

    points: np.ndarray
    colors: np.ndarray | None

    def within(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the rows [M] int64 of the points inside the box from `low` to `high`, [3] metres each."""
        ...


class Dataset(ABC):
    """A source of samples; subclasses take `spec` and typed keyword options, which are the schema of `data:`.

    A damaged file raises `DamagedFile` from `sample` or `load`; whether that ends the run is not for the dataset to
    decide. Errors of the user's making (no such folder, no intrinsics) raise `UserError` with the name of the option
    (`root`) from the constructor or `verify`, before anything is computed; messages name other options likewise.

    Attributes:
        provides: fields this dataset can decode (see `prior3d.contracts.fields`); may depend on options.
        fields: fields of its own, named `<plugin>/<field>`; what it provides of them stands in `provides`, too.
        splits: the splits it has; "train" always, others where evaluation data is kept apart.
        scenes: names of the scenes of this split, in the order of the `scene` field.
        class_names: names of the classes of `semantic`, `label` or `box_labels`, by id; empty where there are none.
        max_surface_points: points of the surface that a view gets at most.
        damaged: files that its jobs could not decode and left out; the caller decides whether that ends the run.
    """

    contract: ClassVar[int] = 3
    provides: frozenset[str] = frozenset({"image"})
    fields: tuple[Field, ...] = ()
    splits: tuple[Split, ...] = ("train",)
    class_names: tuple[str, ...] = ()
    max_surface_points: int = 200_000

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        self.scenes: list[str] = []
        self.damaged: list[DamagedFile] = []

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples that make one epoch."""

    @abstractmethod
    def sample(self, index: int, fields: frozenset[str], generator: torch.Generator) -> list[View]:
        """Decode the V views of one sample.

        Args:
            index: number of this sample in the run, counted from 0 over all ranks, beyond `len` in later epochs;
                decides what is sampled, together with `spec.seed`, and nothing else does: workers and resumed runs see
                the same samples.
            fields: what to decode, of `provides`; the rest stays absent. `scene` and `frame` are always set.
            generator: seeded from (seed, index), for any further choice.
        """

    @abstractmethod
    def fingerprint(self, frames: Iterable[tuple[int, int]] | None = None) -> str:
        """Return a text that changes when what some frames hold changes: caches and scores are kept by it.

        It is cheap: names, sizes and times of files, and options that change what is decoded of them.
        `prior3d.files.fingerprint` makes one of files.

        Args:
            frames: scene and frame of each; None for all of this split.
        """

    def frame_count(self, scene: int) -> int:
        """Return the number of frames of a scene: with `load`, how probes see every frame once."""
        raise NotImplementedError(f"{type(self).__name__} does not give its frames one by one")

    def load(self, scene: int, frame: int, fields: frozenset[str]) -> View:
        """Decode one frame.

        Args:
            scene: index into `scenes`.
            frame: from 0 to `frame_count(scene) - 1`.
            fields: what to decode; the rest stays absent. `scene` and `frame` are always set, `size` with the
                intrinsics and wherever no image is decoded.
        """
        raise NotImplementedError(f"{type(self).__name__} does not give its frames one by one")

    def verify(self) -> None:
        """Check quickly that the files are there and fit together; raise UserError otherwise."""

    def jobs(self, fields: frozenset[str]) -> Iterator[Sequence[SceneJob]]:
        """Yield what is computed once, and kept in the cache, before samples are drawn: stage by stage.

        A stage is asked for when all jobs of the earlier ones are done, so it may read what they left, and refuse it.

        Args:
            fields: what the run reads; a surface is fused only for runs that read a field of it.

        Raises:
            UserError: what was computed will not do.
        """
        yield from ()

    def note_damage(self, damaged: Iterable[DamagedFile]) -> list[DamagedFile]:
        """Add files to `damaged`, each once; return those that were not known."""
        known = {damage.path for damage in self.damaged}
        new = list({damage.path: damage for damage in damaged if damage.path not in known}.values())
        self.damaged += new
        return new

    def surface(self, scene: int) -> "SceneSurface":
        """Return the surface of a scene; a dataset that provides the field `surface` implements this.

        One that provides `surface_color`, too, returns a surface with colors.

        The sample's own part is cut out by `prior3d.data.posed.surface.add_surface`, for the views as augmented.
        """
        raise NotImplementedError(f"{type(self).__name__} has no surface")

    def describe(self) -> list[str]:
        """Return lines for the log: how many scenes, frames, pairs; warnings about the data."""
        return [f"{len(self.scenes)} scenes, {len(self)} samples"]


def table_of(dataset: Dataset) -> FieldTable:
    """Return all fields there are for a dataset: prior3d's, and those that it brings.

    Raises:
        UserError: a field of its own has the name of another, or it provides one that nothing describes.
    """
    name = type(dataset).__name__
    table = FIELDS.with_fields(dataset.fields, name) if dataset.fields else FIELDS
    for field in sorted(dataset.provides):
        if field not in table:
            raise UserError(
                f"{name} provides {field}, and nothing says what that is: add Field({field!r}, ...) to its `fields`",
                "name",
            )
    return table
