"""Base class for panels: controls, a picture, and the state of the two.

A panel has two functions. ``compute`` does the expensive part: the names of its parameters say on
which controls it depends, and its result is stored by their values. ``draw`` turns the result into
a :class:`~riba.show.panels.paint.View`, quickly. In a running kernel ``compute`` runs in the
background, on one thread for all panels, so that the controls stay responsive: it can be watched
and cancelled, work on outdated settings is stopped, and a burst of changes is computed once, for
the last. State is modified on the kernel's main thread only; callbacks of controls may come on
another.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

import ipywidgets as widgets

from riba import progress
from riba.show.panels import saving
from riba.show.panels.controls import set_value
from riba.show.panels.display import Display
from riba.show.panels.paint import SHOWN, WIDTH, View, paint
from riba.workbench import Workbench

STILL = SHOWN / WIDTH
"""Scale of the still picture that is left behind in the notebook."""
PATIENCE = 0.1
"""Seconds without a further change before work begins: a burst of changes is one."""
PROGRESS_AFTER, PROGRESS_EVERY = 0.7, 0.1
"""Seconds of work after which progress is first displayed, and between its updates."""

_worker = ThreadPoolExecutor(1, "riba-panels")


class Panel:
    """Controls and the picture they make.

    Parameters
    ----------
    wb
        A workbench of the panel's own (:func:`riba.show.panels.samples.private_copy`), whose
        memory stores results and pictures.
    name
        The function of :mod:`riba.panels` that makes this panel, for copied code.
    compute
        Controls' values by name, those that it has parameters for, to any result: the expensive
        part. Called once per setting, off the kernel's main thread.
    draw
        The workbench, the result, and the values that it has parameters for, to a view: quick.
    controls
        Widgets with a ``value``, by the parameter they set, in the order of their display. Those
        that ``compute`` does not take stand in a second column: they only change the view.
    settings
        First values by control, in place of the controls' own.
    caption
        One sentence about the picture, saved with it.

    Attributes
    ----------
    state
        ``"current"``, ``"stale"``, ``"computing"`` or ``"failed"``: the picture belongs to the
        controls only in the first.
    message
        What went wrong, in words, where the state is ``"failed"``.
    display
        The widgets, as a :class:`~riba.show.panels.display.Display`.

    Raises
    ------
    ValueError
        A setting that no control has, or a value that its control does not take.
    """

    def __init__(
        self,
        wb: Workbench,
        name: str,
        compute: Callable[..., object],
        draw: Callable[..., View],
        controls: Mapping[str, widgets.ValueWidget],
        settings: Mapping[str, object],
        caption: str,
    ) -> None:
        self.name, self.caption, self.controls = name, caption, dict(controls)
        self._wb, self._compute, self._draw = wb, compute, draw
        self._defaults = self.values
        for setting, value in settings.items():
            set_value(self.controls, setting, value)
        self.initial = self.values
        self._task: asyncio.Task | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        with suppress(RuntimeError):  # no kernel is running
            self._loop = asyncio.get_running_loop()
        self._stop, self._cancelled, self._in_group = threading.Event(), False, False
        for control in self.controls.values():
            control.observe(self._on_change, names="value")
        self.display = Display(self._columns())
        add = self.display.add_button
        add("Reset", self.reset, "Back to the first settings")
        add("Copy as code", lambda: self.display.show_code(self.code), "Code that makes this view")
        add("Save figure", lambda: self._on_main_thread(self.save), "To figures/, with its code")
        add("Cancel", self._on_go, "Stop computing; or compute after a stop")
        self._compute_now()

    @property
    def values(self) -> dict[str, object]:
        """The controls' present values by parameter."""
        return {name: control.value for name, control in self.controls.items()}

    @property
    def code(self) -> str:
        """Lines that make this panel again, with its present settings, where ``wb`` is at hand."""
        return saving.code(self.name, self.values, self._defaults)

    # --- what a user does ------------------------------------------------------------------------

    def refresh(self) -> None:
        """Bring the picture up to date: now, or in the background where a kernel is running."""
        self._show("stale")
        self._cancelled = False
        self._stop.set()  # the work in progress may be outdated: compare with the controls again
        self._on_main_thread(self._start)

    @contextmanager
    def one_change(self) -> Iterator[None]:
        """All controls that are set within count as one change."""
        self._in_group = True
        try:
            yield
        finally:
            self._in_group = False
        self.refresh()

    def reset(self) -> None:
        """Set every control to its first value and draw once."""
        with self.one_change():
            for name, value in self.initial.items():
                self.controls[name].value = value

    def cancel(self) -> None:
        """Stop the work in progress; the picture stays as it was."""
        self._cancelled = True
        self._stop.set()

    def save(self) -> None:
        """Write the picture to ``figures/``, larger, with its settings as JSON."""
        words = "not saved: wait until the picture shows these settings"
        if self.state == "current":
            try:
                path = saving.save(self.name, self._view, self.caption, self.code, self.values)
                words = f"saved {path}, with its settings as .json"
            except OSError as error:
                words = f"not saved: {error}"
        self.display.note(words)

    # --- the work --------------------------------------------------------------------------------

    def _on_main_thread(self, act: Callable[[], None]) -> None:
        """Call ``act`` on the thread that cells run on, once it is free; at once without kernel."""
        if self._loop is None:
            act()
        else:
            self._loop.call_soon_threadsafe(act)

    def _start(self) -> None:
        if self._loop is None:
            self._compute_now()
        elif not self._running():
            self._show("stale")
            self._task = self._loop.create_task(self._catch_up())

    def _compute_now(self) -> None:
        """Compute and draw on this thread, with ordinary progress bars."""
        self._show("computing")
        try:
            self._present(self.values)
        except Exception as error:  # whatever went wrong is shown to the reader
            self._fail(error)

    async def _catch_up(self) -> None:
        """Compute and draw until the picture shows what the controls say."""
        while True:
            values = self.values
            await asyncio.sleep(PATIENCE)
            if self.values != values:
                continue
            self._show("computing")
            self._stop.clear()
            try:
                if self._cancelled or self.values != values:
                    raise progress.Cancelled
                if self._wb.memory.get(self._result_key(values)) is None:
                    await self._loop.run_in_executor(_worker, self._compute_watched, values)
                if self.values == values:
                    self._present(values)
                    return
            except progress.Cancelled:
                if self._cancelled:
                    self._show("stale", "cancelled")
                    return
            except Exception as error:
                if self.values == values:
                    self._fail(error)
                    return
            finally:
                self.display.hide_progress()

    def _compute_watched(self, values: dict[str, object]) -> None:
        """Compute on the background thread, reporting progress, until it is to stop."""
        next_update = time.monotonic() + PROGRESS_AFTER

        def report(label: str, done: int, total: int | None) -> None:
            nonlocal next_update
            if self._stop.is_set():
                raise progress.Cancelled
            if time.monotonic() > next_update:
                next_update = time.monotonic() + PROGRESS_EVERY
                self._on_main_thread(partial(self._show_progress, label, done, total))

        report("waiting", 0, None)  # it may have been stopped while another panel worked
        with progress.watched(report):
            self._result(values)

    def _result_key(self, values: dict[str, object]) -> tuple:
        return self.name, "result", *_accepted(self._compute, values).values()

    def _result(self, values: dict[str, object]) -> object:
        compute = partial(self._compute, **_accepted(self._compute, values))
        return self._wb.memory.once(self._result_key(values), compute)

    def _present(self, values: dict[str, object]) -> None:
        result = self._result(values)

        def drawing() -> tuple[View, bytes]:
            view = self._draw(self._wb, result, **_accepted(self._draw, values))
            return view, paint(view)

        key = (self.name, "picture", *values.values())
        self._view, self.display.picture.value = self._wb.memory.once(key, drawing)
        self._show("current")

    def _running(self) -> bool:
        return self._task is not None and not self._task.done()

    # --- controls and display --------------------------------------------------------------------

    def _columns(self) -> list[list[widgets.Widget]]:
        """Controls of ``compute``, and those of the view; in halves where all are of the former."""
        computing = list(_accepted(self._compute, self.controls).values())
        viewing = [control for control in self.controls.values() if control not in computing]
        first = len(computing) if viewing else (len(computing) + 1) // 2
        return [computing[:first], computing[first:] + viewing]

    def _on_change(self, _change: object) -> None:
        if not self._in_group:
            self.refresh()

    def _on_go(self) -> None:
        if self._running():
            self.cancel()
        else:
            self.refresh()

    def _show(self, state: str, message: str = "") -> None:
        self.state, self.message = state, message
        self.display.show_state(state, message)

    def _fail(self, error: Exception) -> None:
        self._show("failed", f"{type(error).__name__}: {error}")

    def _show_progress(self, label: str, done: int, total: int | None) -> None:
        if self.state == "computing":
            self.display.show_progress(label, done, total)

    def _repr_mimebundle_(self, **_options: object) -> dict[str, object]:
        return self.display.widget._repr_mimebundle_() | self.still()

    def still(self) -> dict[str, str]:
        """What a notebook without a kernel shows, by MIME type: the picture, or what went wrong."""
        if self.state == "failed":
            return {"text/plain": f"a panel that failed: {self.message}"}
        picture = b64encode(paint(self._view, scale=STILL, effort=9)).decode()
        return {"image/png": picture, "text/plain": "a panel; this is its first picture"}


def _accepted(function: Callable, values: Mapping[str, object]) -> dict[str, object]:
    """Those of ``values`` that ``function`` has parameters for."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if name in parameters}
