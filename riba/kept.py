"""A small memory: the few things that were used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

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
