"""The kit that every panel is built from: controls, one picture, and the truth about both.

A panel has two functions. ``find`` computes what is expensive; the names of its parameters say on
which controls it depends, and what it found is kept by their values. ``draw`` says quickly what
there is to see of it (:mod:`riba.panels.paint`). In a running kernel ``find`` works in the
background, on one thread for all panels, so that the controls stay alive: it can be watched and
cancelled, a setting that is already out of date is given up, and a burst of changes ends on the
last. What a panel knows of itself changes on the thread that it was made on, where cells run;
callbacks of controls may come on another.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import math
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from html import escape

import ipywidgets as widgets

from riba import progress
from riba.method.explicit import frozen_copy
from riba.method.network import near_matches
from riba.show import plots
from riba.show.panels.paint import SHOWN, WIDTH, Picture, View, paint
from riba.storage import Memory
from riba.testbed.datasets import Sample
from riba.workbench import Workbench

BADGES = {
    "current": ("#228833", "the picture shows these settings"),
    "stale": ("#BB8800", "the picture shows former settings"),
    "computing": ("#4477AA", "computing …"),
    "failed": ("#CC3311", "failed"),
}
STYLE = "<style>.riba-faded {opacity: 0.4} .riba-hidden {visibility: hidden}</style>"
KEYS = """const wait = setInterval(() => {
    const panel = element.closest('.riba-panel');
    panel?.addEventListener('focusin', event =>
        event.target.setAttribute('data-lm-suppress-shortcuts', 'true'));
    if (panel) clearInterval(wait);
}, 200)"""
"""Keeps JupyterLab's shortcuts off our controls: an arrow would leave the cell, an x delete it."""
SAVED, STILL = 3.0, SHOWN / WIDTH
"""Scales of a picture that is saved, and of the one that is left behind in the notebook."""
PATIENCE = 0.1
"""Seconds without a further change before work begins: a burst of changes is one."""
SHOWN_AFTER = 0.7
"""Seconds of work after which its progress is shown."""
KEPT = 24
"""Results, and pictures, that a panel keeps."""

_worker = ThreadPoolExecutor(1, "riba-panels")


