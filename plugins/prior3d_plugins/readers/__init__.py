"""The built-in readers: one file format of posed recordings each."""
