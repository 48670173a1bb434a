"""The model that trains: a timm encoder, a light decoder, which parts of it train, and its weights on disk."""

from prior3d.backbone.adaptation import Train, refuse_single_values, set_trainable
from prior3d.backbone.backbone import Backbone, Maps
from prior3d.backbone.decoder import Decoder
from prior3d.backbone.encoder import Encoder, check_name, create_model
from prior3d.backbone.weights import save_weights

__all__ = [
    "Backbone",
    "Decoder",
    "Encoder",
    "Maps",
    "Train",
    "check_name",
    "create_model",
    "refuse_single_values",
    "save_weights",
    "set_trainable",
]
