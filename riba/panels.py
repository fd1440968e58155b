"""Panels: controls beside one picture, in a notebook.

Behind every panel stands a pure function ``render(**parameters) -> Figure``; :class:`Panel` is the
wiring. A panel leaves a still picture behind for readers without a kernel.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from html import escape

import ipywidgets as widgets
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor
from zennit.core import Composite

from riba import datasets, metrics, models, plots, relevance, rules
from riba.bottleneck import Information, InformationBottleneck
from riba.methods import METHODS
from riba.workbench import Workbench

BADGES = {
    "current": ("#228833", "the picture shows these settings"),
    "computing": ("#BB8800", "computing …"),
    "failed": ("#CC3311", "failed"),
}


class Panel:
    """Controls and the picture they make.

    Parameters
    ----------
    render
        Pure: the controls' values by name to a figure.
    controls
        Widgets with a ``value``, by the parameter they set.
    width
        Width of the picture in CSS pixels, the same for every state of the controls.

    Attributes
    ----------
    state
        ``"current"``, ``"computing"`` or ``"failed"``: the picture belongs to the controls only
        in the first.
    message
        What went wrong, in words, where the state is ``"failed"``.
    """

    def __init__(
        self,
        render: Callable[..., Figure],
        controls: Mapping[str, widgets.Widget],
        *,
        width: int = 860,
    ) -> None:
        self.render, self.controls = render, dict(controls)
        self.initial = self.values
        self.picture = widgets.Image(format="png", layout=widgets.Layout(width=f"{width}px"))
        self.badge = widgets.HTML()
        reset = widgets.Button(description="Reset", tooltip="Back to the first settings")
        reset.on_click(lambda _button: self.reset())
        for control in self.controls.values():
            control.observe(self._on_change, names="value")
        self._quiet = False
        rows = widgets.VBox([*self.controls.values(), widgets.HBox([reset, self.badge])])
        self.widget = widgets.VBox([rows, self.picture])
        self.refresh()

    @property
    def values(self) -> dict[str, object]:
        """The controls' present values by parameter."""
        return {name: control.value for name, control in self.controls.items()}

    def reset(self) -> None:
        """Set every control to its first value and draw once."""
        self._quiet = True
        try:
            for name, value in self.initial.items():
                self.controls[name].value = value
        finally:
            self._quiet = False
        self.refresh()

    def refresh(self) -> None:
        """Draw the picture for the present values; an error becomes a sentence in the panel."""
        self._show("computing")
        open_before = set(plt.get_fignums())
        try:
            self.picture.value = _png(self.render(**self.values))
        except Exception as error:  # whatever went wrong belongs before the reader
            self._show("failed", f"{type(error).__name__}: {error}")
            for number in set(plt.get_fignums()) - open_before:  # a figure left half drawn
                plt.close(number)
        else:
            self._show("current")

    def _on_change(self, _change: object) -> None:
        if not self._quiet:
            self.refresh()

    def _show(self, state: str, message: str = "") -> None:
        self.state, self.message = state, message
        colour, text = BADGES[state]
        words = escape(f"{text}: {message}" if message else text)
        self.badge.value = f'<span style="color:{colour}">●</span> {words}'
        self.picture.layout.opacity = "1" if state == "current" else "0.35"

    def _repr_mimebundle_(self, **_options: object) -> dict[str, object]:
        live = self.widget._repr_mimebundle_()
        if self.state == "failed":
            return {**live, "text/plain": f"a panel that failed: {self.message}"}
        still = base64.b64encode(self.picture.value).decode()
        return {**live, "image/png": still, "text/plain": "a panel; this is its first picture"}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with plt.style.context(plots.STYLE):
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def _slider(kind: type, label: str, **options: object) -> widgets.Widget:
    """A slider that computes on release and shows its value as text."""
    return kind(
        description=label,
        continuous_update=False,
        style={"description_width": "11em"},
        layout=widgets.Layout(width="36em"),
        **options,
    )


def _choice(label: str, options: object, value: object) -> widgets.Dropdown:
    return widgets.Dropdown(
        description=label,
        options=options,
        value=value,
        style={"description_width": "11em"},
        layout=widgets.Layout(width="36em"),
    )


# --- 02: the bottleneck ----------------------------------------------------------------------

DEPTHS = {"stride 2": "features.6", "stride 4": "features.11", "stride 8": "features.14"}
"""Bottleneck layers of the bundled network by their stride."""


