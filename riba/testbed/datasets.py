"""Labelled images with segmentation masks, from whatever source, as one type."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import functional

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
        Class number; None where it is unknown.
    mask
        H×W bool, True on the object; None where there is no mask.
    other
        H×W bool, True on objects of other classes; None where there are none.
    name
        Name of the image, the same in every run and for every object in it.
    void
        H×W bool, True on pixels that are left out of every localisation metric; None: none.
    group
        What the image shares with others of the same object, such as its cut-out; resampling goes
        over groups where there are any.
    """

    image: Tensor
    label: int | None
    mask: Tensor | None
    other: Tensor | None = None
    name: str = ""
    void: Tensor | None = None
    group: str = ""


class Scenes(Sequence):
    """A split of the procedural scenes as samples; each is drawn when it is read, never stored.

    Parameters
    ----------
    split
        ``"train"``, ``"validation"`` or ``"test"``: disjoint ranges of seeds.
    count
        How many scenes the sequence holds.
    target
        Which object of a scene with several is the sample's target.
    variant
        Arguments of :func:`riba.scenes.draw`: ``evidence``, ``others``, ``shortcut``.

    Raises
    ------
    ValueError
        Unknown split, more scenes than the split has seeds, or no such object.
    """

    def __init__(self, split: str, count: int, *, target: int = 0, **variant: object) -> None:
        last = variant.get("others", 0)
        if not 0 <= target <= last:
            raise ValueError(f"target must be 0 to {last}, got {target}")
        self.seeds, self.split = _seeds(split, count), split
        self.target, self.variant = target, variant
        self.prepare, self.class_names = SCENES, scenes.CLASS_NAMES
        self.name = "-".join([split, *(f"{key}={value}" for key, value in sorted(variant.items()))])

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int | slice) -> Sample | Chosen:
        if isinstance(index, slice):
            return Chosen([(self, place) for place in range(len(self))[index]])
        scene = self.scene(index)
        masks = torch.from_numpy(scene.masks)
        image, label = SCENES.normalise(scene.image), scene.labels[self.target]
        other = masks.any(0) & ~masks[self.target] if len(masks) > 1 else None  # they never overlap
        name = f"{self.name}-{self.seeds[index] - self.seeds[0]}"
        return Sample(image, label, masks[self.target], other, name)

    def pairs(self) -> dict[str, tuple[Scenes, Scenes]]:
        """As many scenes with two objects, once for either object as the target."""
        sides = (Scenes(self.split, len(self), others=1, target=target) for target in (0, 1))
        return {"two-object scenes": tuple(sides)}

    def scene(self, index: int) -> scenes.Scene:
        """The scene itself, with its parts, other objects and background."""
        return scenes.draw(self.seeds[index], **self.variant)


def _seeds(split: str, count: int, start: int = 0) -> range:
    """Seeds of ``count`` scenes of a split, from scene ``start`` on."""
    if split not in scenes.SPLITS:
        raise ValueError(f"no split {split!r}: choose one of {', '.join(scenes.SPLITS)}")
    seeds = scenes.SPLITS[split][start:]
    if not 1 <= count <= len(seeds):
        raise ValueError(f"count must be 1 to {len(seeds)}, got {count}")
    return seeds[:count]


class Chosen(Sequence):
    """Selected samples of other sequences, in any order; each is read when it is indexed.

    Parameters
    ----------
    places
        Of each sample: the sequence it is in, and its index there.
    """

    def __init__(self, places: Sequence[tuple[Sequence[Sample], int]]) -> None:
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int | slice | list[int]) -> Sample | Chosen:
        if isinstance(index, slice):
            return Chosen(self.places[index])
        if isinstance(index, list):
            return Chosen([self.places[place] for place in index])
        samples, place = self.places[index]
        return samples[place]


# --- picture files --------------------------------------------------------------------------------

LARGEST_PHOTO = 80_000_000
"""Pixels beyond which a picture is refused, because decoding it would fill the memory."""


@contextmanager
def open_picture(path: Path | str, kind: str) -> Iterator[Image.Image]:
    """A picture file, opened with Pillow; ``kind`` says in errors what it is: a photo, a mask.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is not a picture, is damaged, or has more than eighty million pixels.
    """
    path = storage.place(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} at {path}: check the path")
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > LARGEST_PHOTO:
                raise Image.DecompressionBombError
            yield picture
    except Image.DecompressionBombError as error:  # Pillow itself raises it for even larger ones
        most = f"more than {LARGEST_PHOTO:,} pixels"
        raise ValueError(f"{path.name} has {most}: make it smaller first") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path.name} is not a picture, whatever its name says") from error
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path.name} cannot be read, it may be damaged ({error})") from error


def read_photo(path: Path | str, shorter: int | None = None) -> np.ndarray:
    """Any picture that Pillow can read, upright, as H×W×3 uint8.

    Turned as its EXIF data says; greys become colours, transparent parts white. Greys of more than
    8 bits become bytes: those of 16 bits, of 32 bits up to 255 or 65,535, floats up to 1 or 255.

    Parameters
    ----------
    shorter
        A JPEG is decoded at a half, quarter or eighth of its size where both its sides keep this
        many pixels, which takes a fraction of the time; None: at its size.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`open_picture`.
    """
    with open_picture(path, "photo") as photo:
        if shorter is not None:
            photo.draft(None, (shorter, shorter))
        upright = ImageOps.exif_transpose(photo)
        if upright.mode[0] in "IF":  # more than 8 bits
            values = np.array(upright)
            whole = (65535,) if values.dtype.kind == "u" else (255, 65535)
            values = values * (255 / range_of(values, Path(path).name, whole))
            upright = Image.fromarray(values.round().astype(np.uint8))
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        return np.array(upright.convert("RGB"))


