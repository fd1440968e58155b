"""Progress of what takes long: a bar on the screen, or a report to someone who may stop it.

Loops that a panel may run, and that can take more than two seconds, run over :func:`track` or count
on a :func:`counter`. As a rule both are tqdm. Within :func:`watched` they report to a function
instead: it is called at every step, and ends the work by raising :class:`Cancelled`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")
Report = Callable[[str, int, int | None], None]
"""Takes what is being done, how many steps of it are done, and how many there are, if known."""

_report: ContextVar[Report | None] = ContextVar("report", default=None)


class Cancelled(Exception):
    """The work was stopped from outside; nothing of it was kept."""


@contextmanager
def watched(report: Report) -> Iterator[None]:
    """Call ``report`` at every step of the loops within, on this thread, in place of any bar."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def track(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """``items`` one by one, counted; ``total`` says how many where they have no length."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    with counter(label, total) as count:
        for item in items:
            yield item
            count.update()


class Watched:
    """A counter that reports instead of drawing a bar; see :func:`counter`."""

    def __init__(self, label: str, total: int | None, report: Report) -> None:
        self.label, self.total, self.report, self.done = label, total, report, 0
        self.update(0)

    def update(self, steps: int = 1) -> None:
        """So many steps more are done."""
        self.done += steps
        self.report(self.label, self.done, self.total)


def printable() -> None:
    """Let ``print`` escape what the console cannot show, such as a file's name in Chinese."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


Counter = tqdm | Watched


def counter(label: str, total: int | None) -> AbstractContextManager[Counter]:
    """A context with ``update(steps=1)``; a bar appears after two seconds and leaves no trace."""
    report = _report.get()
    if report is None:
        return tqdm(desc=label, total=total, delay=2, leave=False)
    return nullcontext(Watched(label, total, report))
