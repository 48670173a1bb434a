"""Features of one backbone or of several side by side."""

import torch

from prior3d.backbone import Backbone
from prior3d.probes.models import FrozenModel, concatenate


def test_unit_length_gives_each_part_the_same_say():
    parts = (torch.randn(2, 3, 4, 5), 1000 * torch.randn(2, 7, 4, 5))
    joined = concatenate(parts, unit_length=True)
    assert joined.shape == (2, 10, 4, 5)
    assert torch.allclose(joined.norm(dim=1), torch.ones(2, 4, 5))
    assert torch.allclose(joined[:, :3].norm(dim=1), torch.full((2, 4, 5), 0.5**0.5))
    assert torch.equal(concatenate(parts), torch.cat(parts, 1))


def test_encoder_features_are_all_maps_at_one_stride_and_need_no_decoder():
    backbone = Backbone("resnet10t", (64, 96), decoder_stride=4, channels=16).eval()
    model = FrozenModel([backbone, backbone])
    images = torch.rand(2, 3, 64, 96)
    encoder, again = model.read(images, "encoder")
    assert encoder.shape == (2, sum(backbone.spec.encoder_channels.values()), 8, 12)
    assert torch.equal(encoder, again)
    for parameter in backbone.decoder.parameters():
        parameter.data.zero_()
    assert torch.equal(model.read(images, "encoder")[0], encoder)
    assert model.read(images, "dense")[0].shape == (2, 16, 16, 24)
    assert model.read(images, "pooled")[0].shape == (2, backbone.spec.pooled_channels)


def test_maps_of_several_backbones_are_brought_to_the_finest():
    fine = Backbone("resnet10t", (64, 96), decoder_stride=4, channels=16).eval()
    coarse = Backbone("resnet10t", (64, 96)).eval()
    sizes = {part.shape[-2:] for part in FrozenModel([coarse, fine]).read(torch.rand(1, 3, 64, 96))}
    assert sizes == {torch.Size([16, 24])}


def test_what_is_trained_is_a_copy():
    backbone = Backbone("resnet10t", (64, 96)).requires_grad_(False)
    (copy,) = FrozenModel([backbone]).trainable()
    assert all(parameter.requires_grad for parameter in copy.parameters())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    next(copy.parameters()).data.add_(1)
    assert not torch.equal(next(copy.parameters()), next(backbone.parameters()))
