"""Executes the notebooks in order and normalises what is committed: ``make figures``.

Every notebook runs in a fresh kernel from the first cell to the last; nothing is written if a
cell fails. What is kept is what a reader needs: no widget state, no progress bars, no timings,
and a picture in the place of every panel.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parent
LIVE = "application/vnd.jupyter.widget-view+json"
KEPT = ("slideshow", "tags")
"""Metadata of a cell that its author set."""
FOLDED = 5
"""Lines from which on a cell with the tag ``hide-input`` is folded in JupyterLab, too."""
LARGEST, ALTOGETHER = 2_000_000, 12_000_000
"""Bytes that one notebook, and all of them, may have."""


class PanelFailed(Exception):
    """A panel shows its error in words, and the notebook runs on; a figure would be missing."""


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook at ``path`` with fresh outputs, run in its own folder."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(HERE)}}
    client = NotebookClient(
        notebook, timeout=None, kernel_name="python3", coalesce_streams=True, resources=resources
    )
    client.execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            words = output.get("data", {}).get("text/plain", "")
            if words.startswith("a panel that failed"):
                raise PanelFailed(words)
    return normalise(notebook)


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leave what is the same in every run: sources and still outputs."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:02d}"
        cell.metadata = {key: value for key, value in cell.metadata.items() if key in KEPT}
        if "hide-input" in cell.metadata.get("tags", ()) and len(cell.source.split("\n")) >= FOLDED:
            cell.metadata["jupyter"] = {"source_hidden": True}
        if cell.cell_type == "code":
            cell.outputs = [still(output) for output in cell.outputs if not is_volatile(output)]
    return notebook


def is_volatile(output: nbformat.NotebookNode) -> bool:
    """Progress bars and warnings go to stderr or to a live widget; neither is for readers."""
    stream = output.output_type == "stream" and output.name == "stderr"
    return stream or (LIVE in output.get("data", {}) and "image/png" not in output.data)


def still(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The output without its live view, where it has a picture to show in its place."""
    if "image/png" in output.get("data", {}):
        output.data.pop(LIVE, None)
    return output


def main() -> int:
    """Command line: all notebooks, or those named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(HERE.glob("*.ipynb")))
    paths = parser.parse_args().notebooks
    for path in paths:
        began = time.perf_counter()
        try:
            notebook = execute(path)
        except (CellExecutionError, PanelFailed) as error:
            print(f"{path.name} failed:\n{error}", file=sys.stderr)
            return 1
        text = nbformat.writes(notebook) + "\n"
        if len(text) > LARGEST:
            print(f"{path.name}: {len(text):,} bytes, at most {LARGEST:,}", file=sys.stderr)
            return 1
        path.write_text(text, encoding="utf-8")
        print(f"{path.name}: {time.perf_counter() - began:.0f} s", flush=True)
    together = sum(path.stat().st_size for path in HERE.glob("*.ipynb"))
    if together > ALTOGETHER:
        print(f"notebooks: {together:,} bytes together, at most {ALTOGETHER:,}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
