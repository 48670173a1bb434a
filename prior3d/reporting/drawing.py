"""Figures of models on the data of probes, drawn while that data is open."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from prior3d.probes.models import FrozenModel
from prior3d.probes.pictures import draw_clusters, draw_pca
from prior3d.probes.probe_data import ProbeData
from prior3d.probes.tasks import ProbeTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_IMAGES = 4
"""Images that features are drawn of."""


class Drawings:
    """Collects figures: the features of all models once, and what each probe draws. Called as `measuring.Draw`.

    Attributes:
        figures: name, such as `depth/predictions`, to figure, in the order of a report.
    """

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}

    @torch.no_grad()
    def __call__(self, tasks: Sequence[ProbeTask], models: Mapping[str, FrozenModel], data: ProbeData) -> None:
        """Draw models on the data that some tasks share."""
        if not self.figures:
            images = _some_images(data)
            self.figures["features/pca"] = draw_pca(models, images)
            self.figures["features/clusters"] = draw_clusters(models, images)
        for task in tasks:
            with task.locating():
                drawn = task.probe.draw(models, data)
            self.figures |= {f"{task.label}/{name}": figure for name, figure in drawn.items()}


def _some_images(data: ProbeData) -> torch.Tensor:
    """Return held-out images [N, 3, H, W] in 0..1, evenly spaced."""
    images = data.field("held_out", "image")
    count = min(_IMAGES, len(images))
    rows = ((torch.arange(count) + 0.5) * len(images) / count).long()
    return images.take(rows).float() / 255
