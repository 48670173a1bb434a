"""Losses that stand alone: tensors in, a scalar out."""
