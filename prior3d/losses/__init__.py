"""Standalone losses, from tensors to a scalar, and the sampling of matches for them."""

from prior3d.losses.contrastive import masked_point_info_nce, point_info_nce
from prior3d.losses.exclusion import Exclusion
from prior3d.losses.log_depth import gradient_loss, scale_invariant_loss
from prior3d.losses.matches import (
    CellMatches,
    compact,
    gather_cells,
    gather_pairs,
    kept_fraction,
    sample_cell_matches,
)
from prior3d.losses.one_per_cell import sample_one_per_cell
from prior3d.losses.ranks import gather_negatives
from prior3d.losses.ssi_depth import fit_scale_and_shift, in_file_space, scale_and_shift_invariant_loss

__all__ = [
    "CellMatches",
    "Exclusion",
    "compact",
    "fit_scale_and_shift",
    "gather_cells",
    "gather_negatives",
    "gather_pairs",
    "gradient_loss",
    "in_file_space",
    "kept_fraction",
    "masked_point_info_nce",
    "point_info_nce",
    "sample_cell_matches",
    "sample_one_per_cell",
    "scale_and_shift_invariant_loss",
    "scale_invariant_loss",
]
