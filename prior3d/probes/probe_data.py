"""The data of a probe: images and labels of two parts, and the features of models, each computed once and kept."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from prior3d.contracts.dataset import Dataset
from prior3d.contracts.probe import FeatureKind, Part
from prior3d.contracts.runner import Progress, silent
from prior3d.data.sample.augmentation import assemble
from prior3d.errors import DamagedFile, UserError
from prior3d.probes.models import FrozenModel
from prior3d.randomness import generator

_BATCH = 32
_COMPACT = {"semantic": torch.uint8, "normals": torch.float16}
"""How fields are kept, where the batch's own type wastes memory."""


class ProbeData:
    """Two parts of a dataset, frame by frame and never augmented; what is computed lies in files, read as needed.

    Args:
        parts: `held_out`, and `train` where a probe trains something.
        most: frames per part at most, evenly spaced over the part; None for all.
        workers: processes that decode.
        folder: where features and labels are kept; a temporary folder by default, gone with `close`.
        resident: bytes up to which an array is kept on the device as a whole.
        progress: shows how far extraction is.

    Raises:
        UserError: a part has no frame.
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
        self._temporary = tempfile.TemporaryDirectory(prefix="prior3d-probe-") if folder is None else None
        self.folder = Path(self._temporary.name) if folder is None else folder
        self.frames = {part: chosen_frames(dataset, most) for part, dataset in self.parts.items()}
        self._arrays: dict[tuple, Array] = {}
        self._shared: dict[str, Any] = {}
        for part, dataset in self.parts.items():
            if not self.frames[part]:
                raise UserError(f"the {dataset.spec.split} split is empty: there is nothing to measure on", "data")

    def close(self) -> None:
        """Remove what was kept."""
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
        """Return what a probe reads or computes once for all models on this data; closed with it, if it can be.

        Args:
            name: of what is made; it changes with all that this depends on.
            make: called the first time.
        """
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]

    def groups(self, part: Part) -> tuple[list[str], Tensor]:
        """Return names of groups and the group [N] of each frame: scenes where there are several, else images."""
        frames, scenes = self.frames[part], self.parts[part].scenes
        if len({scene for scene, _ in frames}) > 1:
            return list(scenes), torch.tensor([scene for scene, _ in frames])
        return [f"{scenes[scene]}/{frame}" for scene, frame in frames], torch.arange(len(frames))

    def batches(self, part: Part, fields: frozenset[str], batch: int = _BATCH) -> Iterator[dict[str, Tensor]]:
        """Yield the frames of a part in order: fields [n, ...] without the axis of views, images float in 0..1."""
        for decoded in self._decode(part, fields, batch):
            if "image" in decoded:
                decoded["image"] = decoded["image"].float() / 255
            yield decoded

    def field(self, part: Part, name: str) -> "Array":
        """Return one field of all frames of a part, in order, [N, ...]: `image` as bytes, labels, depth, poses."""
        key = ("field", part, name)
        if key not in self._arrays:
            batches = self._decode(part, frozenset({name}), _BATCH)
            values = (decoded[name].to(_COMPACT.get(name, decoded[name].dtype)) for decoded in batches)
            self._arrays[key] = self._keep(f"{part}-{name}", values, part, f"{name}, {part}")
        return self._arrays[key]

    def features(self, model: FrozenModel, part: Part, kind: FeatureKind = "dense") -> tuple["Array", ...]:
        """Return the features of a model for all frames of a part, one array [N, C, h, w] or [N, C] per backbone."""
        if model.beside:
            arrays = tuple(array for one in model.beside for array in self.features(one, part, kind))
            if len({array.shape[2:] for array in arrays}) == 1:  # else they are resized for each other
                return arrays
        key = (model, part, kind)  # holds the model: what is gone must not lend its id to another
        if key not in self._arrays:
            self._arrays[key] = self._extract(model, part, kind)
        return self._arrays[key]

    def _decode(self, part: Part, fields: frozenset[str], batch: int) -> Iterator[dict[str, Tensor]]:
        samples = _Frames(self.parts[part], self.frames[part], fields)
        for decoded in DataLoader(samples, batch_size=batch, num_workers=self.workers, collate_fn=_collate):
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

    def _keep(self, name: str, batches: Iterator[Tensor], part: Part, what: str) -> "Array":
        array, start = None, 0
        count = len(self.frames[part])
        for values in self.progress(batches, what, -(-count // _BATCH)):
            if array is None:
                shape = (count, *values.shape[1:])
                array = Array(self.folder / f"{name}.npy", shape, values.dtype, self.resident)
            array.put(start, values)
            start += len(values)
        return array


class Array:
    """A tensor [N, ...] in a file that is mapped into memory; small ones are held on the device that asks for them."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype, resident: int) -> None:
        self.shape, self.dtype = shape, dtype
        self._path = path
        numbers = torch.empty(0, dtype=dtype).numpy().dtype
        self._map = np.lib.format.open_memmap(path, mode="w+", dtype=numbers, shape=shape)
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
        """Return rows [n, ...] on a device, in the type they are kept in."""
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


class _Frames(TorchDataset):
    """Single frames, centred and not augmented, in a fixed order."""

    def __init__(self, dataset: Dataset, frames: list[tuple[int, int]], fields: frozenset[str]) -> None:
        self.dataset, self.frames, self.fields = dataset, frames, fields

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Tensor] | DamagedFile:
        size_from = "intrinsics" if "intrinsics" in self.dataset.provides else "image"
        try:
            view = self.dataset.load(*self.frames[index], self.fields | {size_from})
        except DamagedFile as damage:  # raised in a worker it would reach the user as a long story
            return damage
        sample = assemble([view], self.dataset.spec.size, None, self.fields, generator("none"))
        return {name: sample[name] if name in ("label",) else sample[name][0] for name in self.fields}


def _collate(samples: list[dict[str, Tensor] | DamagedFile]) -> dict[str, Tensor] | DamagedFile:
    return next((sample for sample in samples if isinstance(sample, DamagedFile)), None) or default_collate(samples)


def chosen_frames(dataset: Dataset, most: int | None) -> list[tuple[int, int]]:
    """Return scene and frame of the images that a probe reads: all, or `most` of them, evenly spaced."""
    counts = [dataset.frame_count(scene) for scene in range(len(dataset.scenes))]
    frames = [(scene, frame) for scene, count in enumerate(counts) for frame in range(count)]
    if most is None or len(frames) <= most:
        return frames
    return [frames[index] for index in np.linspace(0, len(frames) - 1, most).round().astype(int)]
