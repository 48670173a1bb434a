"""The trained model: a timm encoder, a light decoder, the choice of trained parts, and weights on disk."""

from prior3d.backbone.adaptation import Train, refuse_single_values, set_trainable
from prior3d.backbone.backbone import Backbone, Maps
from prior3d.backbone.batch_norm import has_statistics, reestimate_batch_norm, refuse_folded
from prior3d.backbone.decoder import Decoder
from prior3d.backbone.encoder import Encoder, check_name, create_model
from prior3d.backbone.optimization import cosine_fall, decaying_groups, warm_up
from prior3d.backbone.weights import save_weights

__all__ = [
    "Backbone",
    "Decoder",
    "Encoder",
    "Maps",
    "Train",
    "check_name",
    "cosine_fall",
    "create_model",
    "decaying_groups",
    "has_statistics",
    "reestimate_batch_norm",
    "refuse_folded",
    "refuse_single_values",
    "save_weights",
    "set_trainable",
    "warm_up",
]