class Panel:
    """Controls and the picture they make.

    Parameters
    ----------
    name
        The function of :mod:`riba.panels` that makes this panel, for copied code.
    find
        Controls' values by name, those that it has parameters for, to anything: the expensive
        part. Called once per setting, off the kernel's thread.
    draw
        What was found, and the values that it has parameters for, to what is shown: quick.
    controls
        Widgets with a ``value``, by the parameter they set, in the order of their display. Those
        that ``find`` does not take are shown in a second column: they only look.
    settings
        First values by control, in place of the controls' own.
    caption
        One sentence about the picture, saved with it.
    width
        Largest width of the picture in CSS pixels, the same for every state of the controls.

    Attributes
    ----------
    state
        ``"current"``, ``"stale"``, ``"computing"`` or ``"failed"``: the picture belongs to the
        controls only in the first.
    message
        What went wrong, in words, where the state is ``"failed"``.
    drawn, found
        How many times a picture was drawn, and how many times something was computed for it.

    Raises
    ------
    ValueError
        A setting that no control has, or a value that its control does not take.
    """

    def __init__(
        self,
        name: str,
        find: Callable[..., object],
        draw: Callable[..., View],
        controls: Mapping[str, widgets.ValueWidget],
        settings: Mapping[str, object],
        caption: str,
        *,
        width: int = SHOWN,
    ) -> None:
        self.name, self._find, self._draw, self.caption = name, find, draw, caption
        self.controls = dict(controls)
        self._defaults = self.values
        for setting, value in settings.items():
            _set(self.controls, setting, value)
        self.initial = self.values
        self.state, self.message, self.drawn, self.found = "stale", "", 0, 0
        self._results: Memory[object] = Memory(KEPT)
        self._pictures: Memory[tuple[View, bytes]] = Memory(KEPT)
        self._task: asyncio.Task | None = None
        self._loop = _running_loop()
        self._stop, self._cancelled, self._quiet = threading.Event(), False, False
        self._build(width)
        self._now()

    @property
    def values(self) -> dict[str, object]:
        """The controls' present values by parameter."""
        return {name: control.value for name, control in self.controls.items()}

    @property
    def code(self) -> str:
        """Lines that make this panel again, with its present settings, where ``wb`` is at hand."""
        changed = {
            name: value for name, value in self.values.items() if value != self._defaults[name]
        }
        arguments = "".join(f", {name}={value!r}" for name, value in changed.items())
        return f"from riba import panels\n\npanels.{self.name}(wb{arguments})"

    # --- what a user does ------------------------------------------------------------------------

    def refresh(self) -> None:
        """Bring the picture up to date: now, or in the background where a kernel is running."""
        self._show("stale")
        self._cancelled = False
        self._stop.set()  # what is being computed may be out of date: look again
        self._soon(self._wake)

    @contextmanager
    def one_change(self) -> Iterator[None]:
        """Whatever controls are set within count as one change."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False
        self.refresh()

    def reset(self) -> None:
        """Set every control to its first value and draw once."""
        with self.one_change():
            for name, value in self.initial.items():
                self.controls[name].value = value

    def add(self, widget: widgets.Widget) -> None:
        """Show ``widget`` above the controls."""
        style, *rest = self.widget.children
        self.widget.children = (style, widget, *rest)

    def cancel(self) -> None:
        """Stop what is being computed; the picture stays what it was."""
        if self._running():
            self._cancelled = True
            self._stop.set()

    def show_code(self) -> None:
        """Show :attr:`code` below the picture, and copy it where the browser lets us."""
        self._code.value, self._code.layout.display = self.code, ""
        self._clipboard.outputs = ()  # or the same code could not be copied twice
        self._clipboard.outputs = _script(
            f"navigator.clipboard?.writeText({json.dumps(self.code)})"
        )
        self._note.value = "the code is below, and in the clipboard where the browser allows it"

    def save(self) -> None:
        """Write the picture to ``figures/``, larger, with its settings as JSON."""
        if self.state != "current":
            self._note.value = "not saved: wait until the picture shows these settings"
            return
        values = self.values
        digest = hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:8]
        path = plots.FIGURES / f"panel_{self.name}_{digest}.png"
        view, _ = self._pictures.get(_all(values))
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(paint(view, scale=SAVED))
            plots.write_note(path, self.caption, {"code": self.code, **values})
        except OSError as error:
            self._note.value = escape(f"not saved: {error}")
        else:
            self._note.value = f"saved {path.parent.name}/{path.name}, with its settings as .json"

    # --- the work --------------------------------------------------------------------------------

    def _soon(self, act: Callable[[], None]) -> None:
        """``act`` on the thread that cells run on, when it is free; at once where no kernel is."""
        if self._loop is None:
            act()
        else:
            self._loop.call_soon_threadsafe(act)

    def _wake(self) -> None:
        if self._loop is None:
            self._now()
            return
        self._show("stale")
        if not self._running():
            self._task = self._loop.create_task(self._catch_up())

    def _now(self) -> None:
        """Find and draw on this thread, with ordinary progress bars."""
        wanted = self.values
        self._show("computing")
        try:
            if self._lacking(wanted):
                self._keep(wanted, self._searched(wanted))
            self._present(wanted)
        except Exception as error:  # whatever went wrong belongs before the reader
            self._show("failed", f"{type(error).__name__}: {error}")

    async def _catch_up(self) -> None:
        """Find and draw until the picture shows what the controls say."""
        while True:
            wanted = await self._settled()
            self._show("computing")
            self._stop.clear()
            try:
                if self._cancelled or self.values != wanted:
                    raise progress.Cancelled
                if self._lacking(wanted):
                    self._keep(wanted, await self._in_background(wanted))
                if self.values == wanted:
                    self._present(wanted)
                    return
            except progress.Cancelled:
                if self._cancelled:
                    self._show("stale", "cancelled")
                    return
            except Exception as error:
                if self.values == wanted:
                    self._show("failed", f"{type(error).__name__}: {error}")
                    return
            finally:
                self._hide_progress()

    async def _settled(self) -> dict[str, object]:
        """The controls' values, once they have been left alone for a moment."""
        while True:
            wanted = self.values
            await asyncio.sleep(PATIENCE)
            if self.values == wanted:
                return wanted

    async def _in_background(self, wanted: dict[str, object]) -> object:
        began, told = time.monotonic(), 0.0

        def report(label: str, done: int, total: int | None) -> None:
            nonlocal told
            if self._stop.is_set():
                raise progress.Cancelled
            now = time.monotonic()
            if now - began > SHOWN_AFTER and now - told > 0.1:
                told = now
                self._soon(partial(self._show_progress, label, done, total))

        def work() -> object:
            if self._stop.is_set():  # while it waited for another panel
                raise progress.Cancelled
            with progress.watched(report):
                return self._searched(wanted)

        return await self._loop.run_in_executor(_worker, work)

    def _searched(self, wanted: dict[str, object]) -> object:
        self.found += 1
        return self._find(**_taken(self._find, wanted))

    def _present(self, wanted: dict[str, object]) -> None:
        kept = self._pictures.get(_all(wanted))
        if kept is None:
            view = self._view(self._results.get(self._key(wanted)), wanted)
            kept = self._pictures.put(_all(wanted), (view, paint(view)))
        self._shown, picture = kept
        if self.picture.value != picture:
            self.picture.value = picture
        self._show("current")

    def _view(self, found: object, values: dict[str, object]) -> View:
        self.drawn += 1
        return self._draw(found, **_taken(self._draw, values))

    def _lacking(self, values: dict[str, object]) -> bool:
        """Whether something must be computed before these values can be shown."""
        picture = self._pictures.get(_all(values))
        result = self._results.get(self._key(values))
        return picture is None and result is None

    def _key(self, values: dict[str, object]) -> tuple:
        return _all(_taken(self._find, values))

    def _keep(self, values: dict[str, object], result: object) -> None:
        self._results.put(self._key(values), result)

    def _running(self) -> bool:
        return self._task is not None and not self._task.done()

    # --- what is seen ----------------------------------------------------------------------------

    def _build(self, width: int) -> None:
        for control in self.controls.values():
            control.observe(self._on_change, names="value")
        columns = [widgets.VBox(column) for column in self._columns() if column]
        self._go = _button("Cancel", self._on_go, "Stop computing; or compute what was stopped")
        buttons = [
            _button("Reset", self.reset, "Back to the first settings"),
            _button("Copy as code", self.show_code, "The line that makes this view again"),
            _button("Save figure", lambda: self._soon(self.save), "To figures/, with its code"),
            self._go,
        ]
        self.badge, self._note = widgets.HTML(), widgets.HTML()
        self._bar = widgets.FloatProgress(max=1, layout=widgets.Layout(width="12em"))
        self._step = widgets.Label()
        self._progress = widgets.HBox([self._bar, self._step])
        self._progress.add_class("riba-hidden")
        self._code = widgets.Textarea(
            layout=widgets.Layout(
                width="100%", max_width=f"{width}px", height="5em", margin="0", display="none"
            )
        )
        self._clipboard = widgets.Output()
        layout = widgets.Layout(width="100%", max_width=f"{width}px", margin="0")
        self.picture = widgets.Image(format="png", layout=layout)
        for part, name in (
            (self.badge, "badge"), (self.picture, "picture"), (self._progress, "progress"),
        ):  # fmt: skip
            part.add_class(f"riba-{name}")
        row = widgets.Layout(flex_flow="row wrap", max_width=f"{width}px")
        self.widget = widgets.VBox(
            [
                widgets.HTML(STYLE),
                widgets.Box(columns, layout=row),
                widgets.Box(buttons, layout=row),
                widgets.HBox([self.badge, self._progress]),
                self._note,
                self.picture,
                self._code,
                self._clipboard,
                widgets.Output(outputs=_script(KEYS)),
            ]
        )
        self.widget.add_class("riba-panel")

    def _columns(self) -> tuple[list[widgets.Widget], list[widgets.Widget]]:
        """Controls that compute, and those that only look; in halves where all compute."""
        deep = list(_taken(self._find, self.controls).values())
        look = [control for control in self.controls.values() if control not in deep]
        half = len(deep) if look or len(deep) < 4 else math.ceil(len(deep) / 2)
        return deep[:half], deep[half:] + look

    def _on_change(self, _change: object) -> None:
        if not self._quiet:
            self.refresh()

    def _on_go(self) -> None:
        self.cancel() if self._running() else self.refresh()

    def _show(self, state: str, message: str = "") -> None:
        self.state, self.message = state, message
        colour, text = BADGES[state]
        words = escape(f"{text}: {message}" if message else text)
        self.badge.value = f'<span style="color:{colour}">●</span> {words}'
        self._note.value = ""
        self._go.description = "Cancel" if state == "computing" else "Compute"
        self._go.disabled = state == "current"
        if state == "current":
            self.picture.remove_class("riba-faded")
        else:
            self.picture.add_class("riba-faded")

    def _show_progress(self, label: str, done: int, total: int | None) -> None:
        if self.state == "computing":
            self._progress.remove_class("riba-hidden")
            self._bar.value = done / total if total else 0.0
            self._step.value = f"{label}, {done} of {total}" if total else label

    def _hide_progress(self) -> None:
        self._progress.add_class("riba-hidden")

    def _repr_mimebundle_(self, **_options: object) -> dict[str, object]:
        live = self.widget._repr_mimebundle_()
        if self.state == "failed":
            return {**live, "text/plain": f"a panel that failed: {self.message}"}
        still = b64encode(paint(self._shown, scale=STILL, effort=9)).decode()
        return {**live, "image/png": still, "text/plain": "a panel; this is its first picture"}


