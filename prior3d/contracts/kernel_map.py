"""The input of a sparse engine: which input row meets which output row under which kernel offset."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class KernelMap:
    """Pairs (input row, output row), grouped by kernel offset.

    Within one offset no row occurs twice on either side. `identity` is the offset that pairs every row with itself (the
    center of a submanifold kernel). It is a hint that engines may use or ignore: its pairs are listed like the others.

    >>> import torch
    >>> rows = torch.tensor([0, 1, 1])
    >>> kernel_map = KernelMap(rows, torch.tensor([0, 1, 0]), (2, 1), in_size=2, out_size=2)
    >>> [len(in_rows) for in_rows, _ in kernel_map.pairs]
    [2, 1]
    >>> kernel_map.cached("acme/longest", lambda pairs: max(pairs.counts))
    2
    """

    in_rows: Tensor  # [P] int64
    out_rows: Tensor  # [P] int64
    counts: tuple[int, ...]  # pairs of each of the K offsets, on the host
    in_size: int
    out_size: int
    identity: int | None = None
    _forms: dict[Hashable, object] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def pairs(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """(input rows, output rows) of each offset."""
        return tuple(zip(self.in_rows.split(self.counts), self.out_rows.split(self.counts), strict=True))

    @cached_property
    def transposed(self) -> "KernelMap":
        """The map of the transposed operation: inputs and outputs are swapped, offsets keep their index."""
        return replace(self, in_rows=self.out_rows, out_rows=self.in_rows, in_size=self.out_size, out_size=self.in_size)

    def cached(self, key: Hashable, make: Callable[["KernelMap"], T]) -> T:
        """Return an engine's own form of this map, computed once and kept for the lifetime of the map.

        Args:
            key: name of the form; begin it with the engine's name to keep it distinct from those of other engines.
            make: function from this map to the form.

        Returns:
            The result of the first call of `make`.
        """
        if key not in self._forms:
            self._forms[key] = make(self)
        return self._forms[key]
