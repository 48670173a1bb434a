"""Features of several models as colours on the same images: shared principal axes, matched clusters; no measurements.

Not here: pictures of depth, matches or one model's features (`prior3d.figures`).
"""

from prior3d.probes.pictures.drawing import draw_clusters, draw_pca
from prior3d.probes.pictures.matched_clusters import MatchedClusters, assign, fit_matched_clusters
from prior3d.probes.pictures.shared_axes import SharedAxes, fit_shared_axes
from prior3d.probes.pictures.writing import write_pictures

__all__ = [
    "MatchedClusters",
    "SharedAxes",
    "assign",
    "draw_clusters",
    "draw_pca",
    "fit_matched_clusters",
    "fit_shared_axes",
    "write_pictures",
]
