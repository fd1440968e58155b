"""Notebook 07: randomise the weights, and watch which maps notice."""

from __future__ import annotations

from functools import partial

import ipywidgets as widgets
from torch import Tensor

from riba import progress
from riba.compare import trust
from riba.show.panels import samples
from riba.show.panels.controls import control, scene_slider
from riba.show.panels.paint import Tile, View, map_picture
from riba.show.panels.panel import Panel
from riba.testbed import datasets
from riba.workbench import Workbench

REFERENCE = 128
"""Training scenes for the statistics of a randomised network: few, because one has to wait."""


def randomise(wb: Workbench, **settings: object) -> Panel:
    """Randomise the weights, layer by layer from the logits down, and watch which maps notice.

    Parameters as :func:`riba.panels.bottleneck`.
    """
    wb = samples.private_copy(wb)
    layers = trust.weighted_layers(wb.model)

    def draw_reference() -> list[Tensor]:
        if not len(wb.train):
            problem = "no training images for the feature statistics of the randomised network"
            raise ValueError(f"{problem}: load the workbench with data=")
        places = progress.track(range(min(REFERENCE, len(wb.train))), "drawing scenes")
        return list(datasets.stack([wb.train[place] for place in places])[0].split(32))

    def explain(scene: int, changed: tuple[str, ...], seed: int) -> dict[str, Tensor]:
        bench = wb
        if changed:
            model = trust.randomised(wb.model, changed, seed)
            reference = partial(wb.memory.once, "reference", draw_reference)
            bench = trust.with_network(wb, model, changed, reference)
        return trust.explain(bench, *samples.network_input(wb, scene))

    def compute(scene: int, count: int, alone: bool, seed: int) -> tuple[dict, dict, str]:
        changed = tuple(layers[count - 1 : count] if alone else layers[:count])
        words = "nothing" if not changed else f"{changed[-1]}{'' if alone else ' and all above'}"
        pair = (scene, (), 0), (scene, changed, seed if changed else 0)
        before, after = (wb.memory.once(("randomise", *s), partial(explain, *s)) for s in pair)
        return before, after, words

    controls = {
        "scene": scene_slider(wb),
        "count": control(widgets.IntSlider, "layers randomised", value=1, max=len(layers)),
        "alone": control(widgets.Checkbox, "only the last of these layers"),
        "seed": control(widgets.IntSlider, "seed of the weights", max=9),
    }
    caption = "Maps of one test scene before and after weights were randomised."
    return Panel(wb, "randomise", compute, randomise_view, controls, settings, caption)


def randomise_view(wb: Workbench, result: tuple[dict, dict, str], scene: int) -> View:
    """Maps of the trained network above those of the randomised one, and how well they agree."""
    before, after, words = result
    mask = samples.sample(wb, scene).mask
    upper, lower = [samples.picture(wb, scene)], [Tile()]
    for method, trained in before.items():
        maps = trained.abs(), after[method].abs()
        correlation = trust.rank_correlation(*maps)[0].item()
        agreement = "undefined" if correlation != correlation else f"{correlation:.2f}"
        upper.append(map_picture(maps[0][0], title=method, foot="trained", outline=mask))
        lower.append(map_picture(maps[1][0], foot=agreement))
    note = f"Randomised: {words}. Below: rank correlation of magnitudes. Each map on its own scale."
    return View(rows=[(118, upper), (118, lower)], notes=[note])