def range_of(values: np.ndarray, name: str, whole: Sequence[int] = (1, 255, 65535)) -> int:
    """The upper end of the range of a picture's values: of floats 1 or 255, else one of ``whole``.

    Raises
    ------
    ValueError
        Values lie beyond the largest one, are negative or NaN.
    """
    low, high = values.min(), values.max()
    for top in (1, 255) if values.dtype.kind == "f" else whole:
        if low >= 0 and high <= top:
            return top
    cure = "scale them to 0–1 or 0–255 first"
    raise ValueError(f"{name} holds values from {low:g} to {high:g}: {cure}")


# --- preparation for a network -------------------------------------------------------------------


@dataclass(frozen=True)
class Preparation:
    """How pictures become network input: resized, centre-cropped and normalised by torchvision.

    Attributes
    ----------
    resize, crop
        The shorter side is resized to ``resize`` pixels, then the central ``crop`` × ``crop``
        pixels are cut out, as in the transforms of torchvision's weights.
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
        """The lowest and the highest value of a normalised pixel, each 3×1×1."""
        mean, std = self._moments()
        return (0 - mean) / std, (1 - mean) / std

    def square(self, picture: np.ndarray) -> np.ndarray:
        """A picture (H×W×3 uint8) or a mask (H×W numbers) to crop×crop.

        Colours are interpolated; each pixel of a mask takes the number of the nearest pixel.
        """
        interpolation = self.interpolation
        if picture.ndim == 2:
            picture, interpolation = picture.astype(np.int32), Image.Resampling.NEAREST
        image = Image.fromarray(picture)
        longest = 4 * min(image.size)  # resizing a very long picture would take much memory
        height, width = (min(length, longest) for length in picture.shape[:2])
        image = functional.center_crop(image, [height, width])
        image = functional.resize(image, [self.resize], interpolation)
        return np.array(functional.center_crop(image, [self.crop]))

    def normalise(self, picture: np.ndarray) -> Tensor:
        """H×W×3 uint8 to 3×H×W float, normalised, the size unchanged; 1×H×W grey for one mean."""
        if len(self.mean) == 1:
            picture = np.array(Image.fromarray(picture).convert("L"))[..., None]
        rgb = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 255
        return functional.normalize(rgb, self.mean, self.std)

    def image(self, picture: np.ndarray) -> Tensor:
        """H×W×3 uint8 to 3×crop×crop float, normalised."""
        return self.normalise(self.square(picture))

    def to_rgb(self, image: Tensor) -> Tensor:
        """Undo the normalisation: …×C×H×W to …×H×W×3 in 0–1, on the CPU; grey unless C is 3."""
        mean, std = self._moments()
        rgb = (image.cpu() * std + mean).clamp(0, 1)
        if image.shape[-3] != 3:
            rgb = torch.cat([rgb.mean(-3, keepdim=True)] * 3, -3)
        return rgb.movedim(-3, -1)

    def _moments(self) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(values)[:, None, None] for values in (self.mean, self.std))


MEAN, STD = 0.5, 0.25
"""Normalisation of the bundled network: (rgb − 0.5) / 0.25, for rgb in 0–1."""
SCENES = Preparation(scenes.SIZE, scenes.SIZE, (MEAN,) * 3, (STD,) * 3)
"""How pictures become input of the bundled network."""


def stack(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Samples as one batch: images (B×3×H×W), labels (B) and masks (B×H×W)."""
    rows = [(sample.image, sample.label, sample.mask) for sample in samples]
    images, labels, masks = zip(*rows, strict=True)
    return torch.stack(images), torch.tensor(labels), torch.stack(masks)


# --- many scenes at once, stored on disk -----------------------------------------------------


class Drawn(NamedTuple):
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

    The cache lies in ``data/cache`` under a key of the arguments and of :func:`drawing_code`, so
    that pictures of older code are never used; an unreadable file is drawn anew.
    """
    seeds = _seeds(split, count, start)
    key = json.dumps([drawing_code(), split, count, start, picture, variant], sort_keys=True)
    path = DATA / "cache" / f"scenes-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    with suppress(Exception), np.load(path) as stored:  # damage raises in many ways
        return Drawn(**stored)
    draw = functools.partial(_draw_one, picture=picture, variant=variant)
    with ProcessPoolExecutor(workers, initializer=begin) if workers > 1 else nullcontext() as pool:
        scene_rows = pool.map(draw, seeds, chunksize=32) if workers > 1 else map(draw, seeds)
        rows = list(progress.track(scene_rows, "drawing scenes", count))
    result = Drawn(*(np.stack(column) for column in zip(*rows, strict=True)))
    with storage.unless_full("drawn scenes"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with storage.whole(path) as part, part.open("wb") as file:
            np.savez(file, **result._asdict())
    return result


def begin() -> None:
    """The first thing in a worker process: one thread is enough, and it ends when its parent does.

    A parent that is killed cannot tell its workers, which would wait for work for ever.
    """
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)


def _draw_one(seed: int, picture: str, variant: dict) -> tuple[np.ndarray, ...]:
    scene = scenes.draw(seed, **variant)
    return getattr(scene, picture), np.array(scene.labels), scene.masks[0]


def drawing_code() -> str:
    """Hash of the code and the outlines that draw the scenes: 12 hexadecimal digits."""
    files = Path(scenes.__file__).parent.glob("*.*")
    return files_hash(sorted(file for file in files if file.suffix in (".py", ".json")))


def files_hash(files: Sequence[Path]) -> str:
    """Hash of the content of files: 12 hexadecimal digits."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
