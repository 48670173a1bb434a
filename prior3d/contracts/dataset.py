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
    """Settings that every dataset receives, next to its own options.

    Attributes:
        size: height and width of the run's images, in pixels; datasets decode at their native size.
        views: views per sample, V.
        split: which part of the data this object serves.
        cache: folder for results that are computed once (rendered rooms, pair tables); runs share it.
        seed: the run's seed. It decides the order of a dataset's samples and must not change their content.
    """

    size: tuple[int, int]
    views: int
    split: Split
    cache: Path
    seed: int = 0


class SceneSurface(Protocol):
    """The surface points of a scene, from which a box can be cut out.

    Attributes:
        points: [N, 3] float32, meters, world axes.
        colors: [N, 3] uint8 RGB, one row per point; None if the surface has no colors.
    """

    points: np.ndarray
    colors: np.ndarray | None

    def within(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the rows [M] int64 of the points inside the box from `low` to `high`, [3] meters each."""
        ...


class Dataset(ABC):
    """A source of samples; subclasses take `spec` and typed keyword options, which define the schema of `data:`.

    For a damaged file, `sample` and `load` raise `DamagedFile`; the caller decides whether that ends the run. For a
    user's mistake (no such folder, no intrinsics), the constructor or `verify` raises `UserError` with the name of the
    option (`root`) before anything is computed. Messages refer to other options by name, too.

    Attributes:
        contract: version of this contract. A plugin that sets the number it was written for is refused, in one line, by
            a prior3d with another number.
        provides: fields this dataset can decode (see `prior3d.contracts.fields`); they may depend on its options.
        fields: extra fields that this dataset defines, named `<plugin>/<field>`; `provides` also lists those it can
            decode.
        splits: the splits it has: always "train", and others if it keeps evaluation data apart.
        scenes: names of the scenes of this split, in the order of the `scene` field.
        class_names: names of the classes of `semantic`, `label` or `box_labels`, by id; empty if it has none.
        max_surface_points: maximum number of surface points per view.
        damaged: files that its jobs could not decode and skipped; the caller decides whether that ends the run.
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
            index: number of this sample in the run, counted from 0 over all ranks; it exceeds `len` in later epochs.
                Only this number and `spec.seed` decide what is sampled, so all workers and resumed runs see the same
                samples.
            fields: the fields of `provides` to decode; the rest stays absent. `scene` and `frame` are always set.
            generator: random generator seeded from (seed, index), for any further choice.
        """

    @abstractmethod
    def fingerprint(self, frames: Iterable[tuple[int, int]] | None = None) -> str:
        """Return a text that changes when the content of some frames changes; keys of caches and scores include it.

        It must be cheap: use names, sizes and times of files, and the options that change what is decoded from them.
        `prior3d.files.fingerprint` computes one for a list of files.

        Args:
            frames: (scene, frame) of each frame; None for all frames of this split.
        """

    def frame_count(self, scene: int) -> int:
        """Return the number of frames of a scene; probes use it with `load` to read every frame once."""
        raise NotImplementedError(f"{type(self).__name__} does not give its frames one by one")

    def load(self, scene: int, frame: int, fields: frozenset[str]) -> View:
        """Decode one frame.

        Args:
            scene: index into `scenes`.
            frame: from 0 to `frame_count(scene) - 1`.
            fields: the fields to decode; the rest stays absent. `scene` and `frame` are always set; `size` is set with
                the intrinsics and whenever no image is decoded.
        """
        raise NotImplementedError(f"{type(self).__name__} does not give its frames one by one")

    def verify(self) -> None:
        """Check quickly that the files exist and fit together; raise UserError otherwise."""

    def jobs(self, fields: frozenset[str]) -> Iterator[Sequence[SceneJob]]:
        """Yield, stage by stage, the jobs whose results are computed once and cached before samples are drawn.

        A stage is requested when all jobs of the earlier stages are done, so it may read their results, and reject
        them.

        Args:
            fields: the fields that the run reads; a surface is fused only for runs that read one of its fields.

        Raises:
            UserError: the results of an earlier stage are unusable.
        """
        yield from ()

    def note_damage(self, damaged: Iterable[DamagedFile]) -> list[DamagedFile]:
        """Add files to `damaged`, each once; return the new ones."""
        known = {damage.path for damage in self.damaged}
        new = list({damage.path: damage for damage in damaged if damage.path not in known}.values())
        self.damaged += new
        return new

    def surface(self, scene: int) -> "SceneSurface":
        """Return the surface of a scene; a dataset that provides the field `surface` implements this.

        A dataset that also provides `surface_color` returns a surface with colors.

        `prior3d.data.posed.surface.add_surface` then cuts out the part of each sample, for the augmented views.
        """
        raise NotImplementedError(f"{type(self).__name__} has no surface")

    def describe(self) -> list[str]:
        """Return lines for the log: the numbers of scenes, frames and pairs, and warnings about the data."""
        return [f"{len(self.scenes)} scenes, {len(self)} samples"]


def table_of(dataset: Dataset) -> FieldTable:
    """Return the table of all fields available to a dataset: prior3d's and its own.

    Raises:
        UserError: one of its own fields has the name of another field, or it provides a field that nothing describes.
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