def bottleneck(wb: Workbench, scenes: int = 50) -> Panel:
    """Turn β and the layer, and watch what passes: notebook 02."""

    @lru_cache(maxsize=32)
    def measure(scene: int, beta: float, layer: str) -> Information:
        at = wb.at(layer)
        image = wb.test[scene].image[None]
        iba = InformationBottleneck(at.model, layer, at.statistics, beta=beta)
        return iba(image, wb.predict(image).argmax(1))

    def render(scene: int, beta: float, layer: str) -> Figure:
        return bottleneck_figure(wb, scene, measure(scene, beta, layer))

    controls = {
        "scene": _slider(widgets.IntSlider, "test scene", value=3, max=scenes - 1),
        "beta": _slider(
            widgets.FloatLogSlider, "β, price of a nat", value=10, min=-1, max=3, step=0.25
        ),
        "layer": _choice("l, the layer", DEPTHS, models.SCENENET_LAYER),
    }
    return Panel(render, controls)


def bottleneck_figure(wb: Workbench, scene: int, information: Information) -> Figure:
    """One test scene: picture, bits per pixel, mean λ, and the course of the optimisation."""
    sample = wb.test[scene]
    figure, axes = plt.subplots(1, 4, figsize=(10.5, 2.7), width_ratios=[1, 1, 1, 1.2])
    plots.show_image(axes[0], wb.to_rgb(sample.image), f"{wb.class_names[sample.label]}")
    bits = information.bits(sample.mask.shape)[0]
    plots.show_map(axes[1], bits, f"{bits.sum():.1f} bits pass", unit="bits / pixel")
    plots.show_outline(axes[1], sample.mask)
    openness = information.lambda_[0].mean(0)
    plots.show_map(axes[2], openness, "mean λ over channels", unit="share let through", limit=1)
    trace = information.trace
    course = axes[3]
    course.plot(trace.information[:, 0] / math.log(2), color="C0")
    course.set(xlabel="step", yscale="log")
    course.set_ylabel("information (bits)", color="C0")
    other = course.twinx()
    other.plot(trace.cross_entropy[:, 0], color="C1")
    other.set_ylabel("cross-entropy (nats)", color="C1")
    other.set_ylim(bottom=0)
    other.spines.right.set_visible(True)
    settled = "settled" if information.settled[0] else "not settled: take more steps"
    p_open, p = information.open_probability[0], information.probability[0]
    course.set_title(f"p(class): {p_open:.2f} open, {p:.2f} through\n{settled}")
    return figure


# --- 03: how fine a bottleneck can be ---------------------------------------------------------


def resolution(wb: Workbench, scenes: int = 50) -> Panel:
    """Move the bottleneck to larger and smaller cells, and see what they can tell: notebook 03."""

    @lru_cache(maxsize=32)
    def measure(scene: int, layer: str) -> Tensor:
        image = wb.test[scene].image[None]
        at = wb.at(layer)
        iba = InformationBottleneck(at.model, layer, at.statistics)
        return iba(image, wb.predict(image).argmax(1)).bits(image.shape[-2:])

    def render(scene: int, layer: str) -> Figure:
        return resolution_figure(wb, scene, layer, measure(scene, layer))

    controls = {
        "scene": _slider(widgets.IntSlider, "test scene", value=3, max=scenes - 1),
        "layer": _choice("l, the layer", DEPTHS, models.SCENENET_LAYER),
    }
    return Panel(render, controls)


def resolution_figure(wb: Workbench, scene: int, layer: str, bits: Tensor) -> Figure:
    """Picture, the best map that cells of this size allow, and IBA's, with rank accuracies."""
    sample = wb.test[scene]
    stride = {name: int(label.split()[1]) for label, name in DEPTHS.items()}[layer]
    best = metrics.best_at_stride(sample.mask[None], stride)
    figure, axes = plt.subplots(1, 3, figsize=(8, 2.8))
    plots.show_image(axes[0], wb.to_rgb(sample.image), wb.class_names[sample.label])
    plots.show_outline(axes[0], sample.mask)
    for ax, values, title in (
        (axes[1], best, f"best of {stride}×{stride}"),
        (axes[2], bits, "IBA"),
    ):
        score = metrics.rank_accuracy(values, sample.mask[None]).item()
        unit = "bits / pixel" if values is bits else "share of the cell on the object"
        plots.show_map(ax, values[0], f"{title}: rank accuracy {score:.2f}", unit=unit)
        plots.show_outline(ax, sample.mask)
    return figure


