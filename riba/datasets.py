"""Labelled images with segmentation masks, from whatever source, as one type."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from riba import progress, scenes
from riba.models import DATA


@dataclass(frozen=True)
class Sample:
    """One image with its class and the mask of its object.

    Attributes
    ----------
    image
        3×H×W float, normalised as the network expects.
    label
        Class number.
    mask
        H×W bool, True on the object.
    other
        H×W bool, True on objects of other classes; None where there are none.
    name
        What the image is called, the same in every run and for every object in it.
    void
        H×W bool, True on pixels that are left out of every localisation metric; None: none.
    """

    image: Tensor
    label: int
    mask: Tensor
    other: Tensor | None = None
    name: str = ""
    void: Tensor | None = None


class Scenes(Sequence):
    """A split of the procedural scenes as samples; drawn when asked for, never stored.

    Parameters
    ----------
    split
        ``"train"``, ``"validation"`` or ``"test"``: disjoint ranges of seeds.
    count
        How many scenes the sequence holds.
    target
        Which object is the sample's own where a scene has several.
    variant
        Arguments of :func:`riba.scenes.draw`: ``evidence``, ``others``, ``shortcut``.

    Raises
    ------
    ValueError
        Unknown split, more scenes than the split has seeds, or no such object.
    """

    def __init__(self, split: str, count: int, *, target: int = 0, **variant: object) -> None:
        if split not in scenes.SPLITS:
            raise ValueError(f"no split {split!r}: choose one of {', '.join(scenes.SPLITS)}")
        seeds = scenes.SPLITS[split]
        if not 1 <= count <= len(seeds):
            raise ValueError(f"count must be 1 to {len(seeds)}, got {count}")
        objects = 1 + variant.get("others", 0)
        if not 0 <= target < objects:
            raise ValueError(f"target must be 0 to {objects - 1}, got {target}")
        self.seeds = seeds[:count]
        self.target, self.variant = target, variant
        settings = [f"{key}={value}" for key, value in sorted(variant.items())]
        self.name = "-".join([split, *settings])

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> Sample:
        scene = self.scene(index)
        masks = torch.from_numpy(scene.masks)
        others = [row for row in range(len(masks)) if row != self.target]
        return Sample(
            image=normalise(scene.image),
            label=scene.labels[self.target],
            mask=masks[self.target],
            other=masks[others].any(0) if others else None,
            name=f"{self.name}-{self.seeds[index] - self.seeds[0]}",
        )

    def scene(self, index: int) -> scenes.Scene:
        """The scene itself, with its parts, other objects and background."""
        return scenes.draw(self.seeds[index], **self.variant)


# --- photos of one's own -------------------------------------------------------------------------

LARGEST_PHOTO = 80_000_000
"""Pixels beyond which a photo is refused: it would fill the memory before anything is seen."""


def read_photo(path: Path | str) -> np.ndarray:
    """Any picture that Pillow can read, upright, as H×W×3 uint8.

    Turned as its EXIF data says; greys become colours, transparent parts white.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is not a picture, is damaged, or has more than eighty million pixels.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no photo at {path}: check the path")
    try:
        with Image.open(path) as photo:
            if photo.width * photo.height > LARGEST_PHOTO:
                raise ValueError(
                    f"{path.name} has {photo.width}×{photo.height} pixels, at most "
                    f"{LARGEST_PHOTO:,} can be read: make it smaller first"
                )
            return _upright(photo)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path.name} has far too many pixels: make it smaller first") from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{path.name} is not a picture, whatever its name says: choose a JPEG or PNG"
        ) from error
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path.name} cannot be read, it may be damaged ({error})") from error


def _upright(photo: Image.Image) -> np.ndarray:
    photo = ImageOps.exif_transpose(photo)
    if photo.mode.startswith("I"):  # 16 bits
        photo = photo.point(lambda value: value / 256).convert("L")
    if photo.has_transparency_data:
        photo = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo)
    return np.array(photo.convert("RGB"))


def square(picture: np.ndarray, size: int = scenes.SIZE) -> np.ndarray:
    """The middle square of an H×W×3 uint8 picture, resized to ``size`` × ``size``."""
    return np.array(ImageOps.fit(Image.fromarray(picture), (size, size), Image.Resampling.BICUBIC))


# --- as the bundled network takes them -----------------------------------------------------------

MEAN, STD = 0.5, 0.25
"""The bundled network takes (rgb − 0.5) / 0.25, for rgb in 0–1."""


def normalise(image: np.ndarray) -> Tensor:
    """An H×W×3 uint8 picture as a 3×H×W float tensor for the bundled network."""
    rgb = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    return (rgb.float() / 255 - MEAN) / STD


def stack(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Samples as one batch: images (B×3×H×W), labels (B) and masks (B×H×W)."""
    return (
        torch.stack([sample.image for sample in samples]),
        torch.tensor([sample.label for sample in samples]),
        torch.stack([sample.mask for sample in samples]),
    )


# --- many scenes at once, kept on disk -------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """Scenes as bytes: pictures N×H×W×3 uint8, labels N×objects, target masks N×H×W bool."""

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def drawn(
    split: str,
    count: int,
    *,
    start: int = 0,
    picture: str = "image",
    workers: int = 1,
    **variant: object,
) -> Drawn:
    """Scenes number ``start`` to ``start + count`` of a split, drawn once and cached on disk.

    Parameters
    ----------
    picture
        ``"image"``, or ``"background"`` for the scene without any object.
    workers
        Processes that draw; 1 is this process alone.
    variant
        As for :func:`riba.scenes.draw`.

    The cache lies in ``data/cache`` under a key of the arguments and of the drawing code, so that
    changed code never meets old pictures; an unreadable file is drawn anew.
    """
    if split not in scenes.SPLITS:
        raise ValueError(f"no split {split!r}: choose one of {', '.join(scenes.SPLITS)}")
    if not 0 <= start < start + count <= len(scenes.SPLITS[split]):
        raise ValueError(f"{split} has {len(scenes.SPLITS[split])} scenes, not {start + count}")
    seeds = list(scenes.SPLITS[split][start : start + count])
    path = DATA / "cache" / f"scenes-{_key(split, count, start, picture, variant)}.npz"
    with contextlib.suppress(Exception), np.load(path) as kept:  # damage raises in many ways
        return Drawn(kept["images"], kept["labels"], kept["masks"])
    label = "drawing scenes"
    one = functools.partial(_drawn_one, picture=picture, variant=variant)
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            rows = list(progress.track(pool.map(one, seeds, chunksize=32), label, count))
    else:
        rows = list(progress.track(map(one, seeds), label, count))
    images, labels, masks = (np.stack(column) for column in zip(*rows, strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.part.npz")
    np.savez(part, images=images, labels=labels, masks=masks)
    os.replace(part, path)
    return Drawn(images, labels, masks)


def _drawn_one(seed: int, picture: str, variant: dict) -> tuple[np.ndarray, ...]:
    scene = scenes.draw(seed, **variant)
    return getattr(scene, picture), np.array(scene.labels), scene.masks[0]


def drawing_code() -> str:
    """Hash of the code that draws the scenes: 12 hexadecimal digits."""
    source = Path(scenes.__file__)
    files = sorted(source.parent.glob("*.py")) if source.name == "__init__.py" else [source]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _key(*arguments: object) -> str:
    text = json.dumps([drawing_code(), *arguments], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
