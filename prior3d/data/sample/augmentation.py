"""From decoded views to a sample's tensors: one affine map per view moves everything, colours change on their own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prior3d.contracts.dataset import View
from prior3d.data.sample.photometric import NEEDS_DRAWS, ColorChange, apply_change, draw_change
from prior3d.data.sample.placement import Placement, centered, crop
from prior3d.errors import UserError
from prior3d.recipe.sections import AugmentOptions

POSED_FIELDS = frozenset({"intrinsics", "world_from_camera", "surface", "surface_color"})
"""Fields that tie pixels to the world: a mirrored image would be of another world."""

_DRAWS = 4 + NEEDS_DRAWS


def _refuse_mirrors(options: AugmentOptions, fields: frozenset[str]) -> None:
    posed = sorted(fields & POSED_FIELDS)
    if options.flip > 0 and posed:
        raise UserError(
            f"flips mirror the world, so they do not go with {', '.join(posed)}: set it to 0", "data.augment.flip"
        )


def assemble(
    views: Sequence[View],
    size: tuple[int, int],
    options: AugmentOptions | None,
    fields: frozenset[str],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Make a sample's tensors, as `prior3d.contracts.fields` describes them without the batch axis.

    The same numbers are drawn whatever `fields` names, so a prior that wants another field changes no other's images.

    Args:
        views: the V decoded views of one sample, each with its image or at least the size of it.
        size: height H and width W of the run.
        options: None for no augmentation.
        fields: what to make. Those of the surface and of plugins are made elsewhere and skipped here.
        generator: the only source of randomness.

    Returns:
        The fields asked for, with a leading axis V where the table has one; `scene` and `frame` always.

    Raises:
        UserError: if the options mirror images of a posed dataset.
        ValueError: if a view lacks what a field is made of.
    """
    if options is not None:
        _refuse_mirrors(options, fields)
    draws = iter(torch.rand((len(views) + 2) * _DRAWS + 1, generator=generator, dtype=torch.float64).tolist())
    looks = [_look(view, size, options, draws) for view in views]
    sample = {
        "scene": torch.tensor(views[0].scene),
        "frame": torch.tensor([view.frame for view in views]),
    }
    if fields & {"image", "image_clean"}:
        _add_images(sample, looks, fields)
    for name in ("depth", "semantic", "pseudo_depth"):
        if name in fields:
            maps = [look.placement.nearest(_part(look.view, name)) for look in looks]
            sample[name] = torch.from_numpy(np.stack(maps).astype(np.int64 if name == "semantic" else np.float32))
    if "normals" in fields:
        maps = [look.placement.nearest_vectors(_part(look.view, "normals")) for look in looks]
        sample["normals"] = torch.from_numpy(np.stack(maps).astype(np.float32)).movedim(-1, 1)
    if "label" in fields:
        sample["label"] = torch.tensor(_part(views[0], "label"))
    if fields & {"pseudo_depth", "pseudo_kind"}:
        sample["pseudo_kind"] = torch.tensor(_one_kind(views))
    if "intrinsics" in fields:
        moved = [look.placement.output_from_image @ _part(look.view, "intrinsics") for look in looks]
        sample["intrinsics"] = torch.from_numpy(np.stack(moved).astype(np.float32))
    if "world_from_camera" in fields:
        poses = [_part(view, "world_from_camera") for view in views]
        sample["world_from_camera"] = torch.from_numpy(np.stack(poses).astype(np.float32))
    if fields & {"image_crops", "crop_from_image"}:
        _add_crops(sample, views[int(next(draws) * len(views))], size, options, draws)
    return sample


@dataclass(frozen=True)
class _Look:
    """One view with what was drawn for it."""

    view: View
    placement: Placement
    change: ColorChange | None

    @property
    def clean(self) -> np.ndarray:
        return self.placement.image(_part(self.view, "image"))


def _look(view: View, size: tuple[int, int], options: AugmentOptions | None, draws: Iterator[float]) -> _Look:
    """Draw how one view is cropped and coloured."""
    image_size = view.size if view.image is None else view.image.shape[:2]
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


def _colored(clean: np.ndarray, change: ColorChange | None) -> np.ndarray:
    return clean if change is None else apply_change(clean, change)


def _stack_images(images: Sequence[np.ndarray]) -> Tensor:
    """Return [V, 3, H, W] uint8 from images [H, W, 3]."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))


def _add_images(sample: dict[str, Tensor], looks: Sequence[_Look], fields: frozenset[str]) -> None:
    clean = [look.clean for look in looks]
    if "image" in fields:
        colored = [_colored(image, look.change) for image, look in zip(clean, looks, strict=True)]
        sample["image"] = _stack_images(colored)
    if "image_clean" in fields:
        sample["image_clean"] = _stack_images(clean)


def _add_crops(
    sample: dict[str, Tensor],
    view: View,
    size: tuple[int, int],
    options: AugmentOptions | None,
    draws: Iterator[float],
) -> None:
    looks = [_look(view, size, options, draws) for _ in range(2)]
    image_from_whole = np.linalg.inv(centered(_part(view, "image").shape[:2], size).output_from_image)
    crop_from_image = [look.placement.output_from_image @ image_from_whole for look in looks]
    sample["image_crops"] = _stack_images([_colored(look.clean, look.change) for look in looks])
    sample["crop_from_image"] = torch.from_numpy(np.stack(crop_from_image).astype(np.float32))


def _part(view: View, name: str) -> np.ndarray:
    """Return one part of a view, which must be there."""
    part = getattr(view, name)
    if part is None:
        raise ValueError(f"expected {name} in every view, got none in scene {view.scene}, frame {view.frame}")
    return part


def _one_kind(views: Sequence[View]) -> int:
    kinds = {view.pseudo_kind for view in views}
    if len(kinds) != 1 or None in kinds:
        raise ValueError(f"expected one pseudo_kind for all views of a sample, got {kinds}")
    return kinds.pop()
