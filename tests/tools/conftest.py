"""The labeled data and the planted models that tests of tools share."""

from labeled_data import open_data

__all__ = ["open_data"]
