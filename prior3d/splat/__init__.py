"""Gaussians from posed depth, their rendering with any channel count, and lifting of 2D features onto them.

Values are rendered by an engine (`engine: torch`, `gsplat` or `auto`, see `prior3d.registry.engines`); lifting and
targets see only the linear map of a view, render and gather, never how an engine computes it.
Not here: where the features come from, which views are used, and losses on what is rendered (plugins).
"""

from prior3d.contracts.splatting import Gaussians, SplatOperator
from prior3d.registry.engines import EngineChoice
from prior3d.splat.gaussians import gaussians_from_depth
from prior3d.splat.lifting import Lifted, lift_average, lift_cg
from prior3d.splat.operator import view_operator
from prior3d.splat.projection import LOW_PASS, NEAR
from prior3d.splat.rasterize import Rendering, rasterize
from prior3d.splat.reference import rasterize_views
from prior3d.splat.targets import FeatureTargets, render_feature_targets
from prior3d.splat.weights import CompositingWeights, compositing_weights

__all__ = [
    "Gaussians",
    "gaussians_from_depth",
    "Rendering",
    "rasterize",
    # what engines are made of and held to
    "EngineChoice",
    "LOW_PASS",
    "NEAR",
    "rasterize_views",
    # views as linear maps, and what is lifted through them
    "SplatOperator",
    "view_operator",
    "CompositingWeights",
    "compositing_weights",
    "Lifted",
    "lift_average",
    "lift_cg",
    "FeatureTargets",
    "render_feature_targets",
]
