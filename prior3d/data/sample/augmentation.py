"""From decoded views to a sample's tensors: one affine map per view moves all fields; colors change separately."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from prior3d.contracts.fields import ALWAYS, FIELDS, SURFACE_FIELDS, Field, FieldTable
from prior3d.contracts.view import View
from prior3d.data.sample.photometric import NEEDS_DRAWS, ColorChange, apply_change, draw_change
from prior3d.data.sample.placement import Placement, centered, crop
from prior3d.errors import UserError
from prior3d.recipe.sections import AugmentOptions

_DRAWS = 4 + NEEDS_DRAWS


def refuse_mirrors(options: AugmentOptions | None, fields: frozenset[str], table: FieldTable = FIELDS) -> None:
    """Refuse options that mirror images if a field is not valid in a mirror image.

    Args:
        options: `augment:`, None for no augmentation.
        fields: Fields to read.
        table: Table of all fields.

    Raises:
        UserError: With the key `augment.flip`.
    """
    posed = sorted(name for name in fields if name in table and not table[name].mirrors)
    if options is not None and options.flip > 0 and posed:
        raise UserError(
            f"flips mirror the world, so they do not go with {', '.join(posed)}: set it to 0", "augment.flip"
        )


def assemble(
    views: Sequence[View],
    size: tuple[int, int],
    options: AugmentOptions | None,
    fields: frozenset[str],
    generator: torch.Generator,
    table: FieldTable = FIELDS,
) -> dict[str, Tensor]:
    """Make a sample's tensors, as `prior3d.contracts.fields` describes them without the batch axis.

    The random numbers drawn do not depend on `fields`, so a prior that needs another field does not change the images
    of other priors.

    Args:
        views: The V decoded views of one sample, each with its image or at least its size.
        size: Height H and width W of the run.
        options: Augmentation options; None for no augmentation.
        fields: Fields to make. Surface fields and fields that are in no table are made elsewhere and skipped here.
        generator: The only source of randomness.
        table: Table of all fields, including those of the dataset.

    Returns:
        The requested fields, with a leading axis V if the table has one; packed ones with their `<name>_view`; always
        `scene` and `frame`.

    Raises:
        UserError: The options mirror images of a posed dataset.
        ValueError: A view lacks the data for a field, or has data of the wrong shape.
    """
    refuse_mirrors(options, fields, table)
    draws = iter(torch.rand((len(views) + 2) * _DRAWS + 1, generator=generator, dtype=torch.float64).tolist())
    looks = [_look(view, size, options, draws) for view in views]
    sample = {
        "scene": torch.tensor(views[0].scene),
        "frame": torch.tensor([view.frame for view in views]),
    }
    for field in table.values():
        if field.name in _COLORED:
            if field.name in fields:
                sample[field.name] = _stack_images([_COLORED[field.name](look) for look in looks])
        elif field.batches == "pack":
            if field.rows_of is None and field.name not in SURFACE_FIELDS:
                _add_rows(sample, looks, field, fields, table)
        elif field.name not in _OF_CROPS | ALWAYS and fields & {field.name, field.made_from}:
            sample[field.name] = _stacked(looks, field) if field.of_views else _shared(views, field)
    if fields & _OF_CROPS:
        _add_crops(sample, views[int(next(draws) * len(views))], size, options, draws)
    return sample


@dataclass(frozen=True)
class _Look:
    """One view with the draws for it."""

    view: View
    placement: Placement
    change: ColorChange | None

    @cached_property
    def clean(self) -> np.ndarray:
        return self.placement.image(self.view["image"])

    @property
    def colored(self) -> np.ndarray:
        return self.clean if self.change is None else apply_change(self.clean, self.change)


_COLORED = {"image": lambda look: look.colored, "image_clean": lambda look: look.clean}
"""The two fields with color changes in addition; all others only move as the table says."""

_OF_CROPS = frozenset({"image_crops", "crop_from_image"})
"""The two fields of a sample's crops of one image, which are drawn separately from its views."""


