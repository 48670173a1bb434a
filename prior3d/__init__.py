"""prior3d gives any 2D vision backbone a sense of 3D: composable prior objectives on one backbone pass.

This package holds the building blocks (geometry, losses, data, training, probes) and never imports a plugin;
the priors themselves live in `prior3d_plugins` or in packages and files of yours.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prior3d.contracts.dataset import Dataset
    from prior3d.contracts.prior import BackboneSpec, Features, Prior

__version__ = "0.1.0"
__all__ = ["BackboneSpec", "Dataset", "Features", "Prior", "View", "__version__"]

_HOME = {
    "BackboneSpec": "prior3d.contracts.prior",
    "Features": "prior3d.contracts.prior",
    "Prior": "prior3d.contracts.prior",
    "Dataset": "prior3d.contracts.dataset",
    "View": "prior3d.contracts.view",
}


def __getattr__(name: str) -> object:
    """Import public names on first use, so that `prior3d-train --list` does not pay for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'prior3d' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
