"""The built-in readers, each for one file format of posed recordings."""
