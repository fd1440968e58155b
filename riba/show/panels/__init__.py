"""Panels: every parameter that a person would want to turn, beside the picture that it changes.

``panels.NAME(wb)`` makes one; keyword arguments set its controls, as copied code has them. How
they work: :mod:`riba.panels.kit`. A panel leaves a still picture behind for readers without a
kernel.
"""

from riba.show.panels.bench import rule_bench
from riba.show.panels.budget import allocation
from riba.show.panels.cells import resolution
from riba.show.panels.kit import Panel
from riba.show.panels.photo import explorer
from riba.show.panels.scrubber import bottleneck
from riba.show.panels.stairs import descent
from riba.show.panels.weights import randomise

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