def own(wb: Workbench) -> Workbench:
    """The workbench with a network of its own, on the CPU.

    A panel works in the background, and hangs hooks into the network while a cell may be using it.

    Raises
    ------
    ValueError
        There is nothing to show.
    """
    if not len(wb.test):
        raise ValueError(
            "this workbench has no photos to show: load it with data=, or pass photos to "
            "Workbench.of"
        )
    return replace(wb, model=frozen_copy(wb.model).cpu())


@lru_cache(maxsize=64)
def sample(wb: Workbench, scene: int) -> Sample:
    """A test scene; drawn once, because drawing one takes as long as painting the panel."""
    return wb.test[scene]


def asked(wb: Workbench, sample: Sample, mark: tuple[float, float] | None = None) -> Picture:
    """The picture of a sample under the name of its class t, with the outline of its object."""
    title = f"t = {wb.label_names[sample.label]}"
    return Picture(rgb=wb.to_rgb(sample.image), title=title, outline=sample.mask, mark=mark)


# --- small things ---------------------------------------------------------------------------------


def _script(script: str) -> tuple[dict, ...]:
    """Outputs that run JavaScript where they are shown; where that is refused, nothing happens."""
    data = {"application/javascript": script, "text/plain": ""}
    return ({"output_type": "display_data", "data": data, "metadata": {}},)


def _button(label: str, act: Callable[[], None], tooltip: str) -> widgets.Button:
    button = widgets.Button(description=label, tooltip=tooltip, layout=widgets.Layout(width="auto"))
    button.on_click(lambda _button: act())
    return button


def _set(controls: Mapping[str, widgets.ValueWidget], name: str, value: object) -> None:
    if name not in controls:
        raise ValueError(f"no control {name!r}; {near_matches(name, controls)}")
    try:
        controls[name].value = value
    except Exception as error:  # traitlets raise errors of several kinds
        raise ValueError(f"{name} cannot be {value!r}: {error}") from error
    if controls[name].value != value:
        raise ValueError(f"{name} cannot be {value!r}: the nearest is {controls[name].value!r}")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _taken(function: Callable, values: Mapping[str, object]) -> dict[str, object]:
    """Those of ``values`` that ``function`` has parameters for."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if name in parameters}


def _all(values: Mapping[str, object]) -> tuple:
    return tuple(values.values())
