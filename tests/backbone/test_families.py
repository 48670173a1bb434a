"""Families of timm, the smallest member of each, at two odd sizes: maps, gradients, alignment, blocks, exports."""

import math
import re
from functools import partial

import pytest
import timm
import torch

from prior3d.backbone import Backbone, save_weights, set_trainable
from prior3d.backbone.batch_norm import reestimate_batch_norm
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
    """Move images by one cell of the coarsest map: every map moves with them, by that much and no cell more or less."""
    (height, width), coarsest = backbone.size, max(backbone.spec.encoder_channels)
    blobs = images(8, (height // 4 + coarsest, width // 4 + coarsest)).repeat_interleave(4, 2).repeat_interleave(4, 3)
    still, moved = blobs[:, :, :height, :width], blobs[:, :, coarsest:, coarsest:][:, :, :height, :width]
    reestimate_batch_norm(backbone, partial(backbone, reads={"encoder"}), [still])  # else depth drowns what is where
    with torch.no_grad():
        maps, maps_moved = (backbone.eval()(shown, {"encoder"}).encoder for shown in (still, moved))
    decided = 0
    for stride, one in maps.items():
        cells = coarsest // stride
        by_which = [by for by in (0, cells - 1, cells, cells + 1) if by < min(one.shape[-2:])]
        alike = {by: likeness(one, maps_moved[stride], by) for by in by_which}
        if max(alike.values()) - min(alike.values()) > 0.1:
            decided += 1
            assert max(alike, key=alike.get) == cells, (stride, alike)
    assert decided


def likeness(still, moved, by):
    """Return the correlation of two maps, the second moved by some cells, of how each value differs between images."""
    rows, columns = still.shape[-2] - by, still.shape[-1] - by
    parts = still[..., by:, by:], moved[..., :rows, :columns]
    # Borders and positions leave the same mark on all images, and may scale what differs.
    first, second = ((part - part.mean(0)) / (part.std(0) + 1e-12) for part in parts)
    return ((first * second).sum() / (first.norm() * second.norm())).item()


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


REFUSED = ("inception_v3", "legacy_xception", "pit_ti_224", "crossvit_tiny_240")
"""Families whose maps are not where strides say, at any size: valid padding, patches that overlap, two grids."""

QUICK = [
    "test_resnet",
    "test_vit",
    "test_convnext",
    "test_efficientnet",
    "test_byobnet",
    "test_nfnet",
    "starnet_s050",
    "pit_ti_224",
]
"""A kind of family each, in every run of the tests."""

SLOW = [
    "lcnet_035",
    "test_vit2",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "test_vit_relpos",
    "dla46_c",
    "tf_mobilenetv3_small_minimal_100",
    "mobilevit_xxs",
    "repghostnet_050",
    "mobilevitv2_050",
    "edgenext_xx_small",
    "ghostnet_050",
    "ese_vovnet19b_slim_dw",
    "efficientvit_b0",
    "efficientvim_m1",
    "efficientvit_m0",
    "cspnext_tiny",
    "regnetx_002",
    "mixnet_s",
    "fasternet_t0",
    "iformer_t",
    "cs3darknet_focus_s",
    "lcnetv2_small",
    "xcit_nano_12_p16_224",
    "swiftformer_xs",
    "efficientformerv2_s0",
    "inception_next_atto",
    "fastvit_t8",
    "convnextv2_atto",
    "efficientnet_lite0",
    "tf_efficientnet_lite0",
    "pvt_v2_b0",
    "rexnetr_100",
    "hgnetv2_b0",
    "hardcorenas_a",
    "mobileone_s0",
    "repvit_m0_9",
    "cpubone_nano",
    "coat_lite_tiny",
    "convit_tiny",
    "deit_tiny_distilled_patch16_224",
    "eva02_tiny_patch14_224",
    "vit_tiny_patch16_224",
    "gmlp_ti16_224",
    "shvit_s1",
    "vit_tiny_r_s16_p8_224",
    "mambaout_femto",
    "gernet_s",
    "crossvit_tiny_240",
    "densenet121",
    "levit_128s",
    "maxvit_pico_rw_256",
    "nf_regnet_b0",
    "resnext26ts",
    "regnetz_b16",
    "resnest14d",
    "lambda_resnet26t",
    "visformer_tiny",
    "coatnet_pico_rw_224",
    "botnet26t_256",
    "halonet26t",
    "csatv2",
    "hrnet_w18_small",
    "resnet18",
    "tiny_vit_5m_224",
    "legacy_xception",
    "poolformer_s12",
    "skresnet18",
    "resnetv2_18",
    "dpn68",
    "cait_xxs24_224",
    "gcvit_xxtiny",
    "twins_svt_small",
    "hiera_tiny_224",
    "swin_tiny_patch4_window7_224",
    "focalnet_tiny_srf",
    "mvitv2_tiny",
    "tresnet_m",
    "inception_v3",
    "selecsls42",
    "vgg11",
]
"""The others. Left out: RepVGG, whose random weights lose on the way what is where."""


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_families(name, tmp_path):
    assert ("refused" in check_family(name, tmp_path)) == (name in REFUSED)
