"""`prior3d-eval`: from names of models and data to a report on the quality of their features."""

from prior3d.evaluation.pictures import plot
from prior3d.evaluation.run import Arguments, Report, measure_and_report, run

__all__ = ["Arguments", "Report", "measure_and_report", "plot", "run"]
