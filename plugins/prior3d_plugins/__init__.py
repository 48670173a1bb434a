"""The built-in priors, one file each; they use only what `prior3d` makes public, as a plugin of yours would."""
