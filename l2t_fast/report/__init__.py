"""What a finished comparison looks like to a person: plots, a table for the terminal and one self-contained HTML page.

Everything is computed from the files of the run folders, so a page can be made again, or made on another machine,
without PyTorch running anything.
"""

from l2t_fast.report.page import build_report
from l2t_fast.report.table import results_table

__all__ = ["build_report", "results_table"]
