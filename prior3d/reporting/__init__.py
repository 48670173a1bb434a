"""Output of probe results for people and programs: table, report.md, report.json, figures; no measurements.

The uncertainty of a difference is in `prior3d.probes.statistics`; each probe has its own `plot`.
"""

from prior3d.reporting.about import About, device_name
from prior3d.reporting.comparison import Comparison, compare
from prior3d.reporting.plots import Plots
from prior3d.reporting.table import tabulate
from prior3d.reporting.writing import JSON, MARKDOWN, write_report

__all__ = ["JSON", "MARKDOWN", "About", "Comparison", "Plots", "compare", "device_name", "tabulate", "write_report"]
