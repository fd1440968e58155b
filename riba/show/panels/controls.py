"""Controls of one look, and what they offer."""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets as widgets

from riba.compare.methods import METHODS
from riba.method import network
from riba.workbench import Workbench

METHODS_OFFERED = [name for name in METHODS if name != "oracle"]
"""Methods that a panel lets one choose from: all but the mask itself."""


def control(kind: type, label: str, **traits: object) -> widgets.ValueWidget:
    """A widget of this kind, with the label and width that all have; it answers on release."""
    widget = kind(description=label, style={"description_width": "10.5em"}, **traits)
    widget.layout.width = "410px"
    if widget.has_trait("continuous_update"):
        widget.continuous_update = False
    return widget


def scene_slider(wb: Workbench) -> widgets.IntSlider:
    """Which of the first 200 test scenes, or photos."""
    return control(widgets.IntSlider, "test scene", value=3, max=min(200, len(wb.test)) - 1)


def method_list(most: int, first: tuple[str, ...]) -> widgets.SelectMultiple:
    """Up to ``most`` methods: a list to click, with Ctrl or Shift for more than one."""
    label = f"methods, up to {most}"
    return control(widgets.SelectMultiple, label, options=METHODS_OFFERED, value=first, rows=6)


def check_count(methods: tuple[str, ...], most: int) -> None:
    """Refuse no methods, or more than there is room for.

    Raises
    ------
    ValueError
        Says how many to choose.
    """
    if not 1 <= len(methods) <= most:
        raise ValueError(f"choose one to {most} methods, not {len(methods)}")


def layer_list(wb: Workbench) -> widgets.Dropdown:
    """One of the workbench's depths."""
    return control(widgets.Dropdown, "l, the layer", options=strides(wb), value=wb.layer)


def strides(wb: Workbench) -> dict[str, str]:
    """Label, which is name and stride, to name of the workbench's depths, the shallowest first."""
    image = wb.test[0].image[None]
    sides = {name: network.run_until(wb.model, name, image).shape[-1] for name in wb.depths[::-1]}
    return {f"{name}, stride {image.shape[-1] // side}": name for name, side in sides.items()}


def set_value(controls: Mapping[str, widgets.ValueWidget], name: str, value: object) -> None:
    """Set the control ``name``.

    Raises
    ------
    ValueError
        There is no such control, or it does not take the value.
    """
    if name not in controls:
        raise ValueError(f"no control {name!r}; {network.near_matches(name, controls)}")
    try:
        controls[name].value = value
    except Exception as error:  # traitlets raise errors of several kinds
        raise ValueError(f"{name} cannot be {value!r}: {error}") from error
    if controls[name].value != value:
        raise ValueError(f"{name} cannot be {value!r}: the nearest is {controls[name].value!r}")
