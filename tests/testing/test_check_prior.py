"""What `check_prior` catches in a stranger's prior."""

import pytest

from prior3d.contracts.prior import Prior
from prior3d.testing import check_prior


class Pull(Prior):
    """Pulls features to zero."""

    needs = ("image",)

    def forward(self, batch, features):
        loss = features["image"].dense.square().mean()
        return loss, {"size": loss.detach()}


class OnlyALoss(Pull):
    """Logs nothing."""

    def forward(self, batch, features):
        return super().forward(batch, features)[0]


class Detached(Pull):
    """Trains nothing."""

    def forward(self, batch, features):
        return super().forward(batch, features)[0].detach(), {}


class NoParent(Pull):
    """Leaves the constructor of its base class out."""

    def __init__(self, backbone):
        self.width = 1.0


class Outdated(Pull):
    """Defines a method of former days."""

    def draw(self, batch, features):
        return {}


class Narrow(Pull):
    """Takes no features."""

    def forward(self, batch):
        return None


def test_a_good_prior_passes():
    assert isinstance(check_prior(Pull), Pull)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (OnlyALoss, "forward returns Tensor, should be a tuple of the loss and a dict"),
        (Detached, "the loss is not connected to the features"),
        (NoParent, r"the constructor of NoParent does not call super\(\).__init__\(backbone\)"),
        (Outdated, "Outdated has draw, which prior3d does not call: if plot is meant"),
        (Narrow, r"Narrow.forward is called with \(batch, features\)"),
    ],
)
def test_what_breaks_a_point_is_caught(cls, words):
    with pytest.raises(AssertionError, match=words):
        check_prior(cls)
