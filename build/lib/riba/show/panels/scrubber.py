"""Notebook 02: turn β and scrub through the steps of the optimisation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ipywidgets as widgets
import torch
from torch import Tensor

from riba.method import bottleneck as iba
from riba.method.bottleneck import Information, InformationBottleneck
from riba.method.explicit import Part, explicit
from riba.show.panels import kit
from riba.show.panels.controls import choice, scene_slider, slider, strides
from riba.show.panels.paint import COLOURS, PALE, Bars, Curves, Line, Map, Picture, View
from riba.workbench import Workbench

LAST = 30
"""Most steps that can be asked for."""


def bottleneck(wb: Workbench, **settings: object) -> kit.Panel:
    """Turn β, steps, copies, smoothing and the layer; scrub through the steps of one optimisation.

    Parameters
    ----------
    wb
        The bundled workbench.
    settings
        First values of the controls.
    """
    wb = kit.own(wb)

    def find(scene: int, beta: float, steps: int, samples: int, sigma: float, layer: str) -> Course:
        at, sample = wb.at(layer), kit.sample(wb, scene)
        image = sample.image[None]
        settings = {"beta": beta, "steps": steps, "samples": samples, "sigma": sigma}
        bottleneck = InformationBottleneck(at.model, layer, at.statistics, **settings)
        information = bottleneck(image, wb.targets([sample.label]), keep_steps=True)
        _, tail = explicit(at.model, [layer], image).parts
        return Course(at, image, information, tail, samples, sigma)

    def draw(course: Course, scene: int, step: int) -> View:
        return scrubber_view(course, kit.sample(wb, scene).mask, step)

    controls = {
        "scene": scene_slider(wb),
        "beta": slider(
            widgets.FloatLogSlider, "β, price of a nat", value=10, min=-1, max=3, step=0.125
        ),
        "steps": slider(widgets.IntSlider, "steps of Adam", value=10, min=1, max=LAST),
        "samples": slider(widgets.IntSlider, "noisy copies", value=10, min=1, max=20),
        "sigma": slider(widgets.FloatSlider, "σ, smoothing of λ", value=1, min=0, max=3, step=0.25),
        "layer": choice("l, the layer", strides(wb), wb.layer),
        "step": slider(widgets.IntSlider, "show step", value=LAST, max=LAST),
    }
    caption = "Information bottleneck on one test scene: what passes at one step."
    return kit.Panel("bottleneck", find, draw, controls, settings, caption)


@dataclass(frozen=True)
class Course:
    """One optimisation with all its steps."""

    wb: Workbench
    image: Tensor
    information: Information
    tail: Part
    samples: int
    sigma: float

    @property
    def opened(self) -> Tensor:
        """Class probabilities without the bottleneck."""
        return self.wb.predict(self.image)[0]

    def at(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """λ and nats (1×C×h×w) at a step, and the class probabilities through the bottleneck."""
        stats, r = self.wb.statistics, self.information.features
        lambda_, nats = iba.measure(r, self.information.history[step], stats, self.sigma)
        draw = torch.Generator().manual_seed(step)
        noise = torch.randn(self.samples, *r.shape[1:], generator=draw)
        std = stats.std.clamp(min=iba.MIN_STD)
        z = iba.restrict(r, lambda_, noise, stats.mean, std, stats.active)[0]
        with torch.no_grad():
            through = self.tail(z)[0].softmax(1).mean(0)
        return lambda_, nats.clamp(min=0), through


def scrubber_view(course: Course, mask: Tensor, step: int) -> View:
    """Picture, what passes, mean λ, bits; the course of the optimisation, class probabilities."""
    wb, trace = course.wb, course.information.trace
    step = min(step, len(trace.loss) - 1)
    lambda_, nats, through = course.at(step)
    rgb, bits = wb.to_rgb(course.image[0]), iba.to_bits(nats, tuple(mask.shape))[0]
    maps = [
        Picture(rgb=rgb, title="the picture", outline=mask, width=0.8),
        Picture(rgb=noised(rgb, lambda_), title="what is let through *", width=0.8),
        Map(
            values=lambda_[0].mean(0), title="mean λ over channels", unit="share let through",
            limit=1.0,
        ),
        Map(
            values=bits, title=f"{bits.sum():.1f} bits at step {step}", unit="bits / pixel",
            outline=mask,
        ),
    ]  # fmt: skip
    curves = [
        one_curve(trace.information[:, 0] / math.log(2), "bits in the layer", step, log=True),
        one_curve(trace.cross_entropy[:, 0], "cross-entropy (nats)", step),
    ]
    bars = Bars(
        rows=classes(wb, course.opened, through), colours=(PALE, COLOURS[1]), limit=1.0,
        title="p(class): open (grey), through (red)",
    )  # fmt: skip
    settled = "Settled." if course.information.settled[0] else "Not settled: take more steps."
    words = "* An illustration: noise over the pixels, where even the most open channel is shut."
    return View(rows=[(205, maps), (170, [*curves, bars])], notes=[f"{settled}   {words}"])


def one_curve(values: Tensor, title: str, step: int, log: bool = False) -> Curves:
    """One quantity at every step; a line marks the step that is shown."""
    line = Line(list(range(len(values))), values.tolist(), COLOURS[0])
    spread = None if log else (0.0, max(values.max().item(), 1e-6) * 1.05)
    return Curves(lines=[line], title=title, x_label="step", log_y=log, y_range=spread, at=step)


def classes(wb: Workbench, opened: Tensor, through: Tensor) -> dict[str, tuple[float, float]]:
    """Probabilities of the four classes that matter most, without and with the bottleneck."""
    top = torch.maximum(opened, through).topk(4).indices.tolist()
    return {wb.class_names[k]: (opened[k].item(), through[k].item()) for k in top}


def noised(rgb: Tensor, lambda_: Tensor) -> Tensor:
    """The picture (H×W×3 in 0–1) under noise: as much as the most open channel's λ leaves.

    ``lambda_`` is 1×C×h×w.
    """
    share = torch.nn.functional.interpolate(
        lambda_.amax(1, keepdim=True), tuple(rgb.shape[:2]), mode="bilinear"
    )[0, 0, :, :, None]
    noise = torch.rand(rgb.shape, generator=torch.Generator().manual_seed(0))
    return share * rgb + (1 - share) * noise
