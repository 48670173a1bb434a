"""Sparse tensors, and the manager that caches grid levels and kernel maps for all tensors of a network pass."""

from collections.abc import Sequence

from torch import Tensor

from prior3d.contracts.kernel_map import KernelMap
from prior3d.sparse.coordinates import CoordinateMap, coarsen, coordinate_map
from prior3d.sparse.kernel_map import build_kernel_map, kernel_offsets

MapKey = tuple[int, int, int, int]
"""A kernel map of a manager: strides of the finer and the coarser level, kernel size and dilation."""


class CoordinateManager:
    """The levels of one grid, at most one per stride, and the kernel maps between them, each built once.

    Levels are found by stride alone, as in MinkowskiEngine: the first level made at a stride serves every later
    operation that leads there. A manager belongs to one pass over one batch; it holds neither features nor gradients.
    """

    def __init__(self, level: CoordinateMap) -> None:
        """Start from one level of any stride."""
        self.levels: dict[int, CoordinateMap] = {level.stride: level}
        self._kernel_maps: dict[MapKey, KernelMap] = {}

    @classmethod
    def of(cls, levels: dict[int, CoordinateMap], maps: dict[MapKey, KernelMap]) -> "CoordinateManager":
        """Return the manager of levels by stride, finest first, and of kernel maps that are already made."""
        made = cls(next(iter(levels.values())))
        made.levels |= levels
        made._kernel_maps |= maps
        return made

    def coarser(self, stride: int, factor: int) -> int:
        """Return the stride of the level `factor` times coarser than that at `stride`; a missing level is made."""
        if stride * factor not in self.levels:
            self.levels[stride * factor] = self.levels[stride].coarser(factor)
        return stride * factor

    def prepare(self, stride: int, factors: Sequence[int]) -> None:
        """Make the missing levels `factors` times coarser than that at `stride`, with one wait for the device in all.

        A network that knows its levels calls this first. Its results are those of `coarser`, step by step.
        """
        level = self.levels[stride]
        missing = [factor for factor in factors if stride * factor not in self.levels]
        # On the CPU nothing waits, and each step sorts fewer cells than the one before.
        if level.coordinates.device.type != "cpu" and missing:
            self.levels |= {made.stride: made for made in coarsen(level, missing)}

    def kernel_map(self, fine: int, coarse: int, kernel_size: int, dilation: int = 1) -> KernelMap:
        """Return the kernel map that reads the level at stride `fine` and writes the one at `coarse`; both exist."""
        key = (fine, coarse, kernel_size, dilation)
        if key not in self._kernel_maps:
            self._kernel_maps[key] = build_kernel_map(self.levels[fine], self.levels[coarse], kernel_size, dilation)
        return self._kernel_maps[key]

    def finer(
        self, stride: int, factor: int, kernel_size: int, dilation: int = 1, fresh: bool = False
    ) -> tuple["CoordinateManager", int, KernelMap]:
        """Return the target of a transposed operation from `stride`: manager, stride and transposed kernel map.

        The target is this manager's level at the finer stride. If there is none, or with `fresh`, the target is every
        cell that the kernel reaches. A fresh level whose stride is taken starts a new manager.

        Raises:
            ValueError: if `factor` does not divide the stride.
        """
        if stride % factor:
            raise ValueError(f"expected a tensor whose stride {factor} divides, got stride {stride}")
        fine = stride // factor
        if fresh or fine not in self.levels:
            level = self.levels[stride].finer(factor, kernel_offsets(kernel_size) * dilation)
            if fine in self.levels:
                own = build_kernel_map(level, self.levels[stride], kernel_size, dilation)
                return CoordinateManager(level), fine, own.transposed
            self.levels[fine] = level
        return self, fine, self.kernel_map(fine, stride, kernel_size, dilation).transposed


class SparseTensor:
    """Features on the occupied voxels of a batch of grids.

    Differs from MinkowskiEngine: coordinates must be unique (there, duplicates are dropped silently; see
    `merge_duplicates`), strides are equal along the axes, and pruning starts a new manager, so levels are never shared
    by accident.

    Features go on new coordinates, or on a level that `manager` already has.

    Args:
        features: [N, C] one row per voxel.
        coordinates: [N, 4] int32 (batch, x, y, z) in units of the finest grid, unique; None with `manager`.
        stride: edge of a voxel in units of the finest grid.
        batch_size: number of batch items if the last ones may be empty; None infers it from the coordinates.
        manager: manager of the tensor that this one derives from.

    Raises:
        ValueError: if not exactly one of `coordinates` and `manager` is given, or sizes or devices differ.

    >>> import torch
    >>> coordinates = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 0, 0]], dtype=torch.int32)
    >>> x = SparseTensor(torch.rand(3, 8), coordinates)
    >>> x.features.shape, x.stride, x.batch_size
    (torch.Size([3, 8]), 1, 1)
    """

    def __init__(
        self,
        features: Tensor,
        coordinates: Tensor | None = None,
        *,
        stride: int = 1,
        batch_size: int | None = None,
        manager: CoordinateManager | None = None,
    ) -> None:
        if (coordinates is None) == (manager is None):
            raise ValueError("expected either coordinates or a manager, got both or neither")
        if manager is None:
            manager = CoordinateManager(coordinate_map(coordinates, stride, batch_size))
        self.features = features
        self.stride = stride
        self.manager = manager
        if features.ndim != 2 or len(features) != len(self.level):
            raise ValueError(f"expected features [{len(self.level)}, C], got {list(features.shape)}")
        if features.device != self.coordinates.device:
            raise ValueError(f"expected features on {self.coordinates.device}, got {features.device}")

    @property
    def level(self) -> CoordinateMap:
        """Grid level of the features."""
        return self.manager.levels[self.stride]

    @property
    def coordinates(self) -> Tensor:
        """Coordinates (batch, x, y, z) [N, 4] int32, in units of the finest grid."""
        return self.level.coordinates

    @property
    def batch_index(self) -> Tensor:
        """Batch item of each voxel [N] int64."""
        return self.coordinates[:, 0].long()

    @property
    def batch_size(self) -> int:
        """Number of batch items, empty ones included."""
        return self.level.batch_size

    def __len__(self) -> int:
        """Number of voxels."""
        return len(self.features)

    def with_features(self, features: Tensor) -> "SparseTensor":
        """Return a tensor with other features [N, C'] on the same voxels."""
        own = self.features
        if features.ndim == 2 and features.shape[0] == own.shape[0] and features.device == own.device:
            made = SparseTensor.__new__(SparseTensor)  # a network calls this hundreds of times: no further checks
            made.features, made.stride, made.manager = features, self.stride, self.manager
            return made
        return SparseTensor(features, stride=self.stride, manager=self.manager)

    def __add__(self, other: "SparseTensor") -> "SparseTensor":
        """Return the sum of two tensors on the same voxels."""
        return self.with_features(self.features + self.aligned(other).features)

    def aligned(self, other: "SparseTensor") -> "SparseTensor":
        """Return the other tensor after a check that its rows are the same voxels.

        Raises:
            ValueError: if it lives on another level or has another manager.
        """
        if other.level is not self.level:
            raise ValueError(
                f"expected tensors on the same voxels, got {len(self)} at stride {self.stride} and {len(other)} at "
                f"stride {other.stride}{'' if other.manager is self.manager else ' of another coordinate manager'}"
            )
        return other
