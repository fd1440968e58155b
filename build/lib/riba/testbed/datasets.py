"""Labelled images with segmentation masks, from whatever source, as one type."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from riba import progress, storage
from riba.storage import DATA
from riba.testbed import scenes


@dataclass(frozen=True)
class Sample:
    """One image with its class and the mask of its object.

    Attributes
    ----------
    image
        3×H×W float, normalised as the network expects.
    label
        Class number; None where nobody has said what the image shows.
    mask
        H×W bool, True on the object; None where there is none to judge by.
    other
        H×W bool, True on objects of other classes; None where there are none.
    name
        What the image is called, the same in every run and for every object in it.
    void
        H×W bool, True on pixels that are left out of every localisation metric; None: none.
    """

    image: Tensor
    label: int | None
    mask: Tensor | None
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
            image=SCENES.normalise(scene.image),
            label=scene.labels[self.target],
            mask=masks[self.target],
            other=masks[others].any(0) if others else None,
            name=f"{self.name}-{self.seeds[index] - self.seeds[0]}",
        )

    def scene(self, index: int) -> scenes.Scene:
        """The scene itself, with its parts, other objects and background."""
        return scenes.draw(self.seeds[index], **self.variant)


class Chosen(Sequence):
    """Some samples of other sequences, in an order of their own; read when asked for.

    Parameters
    ----------
    places
        Of each sample: the sequence it is in, and its index there.
    """

    def __init__(self, places: Sequence[tuple[Sequence[Sample], int]]) -> None:
        self.places = list(places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int | slice | list[int]) -> Sample | Chosen:
        if isinstance(index, slice):
            return Chosen(self.places[index])
        if isinstance(index, list):
            return Chosen([self.places[place] for place in index])
        samples, place = self.places[index]
        return samples[place]


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


# --- as a network takes them ---------------------------------------------------------------------


@dataclass(frozen=True)
class Preparation:
    """How pictures become network input: a square from the middle, resized, normalised.

    Attributes
    ----------
    resize, crop
        The shorter side is resized to ``resize`` pixels, the middle ``crop`` × ``crop`` kept, as
        torchvision's weights were evaluated; done in one step, so that a very wide picture takes
        no memory.
    mean, std
        Of the normalisation, per colour.
    interpolation
        How pictures are resized.
    """

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Image.Resampling = Image.Resampling.BILINEAR

    @classmethod
    def of(cls, transforms: object) -> Preparation:
        """From ``Weights.….transforms()`` of torchvision."""
        size = transforms.resize_size[0], transforms.crop_size[0]
        interpolation = Image.Resampling[transforms.interpolation.name]
        return cls(*size, tuple(transforms.mean), tuple(transforms.std), interpolation)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest value a pixel can have after it, each 3×1×1."""
        mean, std = self._moments()
        return (0 - mean) / std, (1 - mean) / std

    def square(self, picture: np.ndarray) -> np.ndarray:
        """H×W×3 uint8 to crop×crop×3 uint8: what the network sees."""
        return np.array(self._square(Image.fromarray(picture), self.interpolation))

    def normalise(self, picture: np.ndarray) -> Tensor:
        """H×W×3 uint8 to 3×H×W float, normalised, the size unchanged."""
        rgb = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 255
        mean, std = self._moments()
        return (rgb - mean) / std

    def image(self, picture: np.ndarray) -> Tensor:
        """H×W×3 uint8 to 3×crop×crop float, normalised."""
        return self.normalise(self.square(picture))

    def codes(self, mask: np.ndarray) -> np.ndarray:
        """H×W whole numbers to crop×crop; every pixel keeps the number of one below it."""
        square = self._square(Image.fromarray(mask.astype(np.int32)), Image.Resampling.NEAREST)
        return np.array(square)

    def to_rgb(self, image: Tensor) -> Tensor:
        """Undo the normalisation: …×3×H×W to …×H×W×3 in 0–1, on the CPU."""
        mean, std = self._moments()
        return (image.cpu() * std + mean).clamp(0, 1).movedim(-3, -1)

    def _moments(self) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(values)[:, None, None] for values in (self.mean, self.std))

    def _square(self, picture: Image.Image, how: Image.Resampling) -> Image.Image:
        side = min(picture.size) * self.crop / self.resize
        left, top = ((length - side) / 2 for length in picture.size)
        return picture.resize((self.crop, self.crop), how, (left, top, left + side, top + side))


MEAN, STD = 0.5, 0.25
"""The bundled network takes (rgb − 0.5) / 0.25, for rgb in 0–1."""
SCENES = Preparation(scenes.SIZE, scenes.SIZE, (MEAN,) * 3, (STD,) * 3)
"""How pictures become input of the bundled network."""


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
    with storage.whole(path) as part, part.open("wb") as file:
        np.savez(file, images=images, labels=labels, masks=masks)
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
