"""Notebook 04: the rule bench."""

from __future__ import annotations

from functools import lru_cache

import ipywidgets as widgets
from torch import Tensor, nn
from zennit.core import Composite

from riba.compare import trust
from riba.method import network, relevance, rules
from riba.method.bottleneck import Information, InformationBottleneck
from riba.show import plots
from riba.show.panels import kit
from riba.show.panels.controls import choice, scene_slider, slider, tick
from riba.show.panels.paint import Bars, Map, View
from riba.workbench import Workbench

PIXELS = ("flat", "z+", "w-square", "box")
"""Rules of the first convolution; ``box`` is zᴮ with the bounds of the workbench."""


def rule_bench(wb: Workbench, **settings: object) -> kit.Panel:
    """Choose a rule and its parameter for the upper and the lower layers, and for the pixels.

    The same nats of the bottleneck start every time. Parameters as
    :func:`riba.panels.bottleneck`.
    """
    wb = kit.own(wb)
    above = upper_half(wb.model, wb.layer)

    @lru_cache(maxsize=kit.KEPT)
    def measure(scene: int) -> Information:
        sample = kit.sample(wb, scene)
        iba = InformationBottleneck(wb.model, wb.layer, wb.statistics)
        return iba(sample.image[None], wb.targets([sample.label]))

    def find(
        scene: int,
        upper: str,
        upper_strength: float,
        lower: str,
        lower_strength: float,
        pixels: str,
        bias: bool,
    ) -> dict[str, Tensor]:
        first = rules.box(*wb.bounds) if pixels == "box" else pixels
        composite = rules.by_depth(
            tuned(lower, lower_strength, first, bias),
            tuned(upper, upper_strength, first, bias),
            above,
        )
        image = kit.sample(wb, scene).image[None]
        return relevance.descend_all(wb.model, wb.layer, image, measure(scene).nats, composite)

    def draw(
        below: dict[str, Tensor],
        scene: int,
        upper: str,
        upper_strength: float,
        lower: str,
        lower_strength: float,
    ) -> View:
        formulae = formula(upper, upper_strength), formula(lower, lower_strength)
        return rule_view(wb, scene, below, above, formulae)

    names = [name for name in rules.COMPOSITES if name != "epsilon-plus"]  # z⁺ down there
    strength = {"value": 0.25, "min": -2, "max": 1, "step": 0.1}
    controls = {
        "scene": scene_slider(wb),
        "upper": choice("rule, upper layers", names, "z+"),
        "upper_strength": slider(widgets.FloatLogSlider, "upper: γ, ε or β", **strength),
        "bias": tick("biases take their share"),
        "pixels": choice("rule at the pixels", PIXELS, "flat"),
        "lower": choice("rule, lower layers", names, "z+"),
        "lower_strength": slider(widgets.FloatLogSlider, "lower: γ, ε or β", **strength),
    }
    for half in ("upper", "lower"):
        _greyed(controls[half], controls[f"{half}_strength"])
    caption = "The same nats, handed down by a rule for the upper and one for the lower layers."
    return kit.Panel("rule_bench", find, draw, controls, settings, caption)


OWN = {"gamma": "gamma", "epsilon": "epsilon", "alpha2-beta1": "beta"}
"""Rules that have a parameter, and its name."""


def _greyed(rule: widgets.Dropdown, strength: widgets.FloatLogSlider) -> None:
    """Leave the slider alive only where the rule has a parameter."""

    def follow(_change: object = None) -> None:
        strength.disabled = rule.value not in OWN

    rule.observe(follow, names="value")
    follow()


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
    own = {OWN[rule]: strength} if rule in OWN else {}
    biased = {} if rule == "flat" else {"bias": bias}
    return rules.COMPOSITES[rule](pixels, **own, **biased)


def formula(rule: str, strength: float) -> str:
    """The rule as mathtext with its present value; c are contributions, z their sums."""
    plus = r"$R_i=\sum_j\ \frac{c_{ij}^+}{z_j^+}\ R_j$"
    signed = r"c_{ij}^-"
    return {
        "z+": plus,
        "gamma": rf"$R_i=\sum_j\ \frac{{{1 + strength:.2f}\,c_{{ij}}^+ + {signed}}}"
        rf"{{{1 + strength:.2f}\,z_j^+ + z_j^-}}\ R_j$",
        "epsilon": rf"$R_i=\sum_j\ \frac{{c_{{ij}}}}{{z_j \pm {strength:.2f}}}\ R_j$",
        "alpha2-beta1": rf"$R_i=\sum_j\ ({1 + strength:.2f}\,\frac{{c_{{ij}}^+}}{{z_j^+}}"
        rf" - {strength:.2f}\,\frac{{{signed}}}{{z_j^-}})\ R_j$",
        "flat": r"$R_i=\sum_j\ \frac{[i\ feeds\ j]}{n_j}\ R_j$",
    }[rule]


def rule_view(
    wb: Workbench,
    scene: int,
    below: dict[str, Tensor],
    above: list[str],
    formulae: tuple[str, str],
) -> View:
    """Picture, pixel map, how many nats are left at every layer on the way down; the formulae."""
    sample = kit.sample(wb, scene)
    totals = {name: [values[0].double().sum().item()] for name, values in below.items()}
    into, out = totals[wb.layer][0], totals["pixels"][0]
    tiles = [
        kit.asked(wb, sample),
        Map(
            values=plots.to_map(below["pixels"])[0],
            title=f"{into:.1f} nats in, {out:.1f} nats out",
            unit="nats / pixel",
            outline=sample.mask,
            width=1.25,
        ),
        Bars(rows=totals, title="the ledger: nats in every layer", number="{:.1f}", width=1.25),
    ]
    upper, lower = formulae
    notes = [
        f"upper layers, from {above[0]}:   {upper}",
        f"lower layers, below {above[0]}:   {lower}",
    ]
    return View(rows=[(300, tiles)], notes=["", notes[0], "", notes[1], ""])
