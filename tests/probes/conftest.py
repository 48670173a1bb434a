"""The labeled data and the planted models that tests of what probes are made of share."""

from labeled_data import data, open_data, pixels, planted, squares, two_parts

__all__ = ["data", "open_data", "pixels", "planted", "squares", "two_parts"]