# --- 04: the rules ---------------------------------------------------------------------------


def rule_bench(wb: Workbench, scenes: int = 50) -> Panel:
    """Choose a rule and its parameter, and see where the same nats arrive: notebook 04."""

    @lru_cache(maxsize=32)
    def measure(scene: int) -> Information:
        image = wb.test[scene].image[None]
        iba = InformationBottleneck(wb.model, wb.layer, wb.statistics)
        return iba(image, wb.predict(image).argmax(1))

    def render(scene: int, rule: str, strength: float, pixels: str, bias: bool) -> Figure:
        composite = tuned(rule, strength, pixels, bias)
        image, nats = wb.test[scene].image[None], measure(scene).nats
        below = relevance.descend_all(wb.model, wb.layer, image, nats, composite)
        return rule_figure(wb, scene, below, formula(rule, strength))

    controls = {
        "scene": _slider(widgets.IntSlider, "test scene", value=3, max=scenes - 1),
        "rule": _choice("rule in the body", list(rules.COMPOSITES), "z+"),
        "strength": _slider(
            widgets.FloatLogSlider, "γ, ε or β of the rule", value=0.25, min=-2, max=1, step=0.1
        ),
        "pixels": _choice("rule at the pixels", list(rules.PIXELS), "flat"),
        "bias": widgets.Checkbox(value=False, description="biases take their share"),
    }
    return Panel(render, controls)


def tuned(rule: str, strength: float, pixels: str, bias: bool) -> Composite:
    """A composite with ``strength`` as its γ, its ε or its β; z⁺ and Flat have no parameter."""
    build = rules.COMPOSITES[rule]
    own = {
        "gamma": {"gamma": strength},
        "epsilon": {"epsilon": strength},
        "alpha2-beta1": {"beta": strength},
    }
    biased = {} if rule == "flat" else {"bias": bias}
    return build(pixels, **own.get(rule, {}), **biased)


def formula(rule: str, strength: float) -> str:
    """The rule as mathtext with its present value; c are contributions, z their sums."""
    plus = r"$R_i=\sum_j\ \frac{c_{ij}^+}{z_j^+}\ R_j$"
    signed = r"c_{ij}^-"
    return {
        "z+": plus,
        "epsilon-plus": plus,
        "gamma": rf"$R_i=\sum_j\ \frac{{{1 + strength:.2f}\,c_{{ij}}^+ + {signed}}}"
        rf"{{{1 + strength:.2f}\,z_j^+ + z_j^-}}\ R_j$",
        "epsilon": rf"$R_i=\sum_j\ \frac{{c_{{ij}}}}{{z_j \pm {strength:.2f}}}\ R_j$",
        "alpha2-beta1": rf"$R_i=\sum_j\ ({1 + strength:.2f}\,\frac{{c_{{ij}}^+}}{{z_j^+}}"
        rf" - {strength:.2f}\,\frac{{{signed}}}{{z_j^-}})\ R_j$",
        "flat": r"$R_i=\sum_j\ \frac{[i\ feeds\ j]}{n_j}\ R_j$",
    }[rule]


def rule_figure(wb: Workbench, scene: int, below: dict[str, Tensor], title: str) -> Figure:
    """Picture, pixel map, and how many nats are left at every layer on the way down."""
    sample = wb.test[scene]
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.1), width_ratios=[1, 1, 1.3])
    plots.show_image(axes[0], wb.to_rgb(sample.image), wb.class_names[sample.label])
    pixels = plots.to_map(below["pixels"])[0]
    signed = bool((pixels < 0).any())
    plots.show_map(axes[1], pixels, title, unit="nats / pixel", signed=signed)
    plots.show_outline(axes[1], sample.mask, "black" if signed else "white")
    plots.show_ledger(axes[2], below)
    return figure


# --- 05: Relevance-IBA -----------------------------------------------------------------------


def descent(wb: Workbench, scenes: int = 50) -> Panel:
    """Choose what starts, where, and by which rule it descends: notebook 05."""

    @lru_cache(maxsize=32)
    def explain(scene: int, source: str, layer: str, rule: str) -> tuple:
        at = wb.at(layer)
        image = wb.test[scene].image[None]
        attributor = relevance.RelevanceIBA(at.model, layer, at.statistics, rule, source)
        _, pixels = attributor(image, wb.predict(image).argmax(1))
        return attributor.information, pixels, attributor.ledger

    def render(scene: int, source: str, layer: str, rule: str) -> Figure:
        return descent_figure(wb, scene, *explain(scene, source, layer, rule))

    controls = {
        "scene": _slider(widgets.IntSlider, "test scene", value=3, max=scenes - 1),
        "source": _choice("what starts", list(relevance.SOURCES), "capacity"),
        "layer": _choice("l, the layer", DEPTHS, models.SCENENET_LAYER),
        "rule": _choice("rule", list(rules.COMPOSITES), "z+"),
    }
    return Panel(render, controls)


