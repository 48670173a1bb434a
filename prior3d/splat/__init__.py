"""Gaussians from posed depth, rendering with any number of channels, and lifting of 2D features to Gaussians.

An engine renders values (`engine: torch`, `gsplat` or `auto`, see `prior3d.registry.engines`). Lifting and targets use
only the linear map of a view, render and gather, and do not depend on how an engine computes it.
Plugins decide the source of the features, the views and the losses on renderings.
"""

from prior3d.contracts.splatting import Gaussians, SplatOperator
from prior3d.registry.engines import EngineChoice
from prior3d.splat.gaussians import gaussians_from_depth
from prior3d.splat.lifting import Lifted, lift_average, lift_cg
from prior3d.splat.operator import cell_areas, cell_of_pixel, render_scenes, view_operator, views_at_once
from prior3d.splat.projection import LOW_PASS, NEAR
from prior3d.splat.rasterize import Rendering, rasterize
from prior3d.splat.reference import rasterize_views
from prior3d.splat.targets import FeatureTargets, render_columns, render_feature_targets, target_columns
from prior3d.splat.weights import CompositingWeights, compositing_weights

__all__ = [
    "Gaussians",
    "gaussians_from_depth",
    "Rendering",
    "rasterize",
    # building blocks and rules of engines
    "EngineChoice",
    "LOW_PASS",
    "NEAR",
    "cell_areas",
    "cell_of_pixel",
    "rasterize_views",
    # views as linear maps, and lifting through them
    "SplatOperator",
    "view_operator",
    "views_at_once",
    "render_scenes",
    "CompositingWeights",
    "compositing_weights",
    "Lifted",
    "lift_average",
    "lift_cg",
    "FeatureTargets",
    "render_feature_targets",
    "target_columns",
    "render_columns",
]
