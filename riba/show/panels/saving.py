"""What is kept of a panel outside it: the line that makes it again, and its figure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from riba.show import plots
from riba.show.panels.paint import View, paint

SCALE = 3.0
"""Of a saved picture, to the one in the panel."""


def code(name: str, values: Mapping[str, object], defaults: Mapping[str, object]) -> str:
    """Lines that make the panel ``name`` with those ``values`` that differ from the defaults."""
    changed = {key: value for key, value in values.items() if value != defaults[key]}
    arguments = "".join(f", {key}={value!r}" for key, value in changed.items())
    return f"from riba import panels\n\npanels.{name}(wb{arguments})"


def save(name: str, view: View, caption: str, code: str, values: Mapping[str, object]) -> Path:
    """Write ``figures/panel_NAME_HASH.png`` and ``.json``, the hash that of ``values``.

    Returns
    -------
    The PNG's path, relative to the folder that ``figures/`` lies in.

    Raises
    ------
    OSError
        The files cannot be written.
    """
    digest = hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:8]
    path = plots.FIGURES / f"panel_{name}_{digest}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(paint(view, scale=SCALE))
    plots.write_note(path, caption, {"code": code, **values})
    return path.relative_to(plots.FIGURES.parent)
