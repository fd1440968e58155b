"""Notebook 05: the descent, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial

import ipywidgets as widgets
from torch import Tensor

from riba.compare.methods import joint_information
from riba.method import network, relevance, rules
from riba.method.bottleneck import Information, InformationBottleneck
from riba.show import plots
from riba.show.panels import kit
from riba.show.panels.controls import choice, scene_slider, slider, strides
from riba.show.panels.paint import Map, View
from riba.workbench import Workbench

DEPTHS = ("joint", "cascade")
"""What can start beside :data:`riba.relevance.SOURCES`: nats of bottlenecks at several depths."""


def descent(wb: Workbench, **settings: object) -> kit.Panel:
    """Choose what starts, where, and by which rule; follow it down, and read one position.

    Parameters as :func:`riba.panels.bottleneck`.
    """
    wb = kit.own(wb)

    def asked(scene: int) -> tuple[Tensor, Tensor]:
        sample = kit.sample(wb, scene)
        return sample.image[None], wb.targets([sample.label])

    @lru_cache(maxsize=kit.KEPT)
    def measure(scene: int, layer: str) -> Information:
        at, (image, target) = wb.at(layer), asked(scene)
        return InformationBottleneck(at.model, layer, at.statistics)(image, target)

    @lru_cache(maxsize=kit.KEPT)
    def measure_all(scene: int, layer: str) -> dict[str, Information]:
        return joint_information(wb.at(layer), *asked(scene))

    def find(scene: int, source: str, layer: str, rule: str) -> Descent:
        image, target = asked(scene)
        if source in DEPTHS:
            found = measure_all(scene, layer)
            layer, information = list(found.items())[-1]
            begun = relevance.start(information)
        else:
            information = measure(scene, layer)
            upper = partial(relevance.lrp, wb.model, image, target, rule, layer)
            begun = relevance.start(information, source, upper)
        below = relevance.descend_all(wb.model, layer, image, begun.relevance, rule)
        if source == "cascade":
            below["pixels"] = relevance.cascade(wb.model, image, found, rule)
        return Descent(information, below, relevance.ledger(information, begun, below["pixels"]))

    def draw(found: Descent, scene: int, stairs: int, row: int, column: int) -> View:
        return descent_view(wb, scene, found, stairs, row, column)

    side = wb.test[0].image.shape[-1]
    controls = {
        "scene": scene_slider(wb),
        "source": choice("what starts", [*relevance.SOURCES, *DEPTHS], "capacity"),
        "layer": choice("l, the layer", strides(wb), wb.layer),
        "rule": choice("rule", list(rules.COMPOSITES), "z+"),
        "stairs": slider(widgets.IntSlider, "layers down", value=0, max=len(lower_stages(wb))),
        "row": slider(widgets.IntSlider, "position, down", value=side // 2, max=side - 1),
        "column": slider(widgets.IntSlider, "position, across", value=side // 2, max=side - 1),
    }
    caption = "Relevance-IBA on its way down: bits at the layer, relevance between, at the pixels."
    return kit.Panel("descent", find, draw, controls, settings, caption)


def lower_stages(wb: Workbench) -> list[str]:
    """Layers that a descent from the workbench's own layer passes, that layer included."""
    passed = network.names_through(wb.model, wb.layer)
    return [name for name in relevance.stages(wb.model) if name in passed]


@dataclass(frozen=True)
class Descent:
    """One descent: what was measured, what is left at every layer, and the books."""

    information: Information
    below: dict[str, Tensor]
    books: relevance.Ledger


def descent_view(
    wb: Workbench, scene: int, found: Descent, stairs: int, row: int, column: int
) -> View:
    """Picture, bits at the layer, relevance some layers down and at the pixels; one position."""
    sample, unit, names = kit.sample(wb, scene), found.books.unit, list(found.below)
    height, width = sample.mask.shape
    place = min(stairs, len(names) - 1)
    between = plots.to_map(found.below[names[place]])[0]
    pixels = plots.to_map(found.below["pixels"])[0]
    nats = found.information.nats[0].sum(0)
    cell = row * nats.shape[0] // height, column * nats.shape[1] // width
    mark = (row + 0.5) / height, (column + 0.5) / width
    down = f"{place} layer{'s' * (place != 1)} down: {names[place]}"
    each = "pixel" if place == len(names) - 1 else "cell"
    bits = found.information.bits((height, width))[0]
    tiles = [
        kit.asked(wb, sample, mark),
        Map(values=bits, title=f"measured at {names[0]}", unit="bits / pixel", mark=mark),
        Map(values=between, title=down, unit=f"{unit} / {each}", mark=mark),
        Map(values=pixels, title="at the pixels", unit=f"{unit} / pixel", mark=mark),
    ]
    read = (
        f"row {row}, column {column}: {nats[cell] / math.log(2):.3f} bits in its cell of "
        f"{names[0]}, {pixels[row, column]:.4f} {unit} at the pixel"
    )
    return View(rows=[(200, tiles)], notes=[read, found.books.line(0)])
