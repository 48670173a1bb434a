"""Advice about image sizes that a timm model accepts, found by trying, if it rejects the requested size."""

import math
from collections.abc import Mapping

import timm
import torch
from torch import nn

from prior3d.backbone.layout import Unfit, find_layout

_TRIES = 8
"""Maximum number of sizes to try."""

Size = tuple[int, int]


def advise(name: str, options: Mapping[str, object], size: Size) -> str:
    """Return advice about images that a model cannot take: a nearby size, or timm's `img_size` for this size.

    Every suggestion was tried on the meta device, which computes only shapes.

    Args:
        name: timm model name.
        options: additional arguments of `timm.create_model`.
        size: height and width that the model cannot take, in pixels.
    """
    advice = []
    near = _nearest(name, options, size)
    if near is not None:
        advice.append(f"use {near}")
    made_for = _img_size(name, options, size, near_too=near is None)
    if made_for is not None:
        option = f"timm_options: {{img_size: [{made_for[0]}, {made_for[1]}]}}"
        advice.append(f"set {option}" if made_for == size else f"use {_text(made_for)} with {option}")
    return ", or ".join(advice) if advice else "no nearby size that it takes was found: use another model"


def _nearest(name: str, options: Mapping[str, object], size: Size) -> str | None:
    """Return the nearest size a model takes, and the number whose multiples it takes, if there is one."""
    model = _on_meta(name, options)
    if model is None:
        return None
    step = _step(model)
    for near in _candidates(model, size):
        if _takes(model, near):
            others = (near[0] + step, near[1] + step), (2 * step, 3 * step)
            regular = any(side % step for side in size) and all(_takes(model, other) for other in others)
            return f"a multiple of {step}, such as {_text(near)}" if regular else _text(near)
    return None


def _img_size(name: str, options: Mapping[str, object], size: Size, near_too: bool) -> Size | None:
    """Return the value of timm's `img_size` with which a model takes the size, or else a nearby size in whole cells."""
    model = None if "img_size" in options else _on_meta(name, options)
    if model is None:
        return None
    for wanted in [size, _whole(size, _step(model))][: 1 + near_too]:
        made = _on_meta(name, {**options, "img_size": list(wanted)})
        if made is not None and _takes(made, wanted):
            return wanted
    return None


def _candidates(model: nn.Module, size: Size) -> list[Size]:
    step = _step(model)
    own = tuple(model.pretrained_cfg.get("input_size", ()))[1:]
    found = [_whole(size, step * factor) for factor in (1, 2, 7, 8)]
    found += [tuple(max(1, side // (step * factor)) * step * factor for side in size) for factor in (1, 2, 7, 8)]
    found += [own] if own else []
    nearest = sorted(dict.fromkeys(found), key=lambda one: sum(abs(a - b) for a, b in zip(one, size, strict=True)))
    return [one for one in nearest if one != tuple(size)][:_TRIES]


def _text(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _step(model: nn.Module) -> int:
    return max(entry["reduction"] for entry in model.feature_info)


def _whole(size: Size, step: int) -> Size:
    return tuple(max(1, math.floor(side / step + 0.5)) * step for side in size)


def _takes(model: nn.Module, size: Size) -> bool:
    try:
        find_layout(model, size)
    except Unfit:
        return False
    return True


def _on_meta(name: str, options: Mapping[str, object]) -> nn.Module | None:
    try:
        with torch.device("meta"):
            try:
                return timm.create_model(name, num_classes=0, dynamic_img_size=True, **options)
            except TypeError:
                return timm.create_model(name, num_classes=0, **options)
    except (TypeError, RuntimeError, ValueError, AssertionError, LookupError):
        return None  # a family without `img_size`, or without this size
