"""Notebook 04: rules by layer, and what they make of the same nats."""

from __future__ import annotations

import ipywidgets as widgets
from torch import Tensor, nn
from zennit.core import Composite

from riba.compare import trust
from riba.compare.methods import information
from riba.method import network, relevance, rules
from riba.show import plots
from riba.show.panels import samples
from riba.show.panels.controls import control, scene_slider
from riba.show.panels.paint import Bars, View, map_picture
from riba.show.panels.panel import Panel
from riba.workbench import Workbench

PIXELS = ("flat", "z+", "w-square", "box")
"""Rules of the first convolution; ``box`` is zᴮ with the bounds of the workbench."""
PARAMETERS = {"gamma": "gamma", "epsilon": "epsilon", "alpha2-beta1": "beta"}
"""Rules that have a parameter, and its name."""


def rule_bench(wb: Workbench, **settings: object) -> Panel:
    """Choose a rule and its parameter for the upper and the lower layers, and for the pixels.

    The same nats of the bottleneck start every time. Parameters as
    :func:`riba.panels.bottleneck`.
    """
    wb = samples.private_copy(wb)
    upper_names = upper_half(wb.model, wb.layer)

    def compute(
        scene: int,
        upper: str,
        upper_strength: float,
        lower: str,
        lower_strength: float,
        pixels: str,
        bias: bool,
    ) -> tuple[dict[str, Tensor], list[str]]:
        first = rules.box(*wb.bounds) if pixels == "box" else pixels
        below_half = tuned(lower, lower_strength, first, bias)
        above_half = tuned(upper, upper_strength, first, bias)
        composite = rules.by_depth(below_half, above_half, upper_names)
        images, targets = samples.network_input(wb, scene)
        nats = information(wb, wb.layer, images, targets).nats
        net = wb.explicit((), images)
        below = relevance.descend_all(net, wb.layer, images, nats, composite)
        notes = [
            f"upper layers, from {upper_names[0]}:   {formula(upper, upper_strength)}",
            f"lower layers, below {upper_names[0]}:   {formula(lower, lower_strength)}",
        ]
        return below, notes

    names = [name for name in rules.COMPOSITES if name != "epsilon-plus"]  # z⁺ down there
    rule = {"options": names, "value": "z+"}
    strength = {"value": 0.25, "min": -2, "max": 1, "step": 0.1}
    controls = {
        "scene": scene_slider(wb),
        "upper": control(widgets.Dropdown, "rule, upper layers", **rule),
        "upper_strength": control(widgets.FloatLogSlider, "upper: γ, ε or β", **strength),
        "bias": control(widgets.Checkbox, "biases take their share"),
        "pixels": control(widgets.Dropdown, "rule at the pixels", options=PIXELS, value="flat"),
        "lower": control(widgets.Dropdown, "rule, lower layers", **rule),
        "lower_strength": control(widgets.FloatLogSlider, "lower: γ, ε or β", **strength),
    }
    for half in ("upper", "lower"):
        rule_chosen, slider = (controls[half], "value"), (controls[f"{half}_strength"], "disabled")
        widgets.dlink(rule_chosen, slider, lambda rule: rule not in PARAMETERS)
    caption = "The same nats, propagated by a rule for the upper and one for the lower layers."
    return Panel(wb, "rule_bench", compute, rule_view, controls, settings, caption)


def upper_half(model: nn.Module, layer: str) -> list[str]:
    """The layers from the upper half of the weighted ones below ``layer`` up to ``layer``.

    The weighted layer at the pixels, which has a rule of its own, is not counted.
    """
    names = network.names_through(model, layer)
    weighted = set(trust.weighted_layers(model))
    body = [name for name in names if name in weighted][1:]
    return names[names.index(body[len(body) // 2]) :]


def tuned(rule: str, strength: float, pixels: str | object, bias: bool) -> Composite:
    """A composite with ``strength`` as its γ, its ε or its β; z⁺ and Flat have no parameter."""
    parameter = {PARAMETERS[rule]: strength} if rule in PARAMETERS else {}
    biases = {} if rule == "flat" else {"bias": bias}
    return rules.COMPOSITES[rule](pixels, **parameter, **biases)


def formula(rule: str, strength: float) -> str:
    """The rule with its present value; c are contributions, z their sums."""
    more, value = f"{1 + strength:.2f}", f"{strength:.2f}"
    return {
        "z+": "Rᵢ = Σⱼ  cᵢⱼ⁺ / zⱼ⁺ · Rⱼ",
        "gamma": f"Rᵢ = Σⱼ  ({more} cᵢⱼ⁺ + cᵢⱼ⁻) / ({more} zⱼ⁺ + zⱼ⁻) · Rⱼ",
        "epsilon": f"Rᵢ = Σⱼ  cᵢⱼ / (zⱼ ± {value}) · Rⱼ",
        "alpha2-beta1": f"Rᵢ = Σⱼ  ({more} cᵢⱼ⁺ / zⱼ⁺ − {value} cᵢⱼ⁻ / zⱼ⁻) · Rⱼ",
        "flat": "Rᵢ = Σⱼ  [i feeds j] / nⱼ · Rⱼ",
    }[rule]


def rule_view(wb: Workbench, result: tuple[dict[str, Tensor], list[str]], scene: int) -> View:
    """Picture, pixel map, how many nats are left at every layer on the way down; the formulae."""
    below, notes = result
    totals = {name: [values[0].double().sum().item()] for name, values in below.items()}
    values, mask = plots.to_map(below["pixels"])[0], samples.sample(wb, scene).mask
    title = f"{totals[wb.layer][0]:.1f} nats in, {totals['pixels'][0]:.1f} nats out"
    pixels = map_picture(values, title=title, unit="nats / pixel", outline=mask, width=1.25)
    ledger = Bars(rows=totals, title="the ledger: nats in every layer", number="{:.1f}", width=1.25)
    return View(rows=[(300, [samples.picture(wb, scene), pixels, ledger])], notes=notes)
