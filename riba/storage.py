"""What is kept: files that are whole or not there, and a bounded memory."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

DATA = Path(__file__).resolve().parent.parent / "data"
"""Where what is bundled and cached lies."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write to that takes the place of ``path`` when all has been written.

    Who reads ``path`` sees the old file or the new one, never a part; after an error the old one.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


Thing = TypeVar("Thing")


class Kept(Generic[Thing]):
    """Things by key; of more than ``most`` the one used longest ago is forgotten.

    For values that a caller may fail to make (``functools.lru_cache`` wants to make them itself).
    Several threads may share it.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._things: OrderedDict[Hashable, Thing] = OrderedDict()
        self._lock = Lock()

    def recall(self, key: Hashable) -> Thing | None:
        """What was remembered under ``key``, used once more now; None where nothing is."""
        with self._lock:
            if key in self._things:
                self._things.move_to_end(key)
            return self._things.get(key)

    def remember(self, key: Hashable, thing: Thing) -> Thing:
        """Keep ``thing`` under ``key``, and hand it back."""
        with self._lock:
            self._things[key] = thing
            while len(self._things) > self.most:
                self._things.popitem(last=False)
        return thing

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._things.clear()
