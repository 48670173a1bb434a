"""From files to batches: posed recordings, single images, and the samples made of either."""
