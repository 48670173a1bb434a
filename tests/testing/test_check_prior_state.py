"""`check_prior` catches a prior whose state is not all in its `state_dict`."""

import pytest
import torch

from prior3d import Prior
from prior3d.testing import check_prior


class Pull(Prior):
    """Pulls features to a random direction, a buffer."""

    needs = ("image",)
    persistent = True

    def __init__(self, backbone):
        super().__init__(backbone)
        self.register_buffer("direction", torch.randn(backbone.dense_channels), persistent=self.persistent)

    def forward(self, batch, features):
        return torch.einsum("bvchw,c->bvhw", features["image"].dense, self.direction).square().mean(), {}


class Forgetful(Pull):
    """Pulls features to a random direction that a checkpoint does not have."""

    persistent = False


def test_a_prior_whose_state_has_everything_passes():
    assert isinstance(check_prior(Pull), Pull)


def test_a_prior_that_keeps_state_elsewhere_is_caught():
    with pytest.raises(AssertionError, match=r"another prior with this state gives the loss .* lacks something"):
        check_prior(Forgetful)
