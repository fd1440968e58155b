"""Notebook 03: how fine a bottleneck can be."""

from __future__ import annotations

from torch import Tensor

from riba.compare import metrics
from riba.method.bottleneck import InformationBottleneck
from riba.show.panels import kit
from riba.show.panels.controls import choice, scene_slider, strides
from riba.show.panels.paint import Map, View
from riba.workbench import Workbench


def resolution(wb: Workbench, **settings: object) -> kit.Panel:
    """Move the bottleneck to larger and smaller cells, and see what they can tell.

    Parameters as :func:`riba.panels.bottleneck`.
    """
    wb = kit.own(wb)

    def find(scene: int, layer: str) -> tuple[int, Tensor]:
        sample, at = kit.sample(wb, scene), wb.at(layer)
        iba = InformationBottleneck(at.model, layer, at.statistics)
        information = iba(sample.image[None], wb.targets([sample.label]))
        stride = sample.image.shape[-1] // information.nats.shape[-1]
        return stride, information.bits(sample.image.shape[-2:])

    def draw(found: tuple[int, Tensor], scene: int) -> View:
        return resolution_view(wb, scene, *found)

    controls = {
        "scene": scene_slider(wb),
        "layer": choice("l, the layer", strides(wb), wb.layer),
    }
    caption = "The best map that cells of one size allow, and IBA's."
    return kit.Panel("resolution", find, draw, controls, settings, caption)


def resolution_view(wb: Workbench, scene: int, stride: int, bits: Tensor) -> View:
    """Picture, the best map that cells of this size allow, and IBA's, with rank accuracies."""
    sample = kit.sample(wb, scene)
    best = metrics.best_at_stride(sample.mask[None], stride)
    score = [metrics.rank_accuracy(values, sample.mask[None]).item() for values in (best, bits)]
    return View(
        rows=[
            (
                270,
                [
                    kit.asked(wb, sample),
                    Map(
                        values=best[0],
                        title=f"best of {stride}×{stride}: rank accuracy {score[0]:.2f}",
                        unit="share of the cell on the object",
                        outline=sample.mask,
                    ),
                    Map(
                        values=bits[0],
                        title=f"IBA: rank accuracy {score[1]:.2f}",
                        unit="bits / pixel",
                        outline=sample.mask,
                    ),
                ],
            )
        ]
    )
