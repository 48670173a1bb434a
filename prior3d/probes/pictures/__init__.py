"""Features of several models as colors on the same images: shared principal axes, matched clusters; no measurements.

Figures of depth, matches or one model's features are in `prior3d.figures`.
"""

from prior3d.probes.pictures.figures import (
    check_sizes,
    cluster_figure,
    pca_figure,
    plot_clusters,
    plot_pca,
    read_maps,
    read_places,
    sample_features,
    sample_places,
)
from prior3d.probes.pictures.matched_clusters import MatchedClusters, assign, fit_matched_clusters
from prior3d.probes.pictures.shared_axes import SharedAxes, fit_shared_axes

__all__ = [
    "MatchedClusters",
    "SharedAxes",
    "assign",
    "check_sizes",
    "cluster_figure",
    "fit_matched_clusters",
    "fit_shared_axes",
    "pca_figure",
    "plot_clusters",
    "plot_pca",
    "read_maps",
    "read_places",
    "sample_features",
    "sample_places",
]
