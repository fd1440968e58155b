"""Notebook 02: choose β and step through the optimisation."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import ipywidgets as widgets
import torch
from torch import Tensor

from riba.method import bottleneck as iba
from riba.method.bottleneck import Information, InformationBottleneck
from riba.method.explicit import Part
from riba.show.panels.controls import control, layer_list, scene_slider
from riba.show.panels.paint import COLOURS, PALE, Bars, Curves, Picture, View, map_picture
from riba.show.panels.panel import Panel
from riba.show.panels.samples import at_layer, network_input, private_copy, sample
from riba.workbench import Workbench

LAST = 30
"""Most steps that the control offers."""


def bottleneck(wb: Workbench, **settings: object) -> Panel:
    """Choose β, steps, copies, smoothing and the layer; look at every step of one optimisation.

    Parameters
    ----------
    wb
        The bundled workbench.
    settings
        First values of the controls.
    """
    wb = private_copy(wb)

    def compute(
        scene: int, beta: float, steps: int, samples: int, sigma: float, layer: str
    ) -> Optimisation:
        at, (images, targets) = at_layer(wb, layer), network_input(wb, scene)
        settings = {"beta": beta, "steps": steps, "samples": samples, "sigma": sigma}
        optimise = InformationBottleneck(at.model, layer, at.statistics, **settings)
        measured = optimise(images, targets, keep_steps=True)
        _, tail = optimise.explicit(images).parts
        return Optimisation(at, images, measured, tail, samples, sigma)

    price = {"value": 10, "min": -1, "max": 3, "step": 0.125}
    controls = {
        "scene": scene_slider(wb),
        "beta": control(widgets.FloatLogSlider, "β, price of a nat", **price),
        "steps": control(widgets.IntSlider, "steps of Adam", value=10, min=1, max=LAST),
        "samples": control(widgets.IntSlider, "noisy copies", value=6, min=1, max=20),
        "sigma": control(widgets.FloatSlider, "σ, smoothing of λ", value=1, max=3, step=0.25),
        "layer": layer_list(wb),
        "step": control(widgets.IntSlider, "show step", value=LAST, max=LAST),
    }
    caption = "Information bottleneck on one test scene: what passes at one step."
    return Panel(wb, "bottleneck", compute, bottleneck_view, controls, settings, caption)


class Optimisation(NamedTuple):
    """One optimisation with all its steps."""

    wb: Workbench
    images: Tensor
    information: Information
    tail: Part
    samples: int
    sigma: float

    def at(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """λ and nats (1×C×h×w) at a step, and the class probabilities through the bottleneck."""
        stats, r = self.wb.statistics, self.information.features
        lambda_, nats = iba.measure(r, self.information.history[step], stats, self.sigma)
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn(self.samples, *r.shape[1:], generator=generator)
        std = stats.std.clamp(min=iba.MIN_STD)
        z = iba.restrict(r, lambda_, noise, stats.mean, std, stats.active)[0]
        return lambda_, nats.clamp(min=0), self.tail(z)[0].softmax(1).mean(0)


def bottleneck_view(wb: Workbench, result: Optimisation, scene: int, step: int) -> View:
    """Picture, what passes, mean λ, bits; the optimisation step by step, class probabilities."""
    trace, size = result.information.trace, result.images.shape[-2:]
    step = min(step, len(trace.loss) - 1)
    lambda_, nats, through = result.at(step)
    rgb, bits = wb.to_rgb(result.images[0]), iba.to_bits(nats, size)[0]
    share = lambda_[0].mean(0)
    title = f"{bits.sum():.1f} bits at step {step}"
    maps = [
        Picture(rgb=rgb, title="the picture", outline=sample(wb, scene).mask, width=0.8),
        Picture(rgb=with_noise(rgb, lambda_), title="what is let through *", width=0.8),
        map_picture(share, title="mean λ over channels", unit="share let through", limit=1.0),
        map_picture(bits, title=title, unit="bits / pixel", outline=sample(wb, scene).mask),
    ]
    title = "p(class): open (grey), through (red)"
    opened = wb.predict(result.images)[0]
    likeliest = torch.maximum(opened, through).topk(4).indices.tolist()
    rows = {wb.class_names[k]: (opened[k].item(), through[k].item()) for k in likeliest}
    probabilities = Bars(rows=rows, title=title, colours=(PALE, COLOURS[1]), limit=1.0)
    curve = partial(Curves, x=range(len(trace.loss)), at=step, x_label="step")
    measured = (trace.information[:, 0] / math.log(2)).tolist()
    entropy = trace.cross_entropy[:, 0].tolist()
    heights = 0.0, max(*entropy, 1e-6) * 1.05
    plots = [
        curve(title="bits in the layer", lines=[(measured, COLOURS[0])], log_y=True),
        curve(title="cross-entropy (nats)", lines=[(entropy, COLOURS[0])], y_range=heights),
        probabilities,
    ]
    settled = "Settled." if result.information.settled[0] else "Not settled: take more steps."
    words = "* An illustration: noise over the pixels, where even the most open channel is shut."
    return View(rows=[(205, maps), (170, plots)], notes=[f"{settled}   {words}"])


def with_noise(rgb: Tensor, lambda_: Tensor) -> Tensor:
    """The picture (H×W×3 in 0–1) under noise: as much as the most open channel's λ leaves.

    ``lambda_`` is 1×C×h×w.
    """
    widest = lambda_.amax(1, keepdim=True)
    share = torch.nn.functional.interpolate(widest, rgb.shape[:2], mode="bilinear")[0, 0, ..., None]
    noise = torch.rand(rgb.shape, generator=torch.Generator().manual_seed(0))
    return share * rgb + (1 - share) * noise
