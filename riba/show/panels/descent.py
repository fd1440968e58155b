"""Notebook 05: the descent, layer by layer."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import ipywidgets as widgets
from torch import Tensor

from riba.compare.methods import information
from riba.method import network, relevance, rules
from riba.method.bottleneck import Information
from riba.show import plots
from riba.show.panels import samples
from riba.show.panels.controls import control, layer_list, scene_slider
from riba.show.panels.paint import View, map_picture
from riba.show.panels.panel import Panel
from riba.workbench import Workbench

DEPTHS = ("joint", "cascade")
"""Sources beside :data:`riba.relevance.SOURCES`: nats of bottlenecks at several depths."""


def descent(wb: Workbench, **settings: object) -> Panel:
    """Choose what starts, where, and by which rule; follow it down, and read one position.

    Parameters as :func:`riba.panels.bottleneck`.
    """
    wb = samples.private_copy(wb)

    def compute(scene: int, source: str, layer: str, rule: str) -> Descent:
        images, targets = samples.network_input(wb, scene)
        net = wb.explicit((), images)
        if source in DEPTHS:
            bench = samples.at_layer(wb, layer)
            joint = information(bench, bench.depths, images, targets)
            measured, layer = joint.shallowest, joint.shallowest.layer
            start = relevance.start(measured)
        else:
            measured = information(wb, layer, images, targets)
            logit = partial(relevance.lrp, net, images, targets, rule, layer)
            start = relevance.start(measured, source, logit)
        below = relevance.descend_all(net, layer, images, start.relevance, rule)
        if source == "cascade":
            below["pixels"] = relevance.cascade(net, images, joint, rule)
        return Descent(measured, below, relevance.ledger(measured, start, below["pixels"]))

    side = wb.test[0].image.shape[-1]
    position = {"value": side // 2, "max": side - 1}
    passed = set(network.names_through(wb.model, wb.layer)).intersection(relevance.stages(wb.model))
    sources, rule_names = [*relevance.SOURCES, *DEPTHS], list(rules.COMPOSITES)
    controls = {
        "scene": scene_slider(wb),
        "source": control(widgets.Dropdown, "what starts", options=sources, value="capacity"),
        "layer": layer_list(wb),
        "rule": control(widgets.Dropdown, "rule", options=rule_names, value="z+"),
        "stairs": control(widgets.IntSlider, "layers down", max=len(passed)),
        "row": control(widgets.IntSlider, "position, down", **position),
        "column": control(widgets.IntSlider, "position, across", **position),
    }
    caption = "Relevance-IBA on its way down: bits at the layer, relevance between, at the pixels."
    return Panel(wb, "descent", compute, descent_view, controls, settings, caption)


class Descent(NamedTuple):
    """One descent: what was measured, the relevance at every layer, and the ledger."""

    information: Information
    below: dict[str, Tensor]
    ledger: relevance.Ledger


def descent_view(
    wb: Workbench, result: Descent, scene: int, stairs: int, row: int, column: int
) -> View:
    """Picture, bits at the layer, relevance some layers down and at the pixels; one position."""
    unit, names = result.ledger.unit, list(result.below)
    height, width = samples.sample(wb, scene).image.shape[-2:]
    place = min(stairs, len(names) - 1)
    between = plots.to_map(result.below[names[place]])[0]
    pixels = plots.to_map(result.below["pixels"])[0]
    nats = result.information.nats[0].sum(0)
    cell = row * nats.shape[0] // height, column * nats.shape[1] // width
    mark = (row + 0.5) / height, (column + 0.5) / width
    down = f"{place} layer{'s' * (place != 1)} down: {names[place]}"
    each = "pixel" if place == len(names) - 1 else "cell"
    bits = result.information.bits((height, width))[0]
    tiles = [
        samples.picture(wb, scene, mark),
        map_picture(bits, title=f"measured at {names[0]}", unit="bits / pixel", mark=mark),
        map_picture(between, title=down, unit=f"{unit} / {each}", mark=mark),
        map_picture(pixels, title="at the pixels", unit=f"{unit} / pixel", mark=mark),
    ]
    above = f"{nats[cell] / math.log(2):.3f} bits in its whole cell of {names[0]}"
    position = f"row {row}, column {column}: {above}, {pixels[row, column]:.4f} {unit} at the pixel"
    return View(rows=[(200, tiles)], notes=[position, result.ledger.line(0)])
