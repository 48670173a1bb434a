"""Work done once per scene: where its results are kept, and how processes share it."""
