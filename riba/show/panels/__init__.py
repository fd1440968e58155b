"""Panels: every parameter that a person would want to turn, beside the picture that it changes.

``panels.NAME(wb)`` makes one; keyword arguments set its controls, as copied code has them. How
they work: :mod:`riba.show.panels.panel`. A panel leaves a still picture behind for readers without
a kernel.
"""

from riba.show.panels.allocation import allocation
from riba.show.panels.bottleneck import bottleneck
from riba.show.panels.descent import descent
from riba.show.panels.explorer import explorer
from riba.show.panels.panel import Panel
from riba.show.panels.randomise import randomise
from riba.show.panels.resolution import resolution
from riba.show.panels.rule_bench import rule_bench

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
