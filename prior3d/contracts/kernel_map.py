"""The input of a sparse engine: which input row meets which output row under which kernel offset."""

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
RowPairs = tuple[Tensor, Tensor, tuple[int, ...]]


class KernelMap:
    """Pairs (input row, output row), grouped by kernel offset; or the same as a table of neighbors.

    Within one offset no row occurs twice on either side. `identity` is the offset that pairs every row with itself (the
    center of a submanifold kernel). It is a hint that engines may use or ignore: its pairs are listed like the others.

    Args:
        in_rows: [P] int64 input rows, offset by offset.
        out_rows: [P] int64 output rows.
        counts: pairs of each of the K offsets, on the host.
        in_size: number of input rows.
        out_size: number of output rows.
        identity: offset that pairs every row with itself.

    >>> import torch
    >>> rows = torch.tensor([0, 1, 1])
    >>> kernel_map = KernelMap(rows, torch.tensor([0, 1, 0]), (2, 1), in_size=2, out_size=2)
    >>> [len(in_rows) for in_rows, _ in kernel_map.pairs]
    [2, 1]
    >>> kernel_map.neighbors().tolist(), kernel_map.transposed.neighbors().tolist()
    ([[0, 1], [1, -1]], [[0, 1], [-1, 0]])
    >>> kernel_map.cached("acme/longest", lambda pairs: max(pairs.counts))
    2
    """

    def __init__(
        self,
        in_rows: Tensor,
        out_rows: Tensor,
        counts: tuple[int, ...],
        in_size: int,
        out_size: int,
        identity: int | None = None,
    ) -> None:
        self._source = _Source(lambda: (in_rows, out_rows, tuple(counts)), None, (in_size, out_size), len(counts))
        self._is_transposed = False
        self.identity = identity

    @classmethod
    def deferred(
        cls,
        pairs: Callable[[], RowPairs],
        neighbors: Callable[[], Tensor],
        size: int,
        in_size: int,
        out_size: int,
        identity: int | None = None,
        mirrored: bool = False,
        orders: tuple[Tensor | None, Tensor | None] = (None, None),
        back: Callable[[], Tensor] | None = None,
    ) -> "KernelMap":
        """Make a map whose pairs are listed on first use, because their number has to reach the host for that.

        Args:
            pairs: makes `in_rows`, `out_rows`, int64 or int32, and `counts`; called once.
            neighbors: makes the table of `neighbors`; called on each use.
            size: number of offsets K.
            in_size: number of input rows.
            out_size: number of output rows.
            identity: offset that pairs every row with itself.
            mirrored: whether offset K-1-k pairs (j, i) where offset k pairs (i, j).
            orders: input rows and output rows [N] int64 in an order that keeps near voxels together; None if they
                already are, or if nobody knows.
            back: makes the table of the transposed map, if that is not this one flipped.
        """
        made = cls.__new__(cls)
        made._source = _Source(pairs, neighbors, (in_size, out_size), size, mirrored, orders, back)
        made._is_transposed = False
        made.identity = identity
        return made

    def __eq__(self, other: object) -> bool:
        """Whether the other is the same map: `transposed` makes a new object each time."""
        if not isinstance(other, KernelMap):
            return NotImplemented
        return self._source is other._source and self._is_transposed == other._is_transposed

    def __hash__(self) -> int:
        return hash((id(self._source), self._is_transposed))

    @property
    def size(self) -> int:
        """Number of offsets K; reading it waits for nothing."""
        return self._source.size

    @property
    def in_size(self) -> int:
        """Number of input rows."""
        return self._source.sizes[self._is_transposed]

    @property
    def out_size(self) -> int:
        """Number of output rows."""
        return self._source.sizes[not self._is_transposed]

    @property
    def mirrored(self) -> bool:
        """Whether offset K-1-k pairs (j, i) where offset k pairs (i, j): then the transposed map is this one, flipped.

        False also where nobody looked.
        """
        return self._source.mirrored

    @property
    def near(self) -> Tensor | None:
        """Output rows [N_out] int64 in an order that keeps near voxels together; None if they are, or nobody knows."""
        return self._source.orders[not self._is_transposed]

    @property
    def in_rows(self) -> Tensor:
        """Input rows [P] int64, offset by offset."""
        return self._source.rows()[self._is_transposed].long()

    @property
    def out_rows(self) -> Tensor:
        """Output rows [P] int64, offset by offset."""
        return self._source.rows()[not self._is_transposed].long()

    @property
    def short_rows(self) -> tuple[Tensor, Tensor]:
        """Input rows and output rows [P] int32; without a conversion if the map was made with such rows."""
        rows = self._source.rows()
        return rows[self._is_transposed].int(), rows[not self._is_transposed].int()

    @property
    def counts(self) -> tuple[int, ...]:
        """Pairs of each of the K offsets, on the host."""
        return self._source.rows()[2]

    @property
    def pairs(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """(input rows, output rows) of each offset."""
        return self.cached("pairs", KernelMap._split)

    @property
    def transposed(self) -> "KernelMap":
        """The map of the transposed operation: inputs and outputs are swapped, offsets keep their index."""
        other = KernelMap.__new__(KernelMap)
        other._source, other._is_transposed, other.identity = self._source, not self._is_transposed, self.identity
        return other

    def neighbors(self) -> Tensor:
        """Make the table [K, N_out] int32 of the input row that meets each output row under each offset, -1 for none.

        It is not kept: an engine keeps what it makes of it with `cached`.
        """
        if self._is_transposed and self._source.back is not None:
            return self._source.back()
        table = self._source.neighbors()
        if not self._is_transposed:
            return table
        return table.flip(0) if self.mirrored else inverted(table, self.out_size)

    def cached(self, key: Hashable, make: Callable[["KernelMap"], T]) -> T:
        """Return an engine's own form of this map, computed once and kept for the lifetime of the map.

        Args:
            key: name of the form; begin it with the engine's name to keep it distinct from those of other engines.
            make: function from this map to the form.

        Returns:
            The result of the first call of `make`.
        """
        forms = self._source.forms[self._is_transposed]
        if key not in forms:
            forms[key] = make(self)
        return forms[key]

    def _split(self) -> tuple[tuple[Tensor, Tensor], ...]:
        return tuple(zip(self.in_rows.split(self.counts), self.out_rows.split(self.counts), strict=True))


class _Source:
    """What a map and its transposed share; neither refers to the other, so memory is freed with the last of them."""

    def __init__(
        self,
        make_rows: Callable[[], RowPairs],
        make_neighbors: Callable[[], Tensor] | None,
        sizes: tuple[int, int],
        size: int,
        mirrored: bool = False,
        orders: tuple[Tensor | None, Tensor | None] = (None, None),
        back: Callable[[], Tensor] | None = None,
    ) -> None:
        self.back = back
        self.sizes, self.size, self.mirrored, self.orders = sizes, size, mirrored, orders
        self.forms: tuple[dict[Hashable, object], dict[Hashable, object]] = ({}, {})
        self._make_rows, self._make_neighbors = make_rows, make_neighbors
        self._rows: RowPairs | None = None

    def rows(self) -> RowPairs:
        if self._rows is None:
            self._rows = self._make_rows()
            # The lookup can be larger than the pairs; from here on the table is made from them.
            self._make_rows = self._make_neighbors = self.back = None
        return self._rows

    def neighbors(self) -> Tensor:
        if self._make_neighbors is not None:
            return self._make_neighbors()
        in_rows, out_rows, counts = self.rows()
        out_rows = out_rows.long()
        offsets = torch.arange(self.size, device=in_rows.device)
        repeats = torch.tensor(counts)
        if in_rows.is_cuda:  # the host does not wait for a GPU that still has work to do
            repeats = repeats.pin_memory().to(in_rows.device, non_blocking=True)
        offsets = offsets.repeat_interleave(repeats, output_size=len(in_rows))
        table = in_rows.new_full((self.size, self.sizes[1]), -1, dtype=torch.int32)
        table[offsets, out_rows] = in_rows.int()
        return table


def inverted(
    table: Tensor,  # [K, N] int32
    size: int,
) -> Tensor:
    """Return the table [K, size] int32 of the place at which each row stands in a table of distinct rows, -1 for none.

    >>> import torch
    >>> inverted(torch.tensor([[2, -1, 0]], dtype=torch.int32), 3).tolist()
    [[2, -1, 0]]
    """
    places = torch.arange(table.shape[1], device=table.device, dtype=torch.int32)
    # Absent rows go to a spare column, so that no size has to be known.
    found = table.new_full((len(table), size + 1), -1)
    found.scatter_(1, torch.where(table < 0, size, table).long(), places.expand_as(table))
    return found[:, :size]
