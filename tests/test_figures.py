"""What plugins return as figures."""

import pytest
import torch

from prior3d.errors import UserError
from prior3d.figures import named_figures, panels


def test_figures_are_called_after_their_plugin():
    figure, _ = panels(1, 1)
    assert named_figures({"error": figure}, "depth") == {"depth/error": figure}
    with pytest.raises(UserError, match=r"^plot returned Figure, expected a dict of matplotlib figures by name"):
        named_figures(figure, "depth")
    with pytest.raises(UserError, match=r"^plot returned Tensor as 'error', expected a matplotlib figure"):
        named_figures({"error": torch.zeros(3, 4, 4)}, "depth")
