"""Notebook 08: any scene or one's own photo, any class, up to four methods side by side."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from riba import storage
from riba.compare.methods import METHODS, information, joint_information, unit
from riba.show import plots
from riba.show.panels import kit
from riba.show.panels.controls import (
    METHODS_OFFERED,
    check_count,
    choice,
    looks,
    scene_slider,
    several,
    slider,
    tick,
)
from riba.show.panels.paint import Empty, Map, Picture, View
from riba.testbed import datasets
from riba.workbench import Workbench

MOST, THUMBNAILS, THUMBNAIL = 4, 8, 84
UPLOADS = storage.DATA / "cache" / "photos"
PREDICTED = "as predicted"


def explorer(wb: Workbench, **settings: object) -> kit.Panel:
    """A scene or your own photo, a class to explain, and up to four methods side by side.

    Parameters as :func:`riba.panels.bottleneck`; ``photo`` is the path of a picture, of which the
    middle square is shown to the network.
    """
    wb = kit.own(wb)

    def find(
        scene: int, photo: str, label: str, methods: tuple[str, ...], two: bool = False
    ) -> Explained:
        check_count(methods, MOST)
        image, mask = picture(wb, scene, two, photo)
        probability = wb.predict(image[None])[0]
        place = probability.argmax().item()
        if label != PREDICTED:
            place = wb.class_names.index(label)
        said = {name: explain(wb, image, place, name) for name in methods}
        return Explained(image, mask, place, probability, said)

    def draw(found: Explained, shared: bool, opacity: float, threshold: float) -> View:
        return explorer_view(wb, found, shared, opacity, threshold)

    chosen = ("iba", "relevance-iba", "relevance-iba-cascade", "lrp-epsilon-plus")
    controls = {
        "scene": scene_slider(wb),
        "two": tick("two objects of different classes"),
        "photo": widgets.Text(
            description="path of a photo", placeholder="upload one, or type its path",
            continuous_update=False, **looks(),
        ),
        "label": choice("t, class to explain", [PREDICTED, *wb.class_names], PREDICTED),
        "methods": several(f"methods, up to {MOST}", METHODS_OFFERED, chosen, rows=6),
        "shared": tick("one colour scale: shares of each map"),
        "opacity": slider(widgets.FloatSlider, "opacity of the map", value=1, max=1, step=0.05),
        "threshold": slider(
            widgets.FloatSlider, "hide below", value=0, max=1, step=0.02
        ),
    }  # fmt: skip
    caption = "Several methods on one picture."
    if not isinstance(wb.test, datasets.Scenes):
        del controls["two"]  # photos are as they are
    panel = kit.Panel("explorer", find, draw, controls, settings, caption)
    panel.add(pictures(wb, panel))
    return panel


@dataclass(frozen=True)
class Explained:
    """One picture, and what several methods say about one class.

    Attributes
    ----------
    image, mask
        3×H×W, and H×W bool where there is a mask.
    label
        The class that is explained.
    probability
        Of every class.
    said
        Method to its map (H×W), and what its bottleneck measured in the map's unit; None where
        there is none.
    """

    image: Tensor
    mask: Tensor | None
    label: int
    probability: Tensor
    said: dict[str, tuple[Tensor, float | None]]


def picture(wb: Workbench, scene: int, two: bool, photo: str) -> tuple[Tensor, Tensor | None]:
    """Image (3×H×W) and mask of a photo, where there is one, else of a test scene."""
    if photo.strip():
        path = Path(photo.strip()).expanduser()
        return wb.prepare.image(datasets.read_photo(path)), None
    sample = _scenes(wb, two)[scene]
    return sample.image, sample.mask


def _scenes(wb: Workbench, two: bool) -> Sequence[datasets.Sample]:
    return datasets.Scenes("test", len(wb.test), others=1) if two else wb.test


def explain(wb: Workbench, image: Tensor, label: int, name: str) -> tuple[Tensor, float | None]:
    """One method's map (H×W), and the nats or bits that started."""
    images, targets = image[None], torch.tensor([label])
    values = METHODS[name](wb, images, targets)[0]
    if name.startswith("relevance-iba"):
        joint = name.endswith(("joint", "cascade"))
        found = (
            list(joint_information(wb, images, targets).values())[-1]
            if joint
            else information(wb, wb.layer, images, targets)
        )
        return values, found.nats.double().sum().item()
    return values, None


