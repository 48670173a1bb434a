"""Statistics of BatchNorm layers: re-estimated, kept where they belong to the weights, given back to folded layers."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from prior3d.backbone.batch_norm import is_folded, reestimate_batch_norm, refuse_folded, unfold_batch_norm
from prior3d.errors import UserError
from prior3d.randomness import generator


def images(batches=4, seed=0):
    return [torch.rand(8, 3, 12, 12, generator=generator("images", seed, index)) * 2 + 1 for index in range(batches)]


def make(folded):
    """Return a small net as trained, or with the statistics of its layers folded into weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5))
    for layer in (net[1], net[4]):
        nn.init.uniform_(layer.weight, 0.5, 2)
        nn.init.normal_(layer.bias)
    reestimate_batch_norm(net, net, images(seed=1)) if not folded else None
    return net.eval()


def test_folded_layers_are_told_from_fresh_and_trained_ones():
    fresh = nn.BatchNorm2d(3)
    assert not is_folded(fresh)
    nn.init.zeros_(fresh.weight)  # how the last layer of a residual block may begin
    assert not is_folded(fresh)
    assert is_folded(make(True)[1]) and not is_folded(nn.LayerNorm(3))
    net = make(True)
    net.train()(images()[0])
    assert not is_folded(net[1])


def test_folded_layers_keep_their_statistics():
    net = make(True)
    before = net(images()[0])
    assert reestimate_batch_norm(net, net, images()) == 0
    assert torch.equal(net(images()[0]), before)


def test_layers_that_do_not_run_keep_theirs():
    net = make(False)
    with torch.no_grad():
        net[1].weight.mul_(1.0), net[1].running_mean.add_(1), net[4].running_mean.add_(1)
    last = deepcopy(net[4].state_dict())
    assert reestimate_batch_norm(net, net[:3], images()) == 1
    assert all(torch.equal(value, last[name]) for name, value in net[4].state_dict().items())
    assert net[1].num_batches_tracked == 4


def test_unfolding_changes_nothing_but_what_training_and_re_estimation_do():
    net = make(True)
    before = net(images()[0]).detach()
    broken = deepcopy(net).train()(images()[0])
    assert (broken - before).abs().mean() > 0.3
    assert unfold_batch_norm(net, net, images()) == 2
    assert torch.allclose(net(images()[0]), before, atol=1e-5)
    x = net[0](torch.cat(images()))
    assert torch.allclose(net[1].running_mean, x.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(net[1].running_var, x.var((0, 2, 3), unbiased=False), atol=1e-5)
    assert torch.allclose(deepcopy(net).train()(torch.cat(images()))[:8], before, atol=1e-3)
    assert reestimate_batch_norm(net, net, images()) == 2
    assert torch.allclose(net(images()[0]), before, atol=0.05)
    assert unfold_batch_norm(net, net, images()) == 0


def test_folded_layers_are_refused_where_they_train():
    net = make(True)
    with pytest.raises(UserError, match=r"^probes.mine: the statistics of the BatchNorm layer 1 of my net are folded"):
        refuse_folded(net, "my net", "probes.mine")
    net[1].requires_grad_(False)
    with pytest.raises(
        UserError, match=r"^the statistics of the BatchNorm layer 4 of my net.*, or leave the encoder frozen$"
    ):
        refuse_folded(net, "my net")
    net.requires_grad_(False)
    refuse_folded(net, "my net")
    # here nothing can be frozen
    with pytest.raises(UserError, match=r"BatchNorm layer 1 of.* unfold them with [^,]*$"):
        refuse_folded(net, "my net", all_train=True)
    trained = make(True)
    trained.train()(images()[0])
    refuse_folded(trained, "my net")
    unfold_batch_norm(net, net, images())
    refuse_folded(net, "my net", all_train=True)


@pytest.mark.parametrize("name", ["mobilenetv2_100_from_tflite", "mobilenetv1_0.5_160_from_tflite"])
def test_real_weights_with_folded_statistics(shared_data, name):
    weights = torch.load(shared_data / "weights" / f"{name}.pth", weights_only=True)
    layer = nn.BatchNorm2d(len(weights["bn1.weight"]))
    layer.load_state_dict({key.removeprefix("bn1."): value for key, value in weights.items() if key.startswith("bn1.")})
    assert is_folded(layer)
