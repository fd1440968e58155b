"""Controls that look alike, and what they offer."""

from __future__ import annotations

import ipywidgets as widgets
import torch

from riba.method import network
from riba.workbench import Workbench

METHODS_OFFERED = (
    "iba",
    "relevance-iba",
    "relevance-iba-gamma",
    "relevance-iba-joint",
    "relevance-iba-cascade",
    "iba-joint",
    "capacity-product",
    "readout-iba",
    "input-iba",
    "lrp-epsilon-plus",
    "grad-cam",
    "guided-grad-cam",
    "guided-backprop",
    "integrated-gradients",
    "deeplift",
    "gradient",
    "edges",
    "centre",
    "random",
)
"""Methods that a panel lets one choose from; all but ``input-iba`` answer in about a second."""


def slider(kind: type, label: str, **options: object) -> widgets.ValueWidget:
    """A slider that answers on release and shows its value as text."""
    return kind(description=label, continuous_update=False, **looks(), **options)


def choice(label: str, options: object, value: object) -> widgets.Dropdown:
    """One of several."""
    return widgets.Dropdown(description=label, options=options, value=value, **looks())


def several(label: str, options: object, value: tuple, rows: int = 5) -> widgets.SelectMultiple:
    """Any number of several: a list to click, with Ctrl or Shift for more than one."""
    return widgets.SelectMultiple(
        description=label, options=options, value=value, rows=rows, **looks()
    )


def tick(label: str, value: bool = False) -> widgets.Checkbox:
    """Yes or no."""
    return widgets.Checkbox(description=label, value=value, **looks())


def check_count(methods: tuple[str, ...], most: int) -> None:
    """Refuse no methods, or more than there is room for.

    Raises
    ------
    ValueError
        Says how many to choose.
    """
    if not 1 <= len(methods) <= most:
        raise ValueError(f"choose one to {most} methods, not {len(methods)}")


def strides(wb: Workbench) -> dict[str, str]:
    """The workbench's depths, the shallowest first, by what is shown: name and stride."""
    image = wb.test[0].image[None]
    found = {}
    for layer in reversed(wb.depths):
        with torch.no_grad():
            side = network.run_until(wb.model, layer, image).shape[-1]
        found[f"{layer}, stride {image.shape[-1] // side}"] = layer
    return found


def scene_slider(wb: Workbench) -> widgets.IntSlider:
    """Which of the first 200 test scenes, or photos."""
    last = min(200, len(wb.test)) - 1
    return slider(widgets.IntSlider, "test scene", value=min(3, last), max=last)


def looks() -> dict[str, object]:
    """Width of a control and of its label: the same for all."""
    return {
        "style": {"description_width": "10.5em"},
        "layout": widgets.Layout(width="410px"),
    }
