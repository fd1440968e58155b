"""Panels: every parameter that a person would want to turn, beside the picture that it changes.

``panels.NAME(wb)`` makes one; keyword arguments set its controls, as copied code has them. How
they work: :mod:`riba.panels.kit`. A panel leaves a still picture behind for readers without a
kernel.
"""

from riba.panels.bench import rule_bench
from riba.panels.budget import allocation
from riba.panels.cells import resolution
from riba.panels.kit import Panel
from riba.panels.photo import explorer
from riba.panels.scrubber import bottleneck
from riba.panels.stairs import descent
from riba.panels.weights import randomise

__all__ = [
    "Panel",
    "allocation",
    "bottleneck",
    "descent",
    "explorer",
    "randomise",
    "resolution",
    "rule_bench",
]
