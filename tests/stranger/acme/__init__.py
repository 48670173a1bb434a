"""Plugins of every kind, as another company would distribute them; each file also works alone, given by its path."""
