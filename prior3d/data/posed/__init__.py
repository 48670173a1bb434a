"""Scenes of posed views with depth: cameras, pairs, surfaces, registration."""
