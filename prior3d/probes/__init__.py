"""Measurements of models before and after training, mostly of frozen features; the models themselves never change."""
