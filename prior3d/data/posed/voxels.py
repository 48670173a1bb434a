"""Sums of points by voxel, added frame by frame: a table finds the sums of each voxel."""

from collections.abc import Sequence

import numpy as np

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: spreads neighboring keys over the table
_FIRST_PLACES = 2**12
_FREE = -1
_AT_ONCE = 2**14
_CELL_BITS = 2  # a cell is 4 voxels wide
_IN_CELL = 2**_CELL_BITS - 1
_KEY_BITS = 20  # of the place of a voxel along an axis
_FARTHEST = 2 ** (_KEY_BITS - 1)


class KeyNumbers:
    """Numbers of keys, from 0: a new key gets the next one.

    Keys are found by open addressing in a table of numbers, a whole array at a time. The table has at least twice as
    many places as keys, so few of them take more than two looks.

    >>> numbers = KeyNumbers()
    >>> first, again = numbers.of(np.array([70, 50, 70])), numbers.of(np.array([50, 70, 90]))
    >>> numbers.keys[again], len(numbers)
    (array([50, 70, 90]), 3)
    >>> bool(first[0] == first[2] == again[1])
    True
    """

    def __init__(self) -> None:
        self._count = 0
        self._table = np.full(_FIRST_PLACES, _FREE, np.int32)
        self._keys = np.full(1, -1, np.int64)  # the last is that of free places: no key

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> np.ndarray:
        """All keys [N] int64, in the order of their numbers."""
        return self._keys[: self._count]

    @property
    def bytes(self) -> int:
        """Bytes of the table and the keys."""
        return self._table.nbytes + self._keys.nbytes

    def of(self, keys: np.ndarray) -> np.ndarray:
        """Return the numbers [n] int64 of keys [n] int64, which are at least 0; new keys are added.

        Args:
            keys: Keys in any order, with repetitions.
        """
        place = self._places(keys)
        numbers = self._table.take(place)
        wrong = np.flatnonzero(self._keys.take(numbers) != keys)
        if len(wrong):
            numbers[wrong] = self._found_or_added(keys[wrong])
        return numbers.astype(np.int64)

    def _found_or_added(self, keys: np.ndarray) -> np.ndarray:
        """Return the numbers of keys, of which the table may lack some."""
        self._reserve(len(keys))
        numbers = np.empty(len(keys), np.int32)
        rows, place = np.arange(len(keys)), self._places(keys)
        while len(rows):
            free = np.flatnonzero(self._table.take(place) == _FREE)
            if len(free):
                self._add(keys[rows[free]], place[free])
            numbers[rows] = self._table.take(place)
            wrong = self._keys.take(numbers[rows]) != keys[rows]
            rows, place = rows[wrong], self._next(place[wrong])
        return numbers

    def _add(self, keys: np.ndarray, place: np.ndarray) -> None:
        """Add keys at free places; of several at one place the last is added."""
        candidates = np.arange(len(keys), dtype=np.int32)
        self._table[place] = candidates
        last = np.flatnonzero(self._table.take(place) == candidates)
        numbers = np.arange(self._count, self._count + len(last), dtype=np.int32)
        self._table[place[last]] = numbers
        self._keys[numbers] = keys[last]
        self._count += len(last)

    def _reserve(self, more: int) -> None:
        """Make room for more keys."""
        needed = self._count + more
        if needed >= len(self._keys):
            keys = np.full(needed + needed // 2 + 1, -1, np.int64)
            keys[: self._count] = self.keys
            self._keys = keys
        if 2 * needed <= len(self._table):
            return
        self._table = np.full(1 << (2 * needed - 1).bit_length(), _FREE, np.int32)
        numbers = np.arange(self._count, dtype=np.int32)
        place = self._places(self.keys)
        while len(numbers):
            free = self._table.take(place) == _FREE
            self._table[place[free]] = numbers[free]
            missing = self._table.take(place) != numbers
            numbers, place = numbers[missing], self._next(place[missing])

    def _places(self, keys: np.ndarray) -> np.ndarray:
        """Return the place in the table [n] int64 at which to look first for each key."""
        mixed = keys.view(np.uint64) >> np.uint64(32)
        mixed ^= keys.view(np.uint64)
        mixed *= _MULTIPLIER
        mixed >>= np.uint64(65 - len(self._table).bit_length())
        return mixed.view(np.int64)

    def _next(self, place: np.ndarray) -> np.ndarray:
        return (place + 1) & (len(self._table) - 1)


class VoxelSums:
    """Sums of the points in each voxel and of their colors, and the number of frames that saw a cell of 4^3 voxels.

    A cell is found by its key, and a voxel by its place in the cell; nothing is sorted until the end. Memory is that of
    the sums and of a number for each voxel of a seen cell: about 70 bytes a voxel where surfaces are dense, and 350
    where each is alone. Twice as much is reserved.

    Args:
        size: Side of a voxel, meters.
    """

    def __init__(self, size: float) -> None:
        self._size = size
        self._cells = KeyNumbers()
        self._frames = np.zeros(0, np.int32)  # by cell
        self._numbers = np.zeros(0, np.int32)  # by cell and place in it, from 1; 0 = no such voxel yet
        self._sums = np.zeros((0, 7))  # by number: pixels, x, y, z, red, green, blue
        self._count = 0

    def __len__(self) -> int:
        """Return the number of voxels with points."""
        return self._count

    @property
    def bytes(self) -> int:
        """Bytes that everything takes."""
        return self._cells.bytes + sum(values.nbytes for values in (self._frames, self._numbers, self._sums))

    def add(self, points: Sequence[np.ndarray], colors: Sequence[np.ndarray]) -> None:
        """Add the points of one frame; those over 2^19 voxels from the origin are left out.

        Args:
            points: Coordinates x, y, z [n] each, meters.
            colors: Red, green and blue [n] each, 0 to 255.
        """
        seen = np.zeros(len(self._cells), bool)
        for start in range(0, len(points[0]), _AT_ONCE):  # so many that all work stays in the processor's cache
            rows = slice(start, start + _AT_ONCE)
            cells = self._add([axis[rows] for axis in points], [channel[rows] for channel in colors])
            seen = _with_room(seen, len(self._cells))
            seen[cells] = True
        count = len(self._cells)
        self._frames = _with_room(self._frames, count)
        self._frames[:count] += seen[:count]

    def means(self, least: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean point [N, 3] and color [N, 3] uint8 of voxels, sorted by x, then y, then z.

        Args:
            least: Number of frames that must have seen something in a voxel's cell.
        """
        voxels = np.flatnonzero(self._numbers)
        voxels = voxels[self._frames.take(voxels >> 3 * _CELL_BITS) >= least]
        voxels = voxels[np.argsort(self._keys(voxels))]
        rows = self._numbers.take(voxels) - 1
        points, colors = np.empty((len(rows), 3)), np.empty((len(rows), 3), np.uint8)
        for start in range(0, len(rows), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            sums = self._sums.take(rows[part], axis=0)
            points[part] = sums[:, 1:4] / sums[:, :1]
            colors[part] = np.rint(sums[:, 4:] / sums[:, :1])
        return points, colors

    def _add(self, points: Sequence[np.ndarray], colors: Sequence[np.ndarray]) -> np.ndarray:
        """Add some points of a frame; return the numbers of their cells."""
        places = [np.floor(axis / self._size) for axis in points]
        near = np.logical_and.reduce([np.abs(axis) < _FARTHEST for axis in places])
        if not near.all():
            places, points, colors = ([axis[near] for axis in axes] for axes in (places, points, colors))
        # NumPy converts to 32 bits many times faster than to 64.
        places = [axis.astype(np.int32) + np.int32(_FARTHEST) for axis in places]
        cells = self._cells.of(_packed([axis >> _CELL_BITS for axis in places], _KEY_BITS - _CELL_BITS))
        voxels = _packed([axis & _IN_CELL for axis in places], _CELL_BITS)
        voxels |= cells << 3 * _CELL_BITS
        self._numbers = _with_room(self._numbers, len(self._cells) << 3 * _CELL_BITS)
        rows = self._rows(voxels)
        rows *= self._sums.shape[1]
        flat = self._sums.reshape(-1)
        for column, values in enumerate((np.ones(len(rows)), *points, *colors)):
            # NumPy adds at repeated indices fast if everything is flat and of one type.
            np.add.at(flat[column:], rows, values.astype(np.float64, copy=False))
        return cells

    def _rows(self, voxels: np.ndarray) -> np.ndarray:
        """Return the rows [n] int64 of the sums of voxels; new voxels are added."""
        numbers = self._numbers.take(voxels)
        new = np.flatnonzero(numbers == 0)
        if len(new):
            chosen, candidates = voxels[new], np.arange(1, len(new) + 1, dtype=np.int32)
            self._numbers[chosen] = candidates
            last = np.flatnonzero(self._numbers.take(chosen) == candidates)  # of the rows of one voxel
            self._numbers[chosen[last]] = np.arange(self._count + 1, self._count + len(last) + 1, dtype=np.int32)
            self._count += len(last)
            self._sums = _with_room(self._sums, self._count)
            numbers[new] = self._numbers.take(chosen)
        return numbers.astype(np.int64) - 1

    def _keys(self, voxels: np.ndarray) -> np.ndarray:
        """Return keys [n] int64 of voxels that ascend with x, then y, then z."""
        of_cells = _packed(_axes(self._cells.keys, _KEY_BITS - _CELL_BITS), _KEY_BITS) << _CELL_BITS
        in_cells = _packed(_axes(np.arange(1 << 3 * _CELL_BITS), _CELL_BITS), _KEY_BITS)
        keys = of_cells.take(voxels >> 3 * _CELL_BITS)
        keys |= in_cells.take(voxels & len(in_cells) - 1)
        return keys


def _packed(axes: Sequence[np.ndarray], bits: int) -> np.ndarray:
    """Return numbers [n] int64 of three parts of so many bits each."""
    x, y, z = axes
    packed = x.astype(np.int64)
    for axis in (y, z):
        packed <<= bits
        packed |= axis
    return packed


def _axes(packed: np.ndarray, bits: int) -> list[np.ndarray]:
    """Return the three parts of numbers; see `_packed`."""
    return [packed >> shift * bits & (1 << bits) - 1 for shift in (2, 1, 0)]


def _with_room(values: np.ndarray, needed: int) -> np.ndarray:
    """Return an array with at least the needed number of rows: the same, or a larger one with zeros at its end."""
    if needed <= len(values):
        return values
    # The system gives memory for zeros only where something else is written.
    larger = np.zeros((2 * needed, *values.shape[1:]), values.dtype)
    larger[: len(values)] = values
    return larger
