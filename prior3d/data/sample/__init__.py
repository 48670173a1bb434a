"""From decoded views to a batch: one affine map per view, color changes, collation, loading."""

from prior3d.data.sample.augmentation import assemble
from prior3d.data.sample.loading import (
    DrawnSamples,
    DrawStream,
    batched,
    make_loader,
    raise_errors,
    to_device,
    to_float,
)

__all__ = ["DrawStream", "DrawnSamples", "assemble", "batched", "make_loader", "raise_errors", "to_device", "to_float"]
