"""Notebook 08: any scene or one's own photo, any class, up to four methods side by side."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.image import imsave
from torch import Tensor

from riba import storage
from riba.compare.methods import METHODS
from riba.method.relevance import Ledger
from riba.show import plots
from riba.show.panels.controls import check_count, control, method_list, scene_slider
from riba.show.panels.paint import Picture, Tile, View, map_picture
from riba.show.panels.panel import Panel
from riba.show.panels.samples import private_copy
from riba.testbed import datasets
from riba.workbench import Workbench

MOST, THUMBNAILS, THUMBNAIL = 4, 8, 84
"""Methods side by side; thumbnails, and their width in pixels."""
UPLOADS = storage.DATA / "cache" / "photos"
PREDICTED = "as predicted"


def explorer(wb: Workbench, **settings: object) -> Panel:
    """A scene or your own photo, a class to explain, and up to four methods side by side.

    Parameters as :func:`riba.panels.bottleneck`; ``photo`` is the path of a picture, of which the
    middle square is shown to the network.
    """
    wb = private_copy(wb)

    def compute(
        scene: int, photo: str, label: str, methods: tuple[str, ...], two: bool = False
    ) -> Explanation:
        check_count(methods, MOST)
        image, mask = read_picture(wb, scene, two, photo)
        probability = wb.predict(image[None])[0]
        target = probability.argmax().item() if label == PREDICTED else wb.class_names.index(label)
        maps = {name: METHODS[name].explain(wb, image[None], [target]) for name in methods}
        return Explanation(image, mask, target, probability, maps)

    classes, share = [PREDICTED, *wb.class_names], {"min": 0, "max": 1}
    first = ("iba", "relevance-iba", "relevance-iba-cascade", "lrp-epsilon-plus")
    prompt = "upload one, or type its path"
    controls = {
        "scene": scene_slider(wb),
        "two": control(widgets.Checkbox, "two objects of different classes"),
        "photo": control(widgets.Text, "path of a photo", placeholder=prompt),
        "label": control(widgets.Dropdown, "t, class to explain", options=classes),
        "methods": method_list(MOST, first),
        "shared": control(widgets.Checkbox, "one colour scale: shares of each map"),
        "opacity": control(widgets.FloatSlider, "opacity of the map", value=1, step=0.05, **share),
        "threshold": control(widgets.FloatSlider, "hide below", step=0.02, **share),
    }
    if not isinstance(wb.test, datasets.Scenes):
        del controls["two"]  # the number of objects in a photo is fixed
    caption = "Several methods on one picture."
    panel = Panel(wb, "explorer", compute, explorer_view, controls, settings, caption)
    panel.display.add_above(picture_chooser(wb, panel))
    return panel


class Explanation(NamedTuple):
    """One picture, and the maps of several methods for one class.

    Attributes
    ----------
    image, mask
        3×H×W, and H×W bool where there is a mask.
    label
        The class that is explained.
    probability
        Of every class.
    maps
        Method to its map (1×H×W) and ledger.
    """

    image: Tensor
    mask: Tensor | None
    label: int
    probability: Tensor
    maps: dict[str, tuple[Tensor, Ledger | None]]


def read_picture(wb: Workbench, scene: int, two: bool, photo: str) -> tuple[Tensor, Tensor | None]:
    """Image (3×H×W) and mask of a test scene; of the photo at a path, which has no mask, if any."""
    if photo.strip():
        return wb.prepare.image(datasets.read_photo(photo.strip())), None
    sample = _scenes(wb, two)[scene]
    return sample.image, sample.mask


def _scenes(wb: Workbench, two: bool) -> Sequence[datasets.Sample]:
    return datasets.Scenes("test", len(wb.test), others=1) if two else wb.test


def explorer_view(
    wb: Workbench, result: Explanation, shared: bool, opacity: float, threshold: float
) -> View:
    """The picture with its predicted classes, and the maps with their ledgers."""
    rgb = wb.to_rgb(result.image).numpy()
    grey = rgb.mean(axis=2, keepdims=True).repeat(3, axis=2)
    shown = {name: maps[0] for name, (maps, _) in result.maps.items()}
    common, scale = None, "Each on its own scale."
    if shared:
        shown = {name: m / m.abs().sum().clamp(min=1e-30) for name, m in shown.items()}
        common = plots.upper_limit(torch.stack(list(shown.values())))
        scale = "One scale for all: shares of the sum of each map's magnitudes."
    title = f"t = {wb.class_names[result.label]}"
    tiles = [Picture(rgb=rgb, title=title, outline=result.mask, width=0.75)]
    for name, (maps, ledger) in result.maps.items():
        unit = METHODS[name].unit
        labels = {"title": name, "foot": _total(maps[0], unit, ledger)}
        labels["unit"] = f"{'share' if shared else unit or 'no unit'} / pixel"
        limit = common or plots.upper_limit(shown[name])
        weight = opacity * (shown[name].abs() >= threshold * limit).float()
        tiles.append(map_picture(shown[name], limit=limit, over=grey, opacity=weight, **labels))
    tiles += [Tile()] * (1 + MOST - len(tiles))
    likeliest = zip(*result.probability.topk(3), strict=True)
    words = ", ".join(f"{wb.class_names[place]} {value:.2f}" for value, place in likeliest)
    return View(rows=[(164, tiles)], notes=[f"Predicted: {words}.  {scale}"])


def _total(values: Tensor, unit: str, ledger: Ledger | None) -> str:
    """Total of a map, beside what started at the layer where that is known."""
    if ledger is not None:
        return f"{ledger.start.item():.1f} {unit} in, {ledger.end.item():.1f} out"
    return f"{values.double().sum().item():.1f} {unit} in all" if unit else ""


# --- choosing a picture --------------------------------------------------------------------------


def picture_chooser(wb: Workbench, panel: Panel) -> widgets.Widget:
    """Thumbnails to choose a scene by, a button for other ones, and an upload."""
    scene, photo = panel.controls["scene"], panel.controls["photo"]
    two = panel.controls.get("two", widgets.Checkbox())
    generator = np.random.default_rng(0)
    shown = list(range(min(THUMBNAILS, scene.max + 1)))
    layout = widgets.Layout(width=f"{THUMBNAIL}px")
    faces = [widgets.Image(layout=layout) for _ in shown]
    names = [widgets.Button(layout=layout) for _ in shown]

    def fill(_event: object = None) -> None:
        for face, name, index in zip(faces, names, shown, strict=True):
            face.value = thumbnail(wb, _scenes(wb, two.value), index)
            name.description = f"scene {index}"
            name.tooltip = f"Explain test scene {index}"

    def shuffle(_button: object) -> None:
        shown[:] = sorted(generator.choice(scene.max + 1, len(shown), replace=False).tolist())
        fill()

    def choose(button: widgets.Button) -> None:
        with panel.one_change():
            photo.value, scene.value = "", shown[names.index(button)]

    def leave_photo(_change: object) -> None:
        photo.value = ""  # who moves to a scene wants to see it

    def take_upload(_change: object) -> None:
        for file in upload.value:
            photo.value = str(store_upload(file["name"], bytes(file["content"])))
        upload.value = ()  # or the same file could not be chosen twice

    for name in names:
        name.on_click(choose)
    scene.observe(leave_photo, names="value")
    two.observe(leave_photo, names="value")
    two.observe(fill, names="value")
    other = widgets.Button(description="Other scenes", tooltip="Draw eight other test scenes")
    other.on_click(shuffle)
    upload = widgets.FileUpload(accept="image/*", description="Upload a photo", multiple=False)
    upload.layout.width = "auto"
    upload.observe(take_upload, names="value")
    fill()
    strip = [widgets.VBox(pair) for pair in zip(faces, names, strict=True)]
    row = widgets.Layout(flex_flow="row wrap")
    return widgets.VBox([widgets.Box(strip, layout=row), widgets.HBox([other, upload])])


def thumbnail(wb: Workbench, samples: Sequence[datasets.Sample], index: int) -> bytes:
    """PNG of a sample; grey for one that cannot be read: the panel says why when chosen."""
    try:
        rgb = wb.to_rgb(samples[index].image).numpy()
    except (OSError, ValueError):
        rgb = np.full((THUMBNAIL, THUMBNAIL, 3), 0.5)
    buffer = io.BytesIO()
    imsave(buffer, rgb)
    return buffer.getvalue()


def store_upload(name: str, content: bytes) -> Path:
    """Write an uploaded file to the cache, so that copied code finds it again."""
    UPLOADS.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(content).hexdigest()[:8]
    path = UPLOADS / f"{digest}-{Path(name).name}"
    path.write_bytes(content)
    return path
