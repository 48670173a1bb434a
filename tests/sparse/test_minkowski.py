"""Weights of MinkowskiEngine load as they are, and others are refused in one line."""

import pytest
import torch

from prior3d.errors import UserError
from prior3d.sparse import load_minkowski_state_dict, mink_unet_small


def small(seed):
    torch.manual_seed(seed)
    return mink_unet_small(3, 4, width=0.25)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": s}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_checkpoints_load_however_they_are_wrapped(wrap, prefix):
    trained, fresh = small(0), small(1)
    load_minkowski_state_dict(fresh, wrap({prefix + name: value for name, value in trained.state_dict().items()}))
    for name, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded():
    fresh = small(1)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    state = small(0).state_dict()
    state["final.bias"] = torch.zeros(1, 20)
    state["odd"] = state.pop("bn0.weight") if "bn0.weight" in state else state.pop("bn0.bn.weight")
    with pytest.raises(UserError) as caught:
        load_minkowski_state_dict(fresh, state)
    message = str(caught.value)
    assert "\n" not in message and "lacks bn0" in message and "has besides odd" in message
    assert "final.bias [1, 20] instead of [1, 4]" in message
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_a_file_without_tensors_is_refused():
    with pytest.raises(UserError, match="holds no tensors, only epoch"):
        load_minkowski_state_dict(small(0), {"epoch": 3})
