"""What is kept: files that are whole or not there, and a bounded memory."""

from __future__ import annotations

import os
import platform
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import Lock, get_ident
from typing import Generic, TypeVar

DATA = Path(__file__).resolve().parent.parent / "data"
"""Where what is bundled and cached lies."""


def versions() -> dict[str, str]:
    """Versions of what a map depends on."""
    packages = ("riba", "torch", "zennit", "numpy", "matplotlib")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def place(path: Path | str) -> Path:
    """A path as a user writes it: ``~`` is the home folder."""
    return Path(path).expanduser()


@contextmanager
def unless_full(what: str) -> Iterator[None]:
    """Writing that may fail (a full disk, no permission): what was computed is worth more.

    Warns
    -----
    UserWarning
        ``what`` was not stored, and why.
    """
    try:
        yield
    except OSError as error:
        text = f"{what} could not be stored ({error}) and will be computed again next time"
        warnings.warn(text, stacklevel=4)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write to that takes the place of ``path`` when all has been written.

    Who reads ``path`` sees the old file or the new one, never a part; after an error the old one.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


Value = TypeVar("Value")


class Memory(Generic[Value]):
    """A bounded memory: values by key; beyond ``size`` the least recently used one is dropped.

    Several threads may share it. A pickled or copied memory is empty.
    """

    def __init__(self, size: int = 48) -> None:
        self.size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple:
        return Memory, (self.size,)

    def get(self, key: Hashable) -> Value | None:
        """The value of ``key``, which counts as used now; None where there is none."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> Value:
        """Store ``value`` under ``key`` and return it."""
        with self._lock:
            self._values[key] = value
            while len(self._values) > self.size:
                self._values.popitem(last=False)
        return value

    def once(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """The value of ``key``, computed where it is missing; an error stores nothing."""
        value = self.get(key)
        return self.put(key, compute()) if value is None else value
