"""One panel for several networks: a control above it chooses which."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ipywidgets as widgets

from riba.show.panels.panel import Panel
from riba.workbench import Workbench


class ByNetwork:
    """A panel of each network, made when the network is first chosen.

    Parameters
    ----------
    make
        A function of :mod:`riba.panels`.
    workbenches
        By the name that the control shows; the first is chosen at first.
    settings
        First values by control, of every panel.

    Attributes
    ----------
    choice
        The control.
    panels
        Those made so far, by name.
    """

    def __init__(
        self, make: Callable[..., Panel], workbenches: Mapping[str, Workbench], **settings: object
    ) -> None:
        self._make, self._workbenches, self._settings = make, dict(workbenches), settings
        self.panels: dict[str, Panel] = {}
        self.choice = widgets.ToggleButtons(options=list(self._workbenches), description="network")
        self.choice.style.button_width = "auto"
        self.widget = widgets.VBox([self.choice])
        self._show()
        self.choice.observe(self._choose, names="value")

    @property
    def panel(self) -> Panel:
        """That of the chosen network."""
        return self.panels[self.choice.value]

    def _choose(self, _change: object) -> None:
        try:
            self._show()
        except Exception as error:  # such as that a workbench has no pictures
            self.widget.children = self.choice, widgets.Label(str(error))

    def _show(self) -> None:
        name = self.choice.value
        if name not in self.panels:
            self.widget.children = self.choice, widgets.Label("the first picture is computed …")
            self.panels[name] = self._make(self._workbenches[name], **self._settings)
        self.widget.children = self.choice, self.panel.display.widget

    def _repr_mimebundle_(self, **_options: object) -> dict[str, object]:
        shown = self.panels.get(self.choice.value)
        return self.widget._repr_mimebundle_() | (shown.still() if shown else {})
