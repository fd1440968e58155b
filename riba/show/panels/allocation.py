"""Notebook 06: where the most important pixels fall."""

from __future__ import annotations

from functools import partial

import ipywidgets as widgets
import torch
from torch import Tensor

from riba.compare import metrics
from riba.compare.methods import METHODS
from riba.show import plots
from riba.show.panels import samples
from riba.show.panels.controls import check_count, control, method_list, scene_slider
from riba.show.panels.paint import COLOURS, PALE, Curves, Picture, Tile, View
from riba.show.panels.panel import Panel
from riba.workbench import Workbench

MOST = 3
"""Methods side by side."""


def allocation(wb: Workbench, **settings: object) -> Panel:
    """Choose up to three methods and a budget, and see where the most important pixels fall.

    Parameters as :func:`riba.panels.bottleneck`.
    """
    wb = samples.private_copy(wb)

    def explain(scene: int, method: str) -> Tensor:
        masks = samples.mask(wb, scene)[None]
        return METHODS[method](wb, *samples.network_input(wb, scene), masks=masks)

    def compute(scene: int, methods: tuple[str, ...]) -> dict[str, Tensor]:
        check_count(methods, MOST)
        return {
            method: wb.memory.once(("allocation", scene, method), partial(explain, scene, method))
            for method in methods
        }

    budget = {"value": 0.1, "min": -2.5, "max": 0, "step": 0.05}
    controls = {
        "scene": scene_slider(wb),
        "methods": method_list(MOST, ("iba", "relevance-iba", "relevance-iba-cascade")),
        "share": control(widgets.FloatLogSlider, "p, share of pixels", **budget),
    }
    caption = "The most important pixels of several maps over the mask, and allocation curves."
    return Panel(wb, "allocation", compute, allocation_view, controls, settings, caption)


def allocation_view(wb: Workbench, maps: dict[str, Tensor], scene: int, share: float) -> View:
    """Each map's most important pixels over the mask; and the allocation curves.

    The pale curves are the best that a mask of this size allows, and chance.
    """
    rgb, mask = wb.to_rgb(samples.sample(wb, scene).image), samples.mask(wb, scene)
    masks = mask[None]
    budgets = torch.logspace(-2.5, 0, 40).tolist()
    chance = masks.double().mean().item()
    best = [min(1, chance / p) for p in budgets]
    lines = [(best, PALE), ([chance] * len(budgets), PALE)]
    tiles = []
    for (method, values), colour in zip(maps.items(), COLOURS[2:], strict=False):
        *curve, precision = metrics.allocation_curve(values, masks, [*budgets, share])[0].tolist()
        area = metrics.allocation_area(values, masks).item()
        lines.append((curve, colour))
        hits = plots.hits(rgb, values[0], mask, share)
        foot = f"{precision:.0%} on the object; area {area:.2f}"
        words = {"title": method, "title_colour": colour, "foot": foot}
        tiles.append(Picture(rgb=hits, outline=mask, ink="black", **words))
    title = "share of the top pixels on the object"
    axes = {"x_label": "p, share of pixels", "log_x": True, "y_range": (0, 1.02)}
    curves = Curves(title=title, x=budgets, lines=lines, at=share, width=1.4, **axes)
    tiles += [Tile()] * (MOST - len(tiles))
    return View(rows=[(255, [*tiles, curves])])
