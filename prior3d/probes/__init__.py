"""Measurements of frozen features, before and after training; nothing here trains a backbone."""
