"""Studies: a matrix of trainings and probes from one YAML file, run unit by unit, and the report on it."""
