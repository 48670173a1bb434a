"""The data of a probe: images and labels of two parts, and the features of models; each is computed once and kept."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from prior3d.contracts.dataset import Dataset, table_of
from prior3d.contracts.probe import FeatureKind, Part
from prior3d.contracts.runner import Progress, silent
from prior3d.data.sample.augmentation import assemble
from prior3d.data.sample.loading import batched, to_float
from prior3d.data.spacing import evenly_chosen
from prior3d.errors import DamagedFile, UserError
from prior3d.files import temporary_folder, writing
from prior3d.probes.models import FrozenModel
from prior3d.randomness import generator

_BATCH = 32


class ProbeData:
    """Two parts of a dataset, frame by frame and never augmented; computed arrays are in files and read as needed.

    Args:
        parts: Datasets of the parts: `held_out`, and `train` if a probe trains something.
        most: Largest number of frames per part, evenly spaced over the part; None for all.
        workers: Number of processes that decode.
        folder: Folder for features and labels; by default a temporary folder that `close` removes.
        resident: Size in bytes up to which a whole array is kept on the device.
        progress: Shows the progress of extraction.

    Raises:
        UserError: A part has no frame.
    """

    def __init__(
        self,
        parts: Mapping[Part, Dataset],
        *,
        most: int | None = None,
        workers: int = 0,
        folder: Path | None = None,
        resident: int = 4 * 2**30,
        progress: Progress = silent,
    ) -> None:
        self.parts = dict(parts)
        self.size = next(iter(self.parts.values())).spec.size
        self.workers = workers
        self.resident = resident
        self.progress = progress
        self._temporary = temporary_folder("prior3d-probe-") if folder is None else None
        self.folder = Path(self._temporary.name) if folder is None else folder
        self.frames = {part: chosen_frames(dataset, most) for part, dataset in self.parts.items()}
        self._tables = {part: table_of(dataset) for part, dataset in self.parts.items()}
        self._arrays: dict[tuple, Array | Rows] = {}
        self._shared: dict[str, Any] = {}
        for part, dataset in self.parts.items():
            if not self.frames[part]:
                raise UserError(f"the {dataset.spec.split} split is empty: there is nothing to measure on", "data")

    def close(self) -> None:
        """Remove the stored files."""
        self._arrays.clear()
        for kept in self._shared.values():
            if hasattr(kept, "close"):
                kept.close()
        self._shared.clear()
        if self._temporary is not None:
            self._temporary.cleanup()

    def forget(self, model: FrozenModel) -> None:
        """Remove the features of a model."""
        for key in [key for key in self._arrays if key[0] is model]:
            for part in self._arrays.pop(key):
                part.remove()

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a value that a probe reads or computes once for all models on this data; `close` closes it, too.

        Args:
            name: Name of the value; it must change with everything that the value depends on.
            make: Function that makes the value; called the first time.
        """
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]

    def groups(self, part: Part) -> tuple[list[str], Tensor]:
        """Return names of groups and the group [N] of each frame: scenes if there are several, otherwise images."""
        frames, scenes = self.frames[part], self.parts[part].scenes
        if len({scene for scene, _ in frames}) > 1:
            return list(scenes), torch.tensor([scene for scene, _ in frames])
        return [f"{scenes[scene]}/{frame}" for scene, frame in frames], torch.arange(len(frames))

    def batches(self, part: Part, fields: frozenset[str], batch: int = _BATCH) -> Iterator[dict[str, Tensor]]:
        """Yield the frames of a part in order: fields [n, ...] without the axis of views, images float in 0..1.

        Packed fields have their `<name>_view` [rows], the index of the frame within the batch.
        """
        for decoded in self._decode(part, fields, batch):
            yield to_float(decoded, self._tables[part])

    def field(self, part: Part, name: str) -> "Array | Rows":
        """Return one field of all frames of a part, in order: `image` as bytes, labels, depth, poses.

        Args:
            part: Part of the data.
            name: Name of the field.

        Returns:
            An `Array` [N, ...]; for a packed field, the `Rows` of each of N frames.
        """
        self._check_part(part)
        key = ("field", part, name)
        if key not in self._arrays:
            if name not in self._tables[part]:
                raise ValueError(f"expected a field, got {name!r}; there are {', '.join(self._tables[part])}")
            field = self._tables[part][name]
            path, what = self.folder / f"{part}-{name.replace('/', '--')}.npy", f"{name}, {part}"
            batches = self._decode(part, frozenset({name}), _BATCH)
            shown = self.progress(batches, what, -(-len(self.frames[part]) // _BATCH))
            if field.batches == "pack":
                frames = ((decoded[name], decoded[field.view_index]) for decoded in shown)
                self._arrays[key] = self._keep_rows(path, frames, part, field.kept_as)
            else:
                self._arrays[key] = self._keep(path, (decoded[name] for decoded in shown), part, field.kept_as)
        return self._arrays[key]

    def features(self, model: FrozenModel, part: Part, kind: FeatureKind = "dense") -> tuple["Array", ...]:
        """Return the features of a model for all frames of a part, one array [N, C, h, w] or [N, C] per backbone."""
        self._check_part(part)
        if kind not in get_args(FeatureKind):
            raise ValueError(f"expected one of {', '.join(get_args(FeatureKind))} as kind of features, got {kind!r}")
        if model.beside:
            arrays = tuple(array for one in model.beside for array in self.features(one, part, kind))
            if len({array.shape[2:] for array in arrays}) == 1:  # otherwise they are resized to match
                return arrays
        key = (model, part, kind)  # holds the model, so the id of a deleted model is not reused
        if key not in self._arrays:
            self._arrays[key] = self._extract(model, part, kind)
        return self._arrays[key]

    def _check_part(self, part: str) -> None:
        if part not in self.parts:
            raise ValueError(f"expected one of {', '.join(self.parts)} as part of the data, got {part!r}")

    def _decode(self, part: Part, fields: frozenset[str], batch: int) -> Iterator[dict[str, Tensor]]:
        samples = _Frames(self.parts[part], self.frames[part], fields)
        for decoded in DataLoader(samples, batch_size=batch, num_workers=self.workers, collate_fn=samples.collate):
            if isinstance(decoded, DamagedFile):
                raise UserError(
                    f"damaged file {decoded.path}: {decoded.why}; probes see every frame: repair or remove it", "data"
                )
            yield decoded

    def _extract(self, model: FrozenModel, part: Part, kind: FeatureKind) -> tuple["Array", ...]:
        images = self.field(part, "image")
        arrays: list[Array] = []
        starts = range(0, len(images), _BATCH)
        for start in self.progress(starts, f"{kind} features, {part}", len(starts)):
            rows = torch.arange(start, min(start + _BATCH, len(images)))
            found = model.read(images.take(rows, model.device).float() / 255, kind)
            if any(bool(values.isnan().any()) for values in found):
                raise UserError("the features of a model hold NaN: its weights are damaged, or its numbers overflow")
            if not arrays:
                names = [f"{part}-{kind}-{id(model)}-{index}" for index in range(len(found))]
                arrays = [
                    Array(self.folder / f"{name}.npy", (len(images), *values.shape[1:]), torch.float16, self.resident)
                    for name, values in zip(names, found, strict=True)
                ]
            for array, values in zip(arrays, found, strict=True):
                array.put(start, values)
        return tuple(arrays)

    def _keep(self, path: Path, batches: Iterator[Tensor], part: Part, kept_as: str | None) -> "Array":
        array, start = None, 0
        for values in batches:
            if array is None:
                dtype = values.dtype if kept_as is None else getattr(torch, kept_as)
                array = Array(path, (len(self.frames[part]), *values.shape[1:]), dtype, self.resident)
            array.put(start, values.to(array.dtype))
            start += len(values)
        return array

    def _keep_rows(
        self, path: Path, batches: Iterator[tuple[Tensor, Tensor]], part: Part, kept_as: str | None
    ) -> "Rows":
        rows, left = None, len(self.frames[part])
        for values, frame in batches:
            rows = (
                Rows(path.with_suffix(".rows"), values.dtype if kept_as is None else getattr(torch, kept_as))
                if rows is None
                else rows
            )
            rows.add(values, frame.bincount(minlength=min(_BATCH, left)))
            left -= _BATCH
        return rows


def _reserve(path: Path) -> None:
    """Take the disk space of a mapped file now: where there is none, writing to the map would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


class Array:
    """A tensor [N, ...] in a memory-mapped file; small ones are kept on the device that first reads them."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype, resident: int) -> None:
        self.shape, self.dtype = shape, dtype
        self._path = path
        numbers = torch.empty(0, dtype=dtype).numpy().dtype
        with writing(path.parent):
            self._map = np.lib.format.open_memmap(path, mode="w+", dtype=numbers, shape=shape)
            _reserve(path)
        self._fits = self._map.nbytes <= resident
        self._held: Tensor | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def put(self, start: int, values: Tensor) -> None:
        """Write rows from `start` on."""
        low = torch.finfo(torch.float16).min
        values = values.clamp(low, -low) if self.dtype == torch.float16 and values.is_floating_point() else values
        self._map[start : start + len(values)] = values.to(self.dtype).cpu().numpy()
        self._held = None

    def take(self, rows: Tensor, device: str | torch.device = "cpu") -> Tensor:
        """Return rows [n, ...] on a device, in the stored type."""
        device = torch.device(device)
        if device.type != "cpu" and self._fits:
            if self._held is None:
                self._held = torch.from_numpy(np.asarray(self._map)).to(device)
            return self._held[rows.to(device)]
        return torch.from_numpy(self._map[rows.cpu().numpy()]).to(device)

    def remove(self) -> None:
        """Delete the file."""
        self._held = None
        self._path.unlink(missing_ok=True)


class Rows:
    """A packed field: rows [n, ...] of each of N frames, with different n, in a memory-mapped file."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._path = path
        self._shape: tuple[int, ...] = ()
        self._ends = [0]
        self._map: np.ndarray | None = None
        path.write_bytes(b"")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, values: Tensor, counts: Tensor) -> None:
        """Append frames.

        Args:
            values: Rows [sum of counts, ...], in the order of their frames.
            counts: Number of rows [frames] of each frame.
        """
        self._shape, self._map = tuple(values.shape[1:]), None
        with writing(self._path.parent), open(self._path, "ab") as file:
            file.write(values.to(self.dtype).contiguous().numpy().tobytes())
        self._ends += (self._ends[-1] + counts.cumsum(0)).tolist()

    def take(self, rows: Tensor, device: str | torch.device = "cpu") -> list[Tensor]:
        """Return the rows [n, ...] of each of several frames on a device, in the stored type."""
        return [torch.from_numpy(self._of(frame).copy()).to(device) for frame in rows.tolist()]

    def remove(self) -> None:
        """Delete the file."""
        self._map = None
        self._path.unlink(missing_ok=True)

    def _of(self, frame: int) -> np.ndarray:
        start, end = self._ends[frame : frame + 2]
        numbers = torch.empty(0, dtype=self.dtype).numpy().dtype
        if start == end:  # an empty file cannot be mapped
            return np.zeros((0, *self._shape), numbers)
        if self._map is None:
            self._map = np.memmap(self._path, numbers, mode="r", shape=(self._ends[-1], *self._shape))
        return self._map[start:end]


class _Frames(TorchDataset):
    """Single frames, centered and not augmented, in a fixed order."""

    def __init__(self, dataset: Dataset, frames: list[tuple[int, int]], fields: frozenset[str]) -> None:
        self.dataset, self.frames, self.fields = dataset, frames, fields
        self.table = table_of(dataset)
        size_from = "intrinsics" if "intrinsics" in dataset.provides else "image"
        self.decoded = self.table.declared(fields) | {size_from}
        packed = [self.table[name] for name in fields if self.table[name].batches == "pack"]
        self.made = fields | {field.view_index for field in packed}

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Tensor] | DamagedFile:
        try:
            view = self.dataset.load(*self.frames[index], self.decoded)
        except DamagedFile as damage:  # raised in a worker, it would reach the user as a long traceback
            return damage
        sample = assemble([view], self.dataset.spec.size, None, self.fields, generator("none"), self.table)
        has_views = {name: "V" in self.table[name].axes for name in self.made}
        return {name: sample[name][0] if has_views[name] else sample[name] for name in self.made}

    def collate(self, samples: list[dict[str, Tensor] | DamagedFile]) -> dict[str, Tensor] | DamagedFile:
        damage = next((sample for sample in samples if isinstance(sample, DamagedFile)), None)
        return damage or batched(samples, 1, self.table)


def chosen_frames(dataset: Dataset, most: int | None) -> list[tuple[int, int]]:
    """Return scene and frame of the images that a probe reads: all, or `most` of them, evenly spaced."""
    counts = [dataset.frame_count(scene) for scene in range(len(dataset.scenes))]
    frames = [(scene, frame) for scene, count in enumerate(counts) for frame in range(count)]
    if most is None or len(frames) <= most:
        return frames
    return [frames[index] for index in evenly_chosen(len(frames), most)]
