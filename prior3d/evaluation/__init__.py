"""`prior3d-eval`: which models and data a command line names, and the way from there to a report; no measurements."""

from prior3d.evaluation.arguments import Arguments
from prior3d.evaluation.pictures import draw
from prior3d.evaluation.run import run

__all__ = ["Arguments", "draw", "run"]
