"""Building blocks of probes: frozen features, heads and classifiers on them, labels, figures.

    from prior3d import Probe, by_group
    from prior3d.probes import Fitting, FrozenMaps, FrozenModel, ProbeData, Schedule

The probes themselves are in `prior3d_plugins.probes`; `prior3d.probes.measuring` runs them.
"""

from prior3d.probes.features import (
    FrozenMaps,
    FrozenVectors,
    MapKind,
    Standardization,
    evenly_spaced,
    mixed_batches,
)
from prior3d.probes.labels import (
    class_frequency,
    count_by_class,
    count_classes,
    count_hits,
    counted,
    cross_entropy,
    labels_of,
    mean_iou,
    names_of,
    score_constant,
)
from prior3d.probes.linear import Fitting, LinearHead, Schedule, at_pixels, upsample
from prior3d.probes.logistic import LogisticRegression, choose_penalty, fit_logistic
from prior3d.probes.models import FrozenModel, concatenate, resize
from prior3d.probes.neighbors import nearest, vote
from prior3d.probes.probe_data import Array, ProbeData
from prior3d.probes.side_by_side import (
    Panel,
    images_shown,
    plot_classes,
    plot_depths,
    plot_normals,
    plot_side_by_side,
    rows_shown,
)

__all__ = [
    "Array",
    "Fitting",
    "FrozenMaps",
    "FrozenModel",
    "FrozenVectors",
    "LinearHead",
    "LogisticRegression",
    "MapKind",
    "Panel",
    "ProbeData",
    "Schedule",
    "Standardization",
    "at_pixels",
    "choose_penalty",
    "class_frequency",
    "concatenate",
    "count_by_class",
    "count_classes",
    "count_hits",
    "counted",
    "cross_entropy",
    "evenly_spaced",
    "fit_logistic",
    "images_shown",
    "labels_of",
    "mean_iou",
    "mixed_batches",
    "names_of",
    "nearest",
    "plot_classes",
    "plot_depths",
    "plot_normals",
    "plot_side_by_side",
    "resize",
    "rows_shown",
    "score_constant",
    "upsample",
    "vote",
]
