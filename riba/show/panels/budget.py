"""Notebook 06: where the most important pixels fall."""

from __future__ import annotations

from functools import lru_cache

import ipywidgets as widgets
import torch
from torch import Tensor

from riba.compare import metrics
from riba.compare.methods import METHODS
from riba.show import plots
from riba.show.panels import kit
from riba.show.panels.controls import METHODS_OFFERED, check_count, scene_slider, several, slider
from riba.show.panels.paint import COLOURS, PALE, Curves, Empty, Line, Picture, View
from riba.testbed import datasets
from riba.workbench import Workbench

MOST = 3
"""Methods side by side."""


def allocation(wb: Workbench, **settings: object) -> kit.Panel:
    """Choose up to three methods and a budget, and see where the most important pixels fall.

    Parameters as :func:`riba.panels.bottleneck`.
    """
    wb = kit.own(wb)

    @lru_cache(maxsize=kit.KEPT)
    def explain(scene: int, method: str) -> Tensor:
        images, labels, masks = datasets.stack([kit.sample(wb, scene)])
        return METHODS[method](wb, images, wb.targets(labels), masks=masks)

    def find(scene: int, methods: tuple[str, ...]) -> dict[str, Tensor]:
        check_count(methods, MOST)
        return {method: explain(scene, method) for method in methods}

    def draw(maps: dict[str, Tensor], scene: int, share: float) -> View:
        return allocation_view(wb, scene, maps, share)

    chosen = ("iba", "relevance-iba", "relevance-iba-cascade")
    controls = {
        "scene": scene_slider(wb),
        "methods": several(f"methods, up to {MOST}", METHODS_OFFERED, chosen),
        "share": slider(
            widgets.FloatLogSlider, "p, share of pixels", value=0.1, min=-2.5, max=0, step=0.05
        ),
    }
    caption = "The most important pixels of several maps over the mask, and allocation curves."
    return kit.Panel("allocation", find, draw, controls, settings, caption)


def allocation_view(wb: Workbench, scene: int, maps: dict[str, Tensor], share: float) -> View:
    """Each map's most important pixels over the mask; and the allocation curves."""
    sample = kit.sample(wb, scene)
    rgb, masks = wb.to_rgb(sample.image), sample.mask[None]
    budgets = torch.logspace(-2.5, 0, 40).tolist()
    area = masks.double().mean().item()
    best = [min(1, area / p) for p in budgets]
    lines = [Line(budgets, best, PALE, dotted=True), Line(budgets, [area] * 40, PALE, dotted=True)]
    tiles, points = [], []
    for (method, values), colour in zip(maps.items(), COLOURS, strict=False):
        *curve, here = metrics.allocation_curve(values, masks, [*budgets, share])[0].tolist()
        score = metrics.allocation_area(values, masks).item()
        lines.append(Line(budgets, curve, colour, f"{method}, area {score:.2f}"))
        points.append((share, here, colour))
        shown = plots.hits(rgb, values[0], sample.mask, share)
        foot = f"top {share:.1%}: {here:.0%} on the object"
        tiles.append(Picture(rgb=shown, title=method, foot=foot, outline=sample.mask, ink="black"))
    tiles += [Empty()] * (MOST - len(tiles))
    curves = Curves(
        lines=lines, title="share of the top pixels on the object", x_label="p, share of pixels",
        log_x=True, y_range=(0, 1.02), at=share, points=points, width=1.4,
    )  # fmt: skip
    return View(rows=[(255, [*tiles, curves])])
