"""Methods × samples × metrics: one tidy table, resumable, and its statistics.

``python -m riba.evaluation`` runs it without a notebook.
"""

from riba.compare.evaluation.blocks import CONTRAST, CURVE, FRACTIONS, METRICS  # noqa: F401
from riba.compare.evaluation.command import main  # noqa: F401
from riba.compare.evaluation.samples import select, select_pairs  # noqa: F401
from riba.compare.evaluation.statistics import compare, holm, summarise  # noqa: F401
from riba.compare.evaluation.table import HEADLINE, evaluate  # noqa: F401
