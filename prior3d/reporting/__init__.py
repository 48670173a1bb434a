"""What probes measured, for people and programs to read: table, report.md, report.json, figures; nothing is measured.

Not here: how sure a difference is (`prior3d.probes.statistics`), and how a probe draws (its own `draw`).
"""

from prior3d.reporting.comparison import Comparison, compare
from prior3d.reporting.drawing import Drawings
from prior3d.reporting.table import tabulate
from prior3d.reporting.writing import About, write_report

__all__ = ["About", "Comparison", "Drawings", "compare", "tabulate", "write_report"]
