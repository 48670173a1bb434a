"""The version of prior3d."""

__version__ = "0.1.0"
