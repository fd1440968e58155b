"""Notebook 07: randomise the weights, and watch which maps notice."""

from __future__ import annotations

from functools import lru_cache

import ipywidgets as widgets
from torch import Tensor

from riba import progress
from riba.compare import trust
from riba.show.panels import kit
from riba.show.panels.controls import scene_slider, slider, tick
from riba.show.panels.paint import COLOURS, Bars, Map, View
from riba.testbed import datasets
from riba.workbench import Workbench

REFERENCE = 128
"""Training scenes for the statistics of a randomised network: few, because one has to wait."""


def randomise(wb: Workbench, **settings: object) -> kit.Panel:
    """Draw the weights anew, layer by layer from the logits down, and watch which maps notice.

    Parameters as :func:`riba.panels.bottleneck`.
    """
    wb = kit.own(wb)
    layers = trust.weighted_layers(wb.model)

    @lru_cache(maxsize=1)
    def trained() -> dict:
        return {layer: wb.at(layer).statistics for layer in wb.depths}

    @lru_cache(maxsize=1)
    def reference() -> list[Tensor]:
        drawn = progress.track(range(min(REFERENCE, len(wb.train))), "drawing scenes")
        return list(datasets.stack([wb.train[index] for index in drawn])[0].split(32))

    @lru_cache(maxsize=kit.KEPT)
    def explain(scene: int, changed: tuple[str, ...], seed: int) -> dict[str, Tensor]:
        model, statistics = wb.model, trained()
        if changed:
            model = trust.randomised(wb.model, changed, seed)
            statistics = trust.statistics_of(model, statistics, changed, reference)
        sample = kit.sample(wb, scene)
        targets = wb.targets([sample.label])
        return trust.explain(model, statistics, sample.image[None], targets)

    def find(scene: int, count: int, alone: bool, seed: int) -> tuple[dict, dict, str]:
        changed = tuple(layers[count - 1 : count] if alone else layers[:count])
        words = "nothing" if not changed else f"{changed[-1]}{'' if alone else ' and all above'}"
        return explain(scene, (), 0), explain(scene, changed, seed if changed else 0), words

    def draw(found: tuple[dict, dict, str], scene: int) -> View:
        return randomise_view(wb, scene, *found)

    controls = {
        "scene": scene_slider(wb),
        "count": slider(widgets.IntSlider, "layers drawn anew", value=1, max=len(layers)),
        "alone": tick("only the last of these layers"),
        "seed": slider(widgets.IntSlider, "seed of the weights", value=0, max=9),
    }
    caption = "Maps of one test scene before and after weights were drawn anew."
    return kit.Panel("randomise", find, draw, controls, settings, caption)


def randomise_view(
    wb: Workbench, scene: int, before: dict[str, Tensor], after: dict[str, Tensor], words: str
) -> View:
    """Maps of the trained network above those of the randomised one, and how well they agree."""
    sample = kit.sample(wb, scene)
    above = [kit.asked(wb, sample)]
    below, agreed = [], {}
    for method, trained in before.items():
        maps = trained.abs(), after[method].abs()
        agreed[method] = [trust.rank_correlation(*maps)[0].item()]  # NaN: one is constant
        above.append(Map(values=maps[0][0], title=method, foot="trained", outline=sample.mask))
        below.append(Map(values=maps[1][0], title=method, foot="drawn anew"))
    bars = Bars(rows=agreed, title="rank correlation", limit=1.0, colours=COLOURS[4:], label=0)
    note = f"Drawn anew: {words}. Each map on its own scale; magnitudes of signed maps."
    return View(rows=[(176, above), (176, [bars, *below])], notes=[note])
