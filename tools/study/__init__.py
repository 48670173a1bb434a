"""The parts of `tools/study.py`: the matrix and how it is read, a unit, workers, the choice of trials, the report.

Nothing here is needed to train or to probe; what trains and measures is the library.
"""
