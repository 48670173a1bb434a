"""From draws to batches: a stateless stream of draw numbers, decoding in worker processes, collation.

A draw number identifies a sample of the run permanently: it determines the sample and, with the seed, its augmentation.
The stream of a rank depends only on step, batch size, accumulation and world size, so resuming needs no sampler state.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate
from torch.utils.data import Dataset as TorchDataset

from prior3d.contracts.dataset import Dataset, table_of
from prior3d.contracts.fields import FIELDS, SURFACE_FIELDS, FieldTable
from prior3d.data.posed.surface import SURFACE_NEEDS, add_surface
from prior3d.data.sample.augmentation import AugmentOptions, assemble
from prior3d.errors import DamagedFile, UserError, section
from prior3d.randomness import generator

_ATTEMPTS = 20
"""Number of damaged draws in a row after which the data counts as unusable."""

Failure = tuple[str, str]
"""A path and the problem with it."""


@dataclass(frozen=True)
class DrawStream(Sampler[int]):
    """The draw numbers of one rank, from one micro-batch of the run to another.

    Attributes:
        start: First micro-batch (optimizer step x accumulation) to deliver.
        stop: Number of micro-batches in the whole run.
        batch_size: Samples per rank and micro-batch.
        rank, world_size: Rank of this process and number of processes.
        ahead: Draws that the run is ahead, since it had more processes earlier; negative if it had fewer.
    """

    start: int
    stop: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    ahead: int = 0

    def __iter__(self) -> Iterator[int]:
        """Yield draw numbers, one batch after another."""
        for micro in range(self.start, self.stop):
            first = self.ahead + (micro * self.world_size + self.rank) * self.batch_size
            yield from range(first, first + self.batch_size)

    def __len__(self) -> int:
        """Return the number of draws in the WHOLE run: the trainer counts a resumed run's batches from the start."""
        return self.stop * self.batch_size


class DrawnSamples(TorchDataset):
    """Decodes and augments the sample of a draw number; runs in the loader's workers.

    Args:
        dataset: Dataset that decodes views.
        fields: Fields that the run reads.
        augment: Augmentation options; None for none.
        seed: Seed of the run.
        skip_damaged: Replace a damaged draw by the next one, and report it with the batch.

    Attributes:
        table: Table of all fields, including those of the dataset.
    """

    def __init__(
        self, dataset: Dataset, fields: frozenset[str], augment: AugmentOptions | None, seed: int, skip_damaged: bool
    ) -> None:
        self.dataset = dataset
        self.fields = fields | SURFACE_NEEDS if fields & SURFACE_FIELDS else fields
        self.table = table_of(dataset)
        self.decoded = self.table.declared(self.fields)
        self.augment = augment
        self.seed = seed
        self.skip_damaged = skip_damaged

    def __getitem__(self, index: int) -> dict[str, object]:
        """Return the sample's tensors and any damage met; errors are returned as values, to be raised in one line."""
        damaged: list[Failure] = []
        for attempt in range(_ATTEMPTS):
            stream = generator("draw", self.seed, index, attempt)
            try:
                with section("data"):
                    sample = self._sample(index + attempt, stream)
            except DamagedFile as damage:
                damaged.append((str(damage.path), damage.why))
                if not self.skip_damaged:
                    return {"error": _refusal(damage)}
            except UserError as error:
                return {"error": error}
            else:
                return {**sample, "damaged": damaged}
        return {"error": UserError(f"{_ATTEMPTS} samples in a row are damaged, the last: {damaged[-1]}", "data")}

    def _sample(self, index: int, stream: torch.Generator) -> dict[str, Tensor]:
        views = self.dataset.sample(index, self.decoded, stream)
        sample = assemble(views, self.dataset.spec.size, self.augment, self.fields, stream, self.table)
        if self.fields & SURFACE_FIELDS:
            add_surface(sample, self.dataset, stream, color="surface_color" in self.fields)
        return sample


def collate(samples: list[dict[str, object]], table: FieldTable = FIELDS) -> dict[str, object]:
    """Make a batch of samples, as `batched` does; damage and errors are passed on with the tensors."""
    for sample in samples:
        if "error" in sample:
            return {"error": sample["error"]}
    damaged = [failure for sample in samples for failure in sample.pop("damaged")]
    return {**batched(samples, samples[0]["frame"].shape[0], table), "damaged": damaged}


def batched(samples: Sequence[Mapping[str, Tensor]], views: int, table: FieldTable = FIELDS) -> dict[str, Tensor]:
    """Stack the fields of samples to a batch; packed fields are concatenated, with each row's view in the batch.

    Args:
        samples: Samples from `assemble`.
        views: Number of views per sample, V.
        table: Table of all fields.
    """
    batch: dict[str, Tensor] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name not in table or table[name].batches == "stack":
            batch[name] = default_collate(values)
        else:
            offset = views if table[name].is_view_index else 0
            batch[name] = torch.cat([value + offset * b if offset else value for b, value in enumerate(values)])
    return batch


def make_loader(samples: DrawnSamples, stream: DrawStream, workers: int, pin_memory: bool = False) -> DataLoader:
    """Return a loader of this rank's batches."""
    return DataLoader(
        samples,
        batch_size=stream.batch_size,
        sampler=stream,
        num_workers=workers,
        collate_fn=partial(collate, table=samples.table),
        pin_memory=pin_memory,
        drop_last=True,
        worker_init_fn=_one_thread if workers else None,
    )


def raise_errors(batch: Mapping[str, object]) -> None:
    """Raise, in the main process, the error that a worker met."""
    error = batch.get("error")
    if error is not None:
        raise error


def to_device(batch: Mapping[str, Tensor], device: torch.device | str, table: FieldTable = FIELDS) -> dict[str, Tensor]:
    """Move a batch to a device, except the fields that stay on the host; from pinned memory without waiting."""
    device = torch.device(device)
    return {
        name: value if name in table and table[name].on_host else value.to(device, non_blocking=device.type == "cuda")
        for name, value in batch.items()
    }


def to_float(batch: Mapping[str, Tensor], table: FieldTable = FIELDS) -> dict[str, Tensor]:
    """Turn byte images that are already on the device into float32 0..1."""
    return {
        name: value.float() / 255
        if name in table and table[name].moves == "resample" and value.dtype == torch.uint8
        else value
        for name, value in batch.items()
    }


def _refusal(damage: DamagedFile) -> UserError:
    error = damage.refusal()
    error.put_within("data")
    return error


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)  # workers share the cores with the training process