def descent_figure(
    wb: Workbench, scene: int, information: Information, pixels: Tensor, books: relevance.Ledger
) -> Figure:
    """Picture, IBA's bits, Relevance-IBA's nats and their overlay, with the ledger below."""
    sample = wb.test[scene]
    rgb, final = wb.to_rgb(sample.image), plots.to_map(pixels)[0]
    signed = bool((final < 0).any())
    figure, axes = plt.subplots(1, 4, figsize=(10.5, 2.9))
    plots.show_image(axes[0], rgb, wb.class_names[sample.label])
    bits = information.bits(sample.mask.shape)[0]
    plots.show_map(axes[1], bits, "IBA", unit="bits / pixel")
    plots.show_map(axes[2], final, "Relevance-IBA", unit=f"{books.unit} / pixel", signed=signed)
    plots.show_image(axes[3], plots.overlay(rgb, final.clamp(min=0)), "laid over the picture")
    figure.supxlabel(books.line(0), fontsize=8)
    return figure


# --- 06: where the most important pixels fall ----------------------------------------------------

QUICK = (
    "iba",
    "relevance-iba",
    "relevance-iba-gamma",
    "relevance-iba-joint",
    "relevance-iba-cascade",
    "capacity-product",
    "readout-iba",
    "lrp-epsilon-plus",
    "grad-cam",
    "guided-grad-cam",
    "guided-backprop",
    "deeplift",
    "gradient",
    "edges",
    "centre",
    "random",
    "oracle",
)
"""Methods that answer within a second or two."""


def allocation(wb: Workbench, scenes: int = 50) -> Panel:
    """Choose a method and a budget, and see where the most important pixels fall: notebook 06."""

    @lru_cache(maxsize=64)
    def explain(scene: int, method: str) -> Tensor:
        sample = wb.test[scene]
        images, targets, masks = datasets.stack([sample])
        return METHODS[method](wb, images, targets, masks=masks)

    def render(scene: int, method: str, share: float) -> Figure:
        return allocation_figure(wb, scene, method, explain(scene, method), share)

    controls = {
        "scene": _slider(widgets.IntSlider, "test scene", value=3, max=scenes - 1),
        "method": _choice("method", QUICK, "relevance-iba"),
        "share": _slider(
            widgets.FloatLogSlider, "p, share of pixels", value=0.1, min=-2.5, max=0, step=0.1
        ),
    }
    return Panel(render, controls)


def allocation_figure(wb: Workbench, scene: int, method: str, maps: Tensor, share: float) -> Figure:
    """Picture, map, its most important pixels over the mask, and the whole allocation curve."""
    sample = wb.test[scene]
    rgb, masks = wb.to_rgb(sample.image), sample.mask[None]
    budgets = torch.logspace(-2.5, 0, 40).tolist()
    curve = metrics.allocation_curve(maps, masks, budgets)[0]
    here = metrics.allocation_curve(maps, masks, [share])[0].item()
    area = masks.double().mean().item()
    figure, axes = plt.subplots(1, 4, figsize=(10.5, 2.8), width_ratios=[1, 1, 1, 1.3])
    plots.show_image(axes[0], rgb, wb.class_names[sample.label])
    signed = bool((maps < 0).any())
    plots.show_map(axes[1], maps[0], method, signed=signed, bar=False)
    plots.show_hits(axes[2], rgb, maps[0], sample.mask, share, f"top {share:.1%}: {here:.0%} on it")
    axes[3].plot(budgets, curve)
    axes[3].plot(budgets, [min(1, area / p) for p in budgets], color="0.3", linestyle=":")
    axes[3].axhline(area, color="0.3", linestyle=":")
    axes[3].plot([share], [here], "o", color="C1")
    axes[3].set(xscale="log", ylim=(0, 1.05), xlabel="p", ylabel="share on the object")
    axes[3].set_title(f"allocation area {metrics.allocation_area(maps, masks).item():.2f}")
    return figure
