"""Everything between files and a batch: datasets, view pairs, augmentation, loading; no losses and no models."""
