"""Methods × samples × metrics: one tidy table, resumable, and its statistics.

``python -m riba.evaluation`` runs it without a notebook.
"""

from riba.compare.evaluation.blocks import CONTRAST, CURVE, FRACTIONS, METRICS
from riba.compare.evaluation.command import main
from riba.compare.evaluation.samples import select, select_pairs
from riba.compare.evaluation.statistics import by_size, compare, holm, results_table, summarise
from riba.compare.evaluation.table import HEADLINE, evaluate

__all__ = [
    "CONTRAST",
    "CURVE",
    "FRACTIONS",
    "HEADLINE",
    "METRICS",
    "by_size",
    "compare",
    "evaluate",
    "holm",
    "main",
    "results_table",
    "select",
    "select_pairs",
    "summarise",
]
