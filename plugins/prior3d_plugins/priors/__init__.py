"""Built-in priors, one module or folder each."""
