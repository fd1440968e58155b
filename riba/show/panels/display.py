"""The widgets of a panel and their layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape

import ipywidgets as widgets

from riba.show.panels.paint import COLOURS, SHOWN

BADGES = {
    "current": (COLOURS[2], "the picture shows these settings"),
    "stale": ("#BB8800", "the picture shows former settings"),
    "computing": ("#4477AA", "computing …"),
    "failed": ("#CC3311", "failed"),
}
"""Colour and words of each state of a panel."""
STYLE = "<style>.riba-faded {opacity: 0.4} .riba-hidden {visibility: hidden}</style>"
KEYS = """const wait = setInterval(() => {
    const panel = element.closest('.riba-panel');
    panel?.addEventListener('focusin', event =>
        event.target.setAttribute('data-lm-suppress-shortcuts', 'true'));
    if (panel) clearInterval(wait);
}, 200)"""
"""Keeps JupyterLab's shortcuts off our controls: an arrow would leave the cell, an x delete it."""


class Display:
    """A panel's widgets: columns of controls, buttons, badge, progress, note, picture and code.

    Attributes
    ----------
    widget
        All of them.
    picture, badge, code
        The picture, the state in words, and the text area for code, hidden until it is filled.
    """

    def __init__(self, columns: Sequence[Sequence[widgets.Widget]]) -> None:
        self.picture = widgets.Image(layout=_wide(margin="0")).add_class("riba-picture")
        self.badge = widgets.HTML().add_class("riba-badge")
        look = {"style": {"description_width": "initial"}, "layout": {"width": "25em"}}
        self._progress = widgets.FloatProgress(max=1, **look).add_class("riba-progress")
        self.hide_progress()
        self._note = widgets.HTML()
        self.code = widgets.Textarea(layout=_wide(height="5em", margin="0", display="none"))
        self._clipboard = widgets.Output()
        self._buttons = widgets.Box(layout=_wide(flex_flow="row wrap"))
        boxes = [widgets.VBox(column) for column in columns]
        controls = widgets.Box(boxes, layout=_wide(flex_flow="row wrap"))
        state = widgets.HBox([self.badge, self._progress])
        keys = widgets.Output(outputs=_script(KEYS))
        above = [widgets.HTML(STYLE), controls, self._buttons, state, self._note]
        below = [self.picture, self.code, self._clipboard, keys]
        self.widget = widgets.VBox([*above, *below]).add_class("riba-panel")

    def add_above(self, widget: widgets.Widget) -> None:
        """Show ``widget`` above the controls."""
        self.widget.children = (widget, *self.widget.children)

    def add_button(self, label: str, act: Callable[[], None], tooltip: str) -> None:
        """Show a button that calls ``act``; the last one added starts and cancels the work."""
        button = widgets.Button(description=label, tooltip=tooltip, layout={"width": "auto"})
        button.on_click(lambda _button: act())
        self._buttons.children = (*self._buttons.children, button)

    def show_state(self, state: str, message: str) -> None:
        """Say which state the panel is in; the picture fades unless it is current."""
        colour, text = BADGES[state]
        words = escape(f"{text}: {message}" if message else text)
        self.badge.value = f'<span style="color:{colour}">●</span> {words}'
        self._note.value = ""
        go = self._buttons.children[-1]
        go.description = "Cancel" if state == "computing" else "Compute"
        go.disabled = state == "current"
        fade = self.picture.remove_class if state == "current" else self.picture.add_class
        fade("riba-faded")

    def show_progress(self, label: str, done: int, total: int | None) -> None:
        """Show a bar with words; ``total`` is None where it is not known."""
        self._progress.value = done / total if total else 0.0
        self._progress.description = f"{label}, {done} of {total}" if total else label
        self._progress.remove_class("riba-hidden")

    def hide_progress(self) -> None:
        """Hide the bar; it keeps its place."""
        self._progress.add_class("riba-hidden")

    def note(self, words: str) -> None:
        """Show a line above the picture, until the state changes."""
        self._note.value = escape(words)

    def show_code(self, code: str) -> None:
        """Show ``code`` below the picture, and copy it where the browser allows that."""
        self.code.value, self.code.layout.display = code, ""
        self._clipboard.outputs = ()  # or the same code could not be copied twice
        self._clipboard.outputs = _script(f"navigator.clipboard?.writeText({json.dumps(code)})")
        self.note("the code is below, and in the clipboard where the browser allows it")


def _wide(**layout: str) -> widgets.Layout:
    return widgets.Layout(width="100%", max_width=f"{SHOWN}px", **layout)


def _script(script: str) -> tuple[dict, ...]:
    """Outputs that run JavaScript where they are shown; where that is refused, nothing happens."""
    data = {"application/javascript": script, "text/plain": ""}
    return ({"output_type": "display_data", "data": data, "metadata": {}},)
