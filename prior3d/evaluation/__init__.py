"""`prior3d-eval`: from names of models and data to a report on what their features are good for."""

from prior3d.evaluation.pictures import draw
from prior3d.evaluation.run import Arguments, Report, evaluate, run

__all__ = ["Arguments", "Report", "draw", "evaluate", "run"]