def _look(view: View, size: tuple[int, int], options: AugmentOptions | None, draws: Iterator[float]) -> _Look:
    """Draw the crop and color changes of one view."""
    image_size = view["image"].shape[:2] if "image" in view else view.size
    if image_size is None:
        raise ValueError(f"expected the image or its size, got neither in scene {view.scene}, frame {view.frame}")
    side, across, down, flip = (next(draws) for _ in range(4))
    own = iter([next(draws) for _ in range(NEEDS_DRAWS)])
    if options is None:
        return _Look(view, centered(image_size, size), None)
    share = options.crop[0] + side * (options.crop[1] - options.crop[0])
    placement = crop(image_size, size, share, across, down, mirrored=flip < options.flip)
    jitter = (options.brightness, options.contrast, options.saturation, options.hue)
    sigma = tuple(pixels * size[0] / 240 for pixels in options.blur_sigma)
    return _Look(view, placement, draw_change(own, jitter, (options.jitter, options.grayscale, options.blur), sigma))


def _stack_images(images: Sequence[np.ndarray]) -> Tensor:
    """Return [V, 3, H, W] uint8 from images [H, W, 3]."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))


def _stacked(looks: Sequence[_Look], field: Field) -> Tensor:
    """Return a field [V, ...] of all views, moved."""
    values = np.stack([look.placement.move(field, look.view[field.name]) for look in looks]).astype(field.dtype)
    has_channels = field.is_map and len(field.axes) == 5
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 1) if has_channels else values))


def _shared(views: Sequence[View], field: Field) -> Tensor:
    """Return the one value of a field that all views have."""
    values = [np.asarray(view[field.name], field.dtype) for view in views]
    if any(not np.array_equal(value, values[0]) for value in values):
        found = sorted({str(value.tolist()) for value in values})
        raise ValueError(f"expected one {field.name} for all views of a sample, got {', '.join(found)}")
    return torch.from_numpy(values[0].copy())


def _add_rows(
    sample: dict[str, Tensor], looks: Sequence[_Look], field: Field, fields: frozenset[str], table: FieldTable
) -> None:
    """Add a packed field, the other requested fields of its rows, and the view of each row."""
    if not fields & table.rows_of(field.name):
        return
    along = [
        table[name] for name in sorted(fields & table.rows_of(field.name)) if name not in (field.name, field.view_index)
    ]
    parts: dict[str, list[np.ndarray]] = {one.name: [] for one in (field, *along)}
    for look in looks:
        rows = np.asarray(look.view[field.name])
        moved, kept = look.placement.boxes(rows) if field.moves == "boxes" else (rows, np.arange(len(rows)))
        parts[field.name].append(moved)
        for one in along:
            values = np.asarray(look.view[one.name])
            if len(values) != len(rows):
                raise ValueError(
                    f"expected {one.name} of {len(rows)} rows, as {field.name} has, got {len(values)} in scene"
                    f" {look.view.scene}, frame {look.view.frame}"
                )
            parts[one.name].append(values[kept])
    counts = [len(rows) for rows in parts[field.name]]
    for one in (field, *along):
        sample[one.name] = torch.from_numpy(np.concatenate(parts[one.name]).astype(one.dtype))
    sample[field.view_index] = torch.arange(len(looks)).repeat_interleave(torch.tensor(counts))


def _add_crops(
    sample: dict[str, Tensor],
    view: View,
    size: tuple[int, int],
    options: AugmentOptions | None,
    draws: Iterator[float],
) -> None:
    looks = [_look(view, size, options, draws) for _ in range(2)]
    image_from_whole = np.linalg.inv(centered(view["image"].shape[:2], size).output_from_image)
    crop_from_image = [look.placement.output_from_image @ image_from_whole for look in looks]
    sample["image_crops"] = _stack_images([look.colored for look in looks])
    sample["crop_from_image"] = torch.from_numpy(np.stack(crop_from_image).astype(np.float32))
