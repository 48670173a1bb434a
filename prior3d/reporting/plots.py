"""Figures of models on the data of probes, plotted while that data is open."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from prior3d.figures import named_figures
from prior3d.probes.models import FrozenModel
from prior3d.probes.pictures import plot_clusters, plot_pca
from prior3d.probes.probe_data import ProbeData
from prior3d.probes.tasks import ProbeTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_IMAGES = 4
"""Number of images to plot features of."""


class Plots:
    """Collects figures: the features of all models once, and each probe's plots; called as `measuring.PlotTask`.

    Attributes:
        figures: Dict from name, for example `depth/predictions`, to figure, in the order of a report.
    """

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}

    @torch.no_grad()
    def __call__(
        self, task: ProbeTask, models: Mapping[str, FrozenModel], data: ProbeData, shown: Mapping[str, Any]
    ) -> None:
        """Plot models on the data of a task."""
        if not self.figures:
            images = _some_images(data)
            self.figures["features/pca"] = plot_pca(models, images)
            self.figures["features/clusters"] = plot_clusters(models, images)
        self.figures |= named_figures(task.probe.plot(models, data, shown), task.label)


def _some_images(data: ProbeData) -> torch.Tensor:
    """Return held-out images [N, 3, H, W] in 0..1, evenly spaced."""
    images = data.field("held_out", "image")
    count = min(_IMAGES, len(images))
    rows = ((torch.arange(count) + 0.5) * len(images) / count).long()
    return images.take(rows).float() / 255
