"""The model that trains: a timm encoder, a light decoder, which parts of it train, and its weights on disk."""

from prior3d.backbone.backbone import Backbone, Decoder, Encoder, Maps, check_name, set_trainable
from prior3d.backbone.weights import save_weights

__all__ = ["Backbone", "Decoder", "Encoder", "Maps", "check_name", "save_weights", "set_trainable"]
