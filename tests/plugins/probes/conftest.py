"""The labeled data and the planted models that tests of probes share."""

from labeled_data import data, open_data, planted, squares

__all__ = ["data", "open_data", "planted", "squares"]
