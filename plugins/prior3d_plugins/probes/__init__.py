"""Built-in probes, one module or folder each."""
