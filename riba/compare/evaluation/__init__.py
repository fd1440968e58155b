"""Methods × samples × metrics: one tidy table, resumable, and its statistics.

``python -m riba.evaluation`` runs it without a notebook; ``make evaluation`` writes the tables in
``data/``.
"""

from riba.compare.evaluation.command import main
from riba.compare.evaluation.report import MARKS, fill_in, results_table, write_tables
from riba.compare.evaluation.samples import select, select_pairs
from riba.compare.evaluation.statistics import by_size, compare, holm, summarise
from riba.compare.evaluation.table import CONTRAST, CURVE, FRACTIONS, HEADLINE, METRICS, evaluate

__all__ = [
    "CONTRAST",
    "CURVE",
    "FRACTIONS",
    "HEADLINE",
    "MARKS",
    "METRICS",
    "by_size",
    "compare",
    "evaluate",
    "fill_in",
    "holm",
    "main",
    "results_table",
    "select",
    "select_pairs",
    "summarise",
    "write_tables",
]
