"""Notebook 03: how fine a bottleneck can be."""

from __future__ import annotations

from torch import Tensor

from riba.compare import metrics
from riba.compare.methods import information
from riba.show.panels import samples
from riba.show.panels.controls import layer_list, scene_slider
from riba.show.panels.paint import View, map_picture
from riba.show.panels.panel import Panel
from riba.workbench import Workbench


def resolution(wb: Workbench, **settings: object) -> Panel:
    """Move the bottleneck to larger and smaller cells, and see how finely they can localise.

    Parameters as :func:`riba.panels.bottleneck`.
    """
    wb = samples.private_copy(wb)

    def compute(scene: int, layer: str) -> tuple[int, Tensor]:
        images, targets = samples.network_input(wb, scene)
        measured = information(wb, layer, images, targets)
        return images.shape[-1] // measured.nats.shape[-1], measured.bits(images.shape[-2:])

    controls = {"scene": scene_slider(wb), "layer": layer_list(wb)}
    caption = "The best map that cells of one size allow, and IBA's."
    return Panel(wb, "resolution", compute, resolution_view, controls, settings, caption)


def resolution_view(wb: Workbench, result: tuple[int, Tensor], scene: int) -> View:
    """Picture, the best map that cells of this size allow, and IBA's, with rank accuracies."""
    stride, bits = result
    mask = samples.mask(wb, scene)
    best = metrics.best_at_stride(mask[None], stride)
    tiles = [samples.picture(wb, scene)]
    for title, maps, unit in (
        (f"best of {stride}×{stride}", best, "share of the cell on the object"),
        ("IBA", bits, "bits / pixel"),
    ):
        score = metrics.rank_accuracy(maps, mask[None]).item()
        title = f"{title}: rank accuracy {score:.2f}"
        tiles.append(map_picture(maps[0], title=title, unit=unit, outline=mask))
    return View(rows=[(270, tiles)])
