"""Panels: every parameter that a person would want to turn, beside the picture that it changes.

``panels.NAME(wb)`` makes one; keyword arguments set its controls, as copied code has them;
``panels.ByNetwork(panels.NAME, {"name": wb, …})`` one with a choice of networks. How they work:
:mod:`riba.show.panels.panel`. A panel leaves a still picture behind for readers without a kernel.
"""

from riba.show.panels.allocation import allocation as allocation
from riba.show.panels.bottleneck import bottleneck as bottleneck
from riba.show.panels.by_network import ByNetwork as ByNetwork
from riba.show.panels.descent import descent as descent
from riba.show.panels.explorer import explorer as explorer
from riba.show.panels.panel import Panel as Panel
from riba.show.panels.randomise import randomise as randomise
from riba.show.panels.resolution import resolution as resolution
from riba.show.panels.rule_bench import rule_bench as rule_bench