def explorer_view(
    wb: Workbench, found: Explained, shared: bool, opacity: float, threshold: float
) -> View:
    """The picture with its predicted classes, and the maps with their ledgers."""
    rgb = wb.to_rgb(found.image).numpy()
    grey = rgb.mean(axis=2, keepdims=True).repeat(3, axis=2)
    shown = {name: values for name, (values, _) in found.said.items()}
    common = None
    if shared:
        shown = {name: m / m.abs().sum().clamp(min=1e-30) for name, m in shown.items()}
        common = plots.upper_limit(torch.stack(list(shown.values())))
    tiles = [
        Picture(rgb=rgb, title=f"t = {wb.class_names[found.label]}", outline=found.mask, width=0.75)
    ]
    for name, (values, total) in found.said.items():
        limit = common or plots.upper_limit(shown[name])
        visible = shown[name].abs() >= threshold * limit
        tiles.append(
            Map(
                values=shown[name],
                title=name,
                unit="share / pixel" if shared else f"{unit(name) or 'no unit'} / pixel",
                limit=limit,
                over=grey,
                opacity=opacity * visible.float(),
                foot=_ledger(values, unit(name), total),
            )
        )
    tiles += [Empty()] * (1 + MOST - len(tiles))
    top = found.probability.topk(3)
    words = [
        f"{wb.class_names[place]} {value:.2f}"
        for value, place in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ]
    scale = "Each on its own scale."
    if shared:
        scale = "One scale for all: shares of the sum of each map's magnitudes."
    return View(rows=[(164, tiles)], notes=[f"Predicted: {', '.join(words)}.  {scale}"])


def _ledger(values: Tensor, unit: str, total: float | None) -> str:
    arrived = values.double().sum().item()
    if total is not None:
        return f"{total:.1f} {unit} in, {arrived:.1f} out"
    return f"{arrived:.1f} {unit} in all" if unit else ""


# --- choosing a picture --------------------------------------------------------------------------


def pictures(wb: Workbench, panel: kit.Panel) -> widgets.Widget:
    """Thumbnails to choose a scene by, a button for other ones, and an upload."""
    scene, photo = panel.controls["scene"], panel.controls["photo"]
    two = panel.controls.get("two", tick(""))
    draw = np.random.default_rng(0)
    shown = list(range(min(THUMBNAILS, scene.max + 1)))
    faces = [
        widgets.Image(format="png", layout=widgets.Layout(width=f"{THUMBNAIL}px")) for _ in shown
    ]
    names = [widgets.Button(layout=widgets.Layout(width=f"{THUMBNAIL}px")) for _ in shown]

    def fill(_event: object = None) -> None:
        for face, name, index in zip(faces, names, shown, strict=True):
            face.value = thumbnail(wb, _scenes(wb, two.value), index)
            name.description = f"scene {index}"
            name.tooltip = f"Explain test scene {index}"

    def shuffle(_button: object) -> None:
        shown[:] = sorted(draw.choice(scene.max + 1, len(shown), replace=False).tolist())
        fill()

    def choose(place: int) -> None:
        with panel.one_change():
            photo.value, scene.value = "", shown[place]

    for place, name in enumerate(names):
        name.on_click(lambda _button, place=place: choose(place))

    def leave_photo(_change: object) -> None:
        photo.value = ""  # who moves to a scene wants to see it

    scene.observe(leave_photo, names="value")
    two.observe(leave_photo, names="value")
    two.observe(fill, names="value")
    other = widgets.Button(description="Other scenes", tooltip="Draw eight other test scenes")
    other.on_click(shuffle)
    upload = widgets.FileUpload(accept="image/*", description="Upload a photo", multiple=False)
    upload.layout.width = "auto"

    def take(_change: object) -> None:
        for file in upload.value:
            photo.value = str(kept(file["name"], bytes(file["content"])))
        upload.value = ()  # or the same file could not be chosen twice

    upload.observe(take, names="value")
    fill()
    strip = [widgets.VBox(pair) for pair in zip(faces, names, strict=True)]
    row = widgets.Layout(flex_flow="row wrap")
    return widgets.VBox([widgets.Box(strip, layout=row), widgets.HBox([other, upload])])


def thumbnail(wb: Workbench, samples: Sequence[datasets.Sample], index: int) -> bytes:
    """PNG of a sample, small; grey for one that cannot be read: the panel says why when chosen."""
    try:
        picture = (wb.to_rgb(samples[index].image).numpy() * 255).round().astype(np.uint8)
    except (OSError, ValueError):
        picture = np.full((THUMBNAIL, THUMBNAIL, 3), 128, np.uint8)
    buffer = io.BytesIO()
    small = Image.fromarray(picture).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    small.save(buffer, "png")
    return buffer.getvalue()


def kept(name: str, content: bytes) -> Path:
    """An uploaded file, kept in the cache so that copied code finds it again."""
    UPLOADS.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(content).hexdigest()[:8]
    path = UPLOADS / f"{digest}-{Path(name).name}"
    path.write_bytes(content)
    return path
