"""What probes measured, for people and programs to read: table, report.md, report.json, figures; nothing is measured.

Not here: how sure a difference is (`prior3d.probes.statistics`), and how a probe plots (its own `plot`).
"""

from prior3d.reporting.about import About, device_name
from prior3d.reporting.comparison import Comparison, compare
from prior3d.reporting.drawing import Drawings
from prior3d.reporting.table import tabulate
from prior3d.reporting.writing import JSON, MARKDOWN, write_report

__all__ = ["JSON", "MARKDOWN", "About", "Comparison", "Drawings", "compare", "device_name", "tabulate", "write_report"]
