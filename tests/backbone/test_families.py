"""Families of timm, the smallest member of each, at two odd sizes: maps, gradients, alignment, blocks, exports."""

import math
import re

import timm
import torch

from prior3d.backbone import Backbone, save_weights, set_trainable
from prior3d.backbone.weights import read_weights
from prior3d.errors import UserError
from prior3d.randomness import generator, reseed

SIZES = [(90, 122), (133, 165)]
"""No multiples of anything: padded for a pyramid, refused with advice by a model of patches or of one size."""


def images(count, size, *what):
    return torch.rand(count, 3, *size, generator=generator("images", *what))


def find_advice(line):
    """Return the size and the `img_size` that a refusal advises, each None where it advises none."""
    size, option = re.search(r"use (?:a multiple of \d+, such as )?(\d+) x (\d+)", line), None
    if found := re.search(r"img_size: \[(\d+), (\d+)\]", line):
        option = int(found[1]), int(found[2])
    return (int(size[1]), int(size[2])) if size else None, option


def make(name, size):
    """Return a backbone that takes a size, or the one that the refusal advises, and how that came."""
    reseed("families", name)
    try:
        return Backbone(name, size), "fits"
    except UserError as refusal:
        assert refusal.key == "size" and f"{size[0]} x {size[1]} pixels" in refusal.message and "(" in refusal.message
        near, option = find_advice(refusal.message)
    if option == size or (near is None and option):
        return Backbone(name, option, timm_options={"img_size": list(option)}), "img_size"
    return (Backbone(name, near), "near") if near else (None, "refused")


def check_maps(backbone):
    size, spec = backbone.size, backbone.spec
    with torch.no_grad():
        maps = backbone.eval()(images(2, size), {"encoder", "dense", "pooled"})
    assert list(maps.encoder) == list(spec.encoder_channels) and sorted(maps.encoder) == list(maps.encoder)
    for stride, one in maps.encoder.items():
        expected = [2, spec.encoder_channels[stride], *(math.ceil(side / stride) for side in size)]
        assert list(one.shape) == expected and one.isfinite().all()
    assert maps.pooled.shape == (2, spec.pooled_channels)
    assert maps.dense.shape == (2, spec.dense_channels, *spec.dense_size)


def check_alignment(backbone):
    """Change the image within one cell of the coarsest map: every map changes there most, near two corners of it."""
    size, coarsest = backbone.size, max(backbone.spec.encoder_channels)
    plain = images(1, size)
    rows, columns = (math.ceil(side / coarsest) for side in size)
    for row, column in {(min(1, rows - 1), min(1, columns - 1)), (max(0, rows - 2), max(0, columns - 2))}:
        changed = plain.clone()
        place = slice(row * coarsest, (row + 1) * coarsest), slice(column * coarsest, (column + 1) * coarsest)
        changed[:, :, *place] = 1 - changed[:, :, *place]
        with torch.no_grad():
            before, after = (backbone.eval()(shown, {"encoder"}).encoder for shown in (plain, changed))
        for stride, one in before.items():
            energy = (after[stride] - one).square().sum(1)[0]
            energy = energy * (energy > energy.max() / 4)
            for axis, cell in ((0, row), (1, column)):
                weights = energy.sum(1 - axis)
                center = (weights * (torch.arange(len(weights)) + 0.5)).sum() / weights.sum() * stride
                end = min((cell + 1) * coarsest, size[axis])
                assert abs(center - (cell * coarsest + end) / 2) <= max(stride, 0.6 * coarsest)


def check_gradients(backbone, reads):
    set_trainable(backbone, "full", 1, reads)
    maps = backbone.eval()(images(1, backbone.size), reads)
    read = [*(maps.encoder.values() if "encoder" in reads else ()), maps.dense, maps.pooled]
    sum(one.float().square().sum() for one in read if one is not None).backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    backbone.zero_grad(set_to_none=True)


def check_last(backbone):
    set_trainable(backbone, "last_n", 1, {"dense"})
    trains = [one.requires_grad for one in backbone.encoder.parameters()]
    assert any(trains) and not all(trains)
    assert any(one.requires_grad and one.dim() > 1 and one.numel() > 64 for one in backbone.encoder.parameters())


def check_export(backbone, folder):
    encoder = backbone.encoder
    save_weights(folder / "out.safetensors", encoder.model.state_dict(), {"model": encoder.name})
    other = timm.create_model(encoder.name, num_classes=0, **encoder.timm_options)
    other.load_state_dict(read_weights(folder / "out.safetensors"), strict=True)


def check_family(name, folder):
    """Check a family at both sizes; returns how each size was taken."""
    verdicts = []
    for size in SIZES:
        backbone, verdict = make(name, size)
        verdicts.append(verdict)
        if backbone is not None:
            check_maps(backbone)
            check_alignment(backbone)
    if backbone is not None:
        check_gradients(backbone, {"encoder"})
        check_gradients(backbone, {"dense", "pooled"})
        check_last(backbone)
        check_export(backbone, folder)
    return verdicts
