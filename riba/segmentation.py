"""Photos with segmentation masks on disk: VOC 2012, Oxford-IIIT Pet, or a folder of your own.

Every loader gives a sequence of :class:`riba.datasets.Sample`. Image and mask are cropped and
resized alike; pixels that a data set calls unclear become ``void`` and count in no metric. Nothing
is downloaded: ``data/README.md`` says where each data set is to be had and how it must lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from riba import datasets, progress
from riba.models import DATA

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
BACKGROUND, VOID = 0, 255
"""Codes in masks as VOC has them: nothing, and unclear."""
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


# --- from a picture to network input -------------------------------------------------------------


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
    """

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, transforms: object) -> Preparation:
        """From ``Weights.….transforms()`` of torchvision."""
        size = transforms.resize_size[0], transforms.crop_size[0]
        return cls(*size, tuple(transforms.mean), tuple(transforms.std))

    def image(self, picture: np.ndarray) -> Tensor:
        """H×W×3 uint8 to 3×crop×crop float, normalised."""
        square = np.array(self._square(Image.fromarray(picture), Image.Resampling.BILINEAR))
        rgb = torch.from_numpy(square).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (rgb - mean) / std

    def codes(self, mask: np.ndarray) -> np.ndarray:
        """H×W whole numbers to crop×crop; every pixel keeps the number of one below it."""
        square = self._square(Image.fromarray(mask.astype(np.int32)), Image.Resampling.NEAREST)
        return np.array(square)

    def _square(self, picture: Image.Image, how: Image.Resampling) -> Image.Image:
        side = min(picture.size) * self.crop / self.resize
        left, top = ((length - side) / 2 for length in picture.size)
        return picture.resize((self.crop, self.crop), how, (left, top, left + side, top + side))


# --- samples -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """Where one sample lies.

    Attributes
    ----------
    name
        As in the data set.
    image, mask
        Their files.
    label
        Class number.
    code
        Number of the object's pixels in the mask.
    """

    name: str
    image: Path
    mask: Path
    label: int
    code: int


class Photos(Sequence):
    """Samples from image and mask files, read when asked for.

    Parameters
    ----------
    entries
        What there is.
    prepare
        How pictures become network input.
    class_names
        Name of each class number.
    decode
        From a mask file to H×W codes: 0 is background, 255 void, others are objects.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        prepare: Preparation,
        class_names: Sequence[str],
        decode: Callable[[Path], np.ndarray],
    ) -> None:
        self.entries, self.prepare = list(entries), prepare
        self.class_names, self.decode = tuple(class_names), decode

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> datasets.Sample:
        """The sample; ``other`` holds objects of other codes.

        Raises
        ------
        FileNotFoundError, ValueError
            A file is missing, unreadable, or of another size than its mask; the sentence names it.
        """
        entry = self.entries[index]
        picture, codes = datasets.read_photo(entry.image), self.decode(entry.mask)
        if picture.shape[:2] != codes.shape:
            raise ValueError(
                f"{entry.image.name} has {picture.shape[1]}×{picture.shape[0]} pixels, its mask "
                f"{codes.shape[1]}×{codes.shape[0]}: they must agree"
            )
        codes = torch.from_numpy(self.prepare.codes(codes))
        mask, void = codes == entry.code, codes == VOID
        other = (codes != BACKGROUND) & ~mask & ~void
        return datasets.Sample(
            image=self.prepare.image(picture),
            label=entry.label,
            mask=mask,
            other=other if other.any() else None,
            name=f"{entry.name}-{self.class_names[entry.label]}",
            void=void if void.any() else None,
        )


def readable(samples: Sequence[datasets.Sample]) -> tuple[list[datasets.Sample], dict[int, str]]:
    """All samples that can be read and show their object; and the others' index and reason.

    One bad file must not stop a run: take the samples, and report the reasons at its end.
    """
    good, bad = [], {}
    for index in progress.track(range(len(samples)), "reading photos"):
        try:
            sample = samples[index]
        except (OSError, ValueError) as error:
            bad[index] = str(error)
            continue
        if sample.mask.any():
            good.append(sample)
        else:
            bad[index] = f"{sample.name}: nothing of its object is left after the crop"
    return good, bad


# --- data sets -----------------------------------------------------------------------------------


def voc(
    root: Path | str, prepare: Preparation, *, split: str = "val", instances: bool = False
) -> Photos:
    """PASCAL VOC 2012 segmentation: a sample per photo and class, or per object.

    Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010.

    Parameters
    ----------
    root
        Folder that holds ``JPEGImages``, ``SegmentationClass``, ``SegmentationObject`` and
        ``ImageSets/Segmentation``, or one above it (``VOCdevkit/VOC2012``).
    split
        ``"train"``, ``"val"`` or ``"trainval"``.
    instances
        One sample per object, in place of all objects of a class together.

    Raises
    ------
    FileNotFoundError
        The folder does not hold VOC, or a listed photo has no mask; says what is missing.
    """
    root = _below(root, "VOC2012", "ImageSets")
    listed = _lines(root / "ImageSets" / "Segmentation" / f"{split}.txt")
    entries = []
    for name in progress.track(listed, "reading VOC's masks"):
        image = root / "JPEGImages" / f"{name}.jpg"
        classes = root / "SegmentationClass" / f"{name}.png"
        shown = palette(classes)
        if not instances:
            for code in _objects(shown):
                entries.append(Entry(name, image, classes, code - 1, code))
            continue
        objects = root / "SegmentationObject" / f"{name}.png"
        numbers = palette(objects)
        for number in _objects(numbers):
            label = int(np.bincount(shown[numbers == number]).argmax()) - 1
            entries.append(Entry(f"{name}-{number}", image, objects, label, number))
    return Photos(entries, prepare, VOC_CLASSES, palette)


def pet(root: Path | str, prepare: Preparation, *, split: str = "test") -> Photos:
    """Oxford-IIIT Pet: 37 breeds of cats and dogs; the unclear border of its trimaps is void.

    Parkhi et al., "Cats and Dogs", CVPR 2012.

    Parameters
    ----------
    root
        Folder that holds ``images`` and ``annotations``, or one above it (``oxford-iiit-pet``).
    split
        ``"trainval"`` or ``"test"``.

    Raises
    ------
    FileNotFoundError
        The folder does not hold the data set; says what is missing.
    """
    root = _below(root, "oxford-iiit-pet", "annotations")
    rows = [line.split() for line in _lines(root / "annotations" / f"{split}.txt")]
    names = {int(row[1]) - 1: row[0].rsplit("_", 1)[0].replace("_", " ") for row in rows}
    entries = [
        Entry(
            name,
            root / "images" / f"{name}.jpg",
            root / "annotations" / "trimaps" / f"{name}.png",
            int(breed) - 1,
            1,
        )
        for name, breed, *_ in rows
    ]
    class_names = [names.get(breed, f"breed {breed}") for breed in range(max(names) + 1)]
    return Photos(entries, prepare, class_names, trimap)


def folder(
    images: Path | str, masks: Path | str, prepare: Preparation, labels: dict[str, int]
) -> Photos:
    """A folder of photos and one of masks, paired by name: ``dog.jpg`` with ``dog.png``.

    Parameters
    ----------
    images, masks
        Folders; a mask is a grey picture that is above 127 on the object.
    labels
        Class number of each photo, by name without its ending.

    Raises
    ------
    FileNotFoundError
        A folder does not exist, or a photo has no mask.
    ValueError
        There are no photos, or one has no label.
    """
    images, masks = Path(images), Path(masks)
    for place in (images, masks):
        if not place.is_dir():
            raise FileNotFoundError(f"no folder {place}: check the path")
    photos = sorted(path for path in images.iterdir() if path.suffix.lower() in PICTURES)
    if not photos:
        raise ValueError(f"no photos in {images}: {', '.join(PICTURES)} are read")
    by_name = {path.stem: path for path in sorted(masks.iterdir(), reverse=True)}  # first wins
    entries = []
    for photo in photos:
        if photo.stem not in by_name:
            raise FileNotFoundError(f"{photo.name} has no mask in {masks}: the names must agree")
        if photo.stem not in labels:
            raise ValueError(f"{photo.name} has no label: add {photo.stem!r} to labels")
        entries.append(Entry(photo.stem, photo, by_name[photo.stem], labels[photo.stem], 1))
    names = [f"class {number}" for number in range(max(labels.values()) + 1)]
    return Photos(entries, prepare, names, silhouette)


# --- classes of an ImageNet network --------------------------------------------------------------


def imagenet_sets(data_set: str) -> dict[str, tuple[int, ...]]:
    """Which ImageNet classes each class of ``"voc"`` or ``"pet"`` stands for.

    From ``data/imagenet_sets.csv``. Classes without a fair counterpart (VOC's person, a third of
    the breeds) are left out: their samples cannot be judged with an ImageNet network.

    Raises
    ------
    ValueError
        There is no table for this data set.
    """
    table = pd.read_csv(DATA / "imagenet_sets.csv")
    if data_set not in set(table["data_set"]):
        known = ", ".join(table["data_set"].unique())
        raise ValueError(f"no ImageNet classes for {data_set!r}: there are tables for {known}")
    rows = table[table["data_set"] == data_set].groupby("class", sort=False)["imagenet"]
    return {name: tuple(numbers) for name, numbers in rows}


def as_targets(names: Sequence[str], sets: dict[str, tuple[int, ...]], classes: int) -> Tensor:
    """Class names as targets of a network: B×classes bool, each row its set.

    Explained is the logsumexp of the set's logits (:func:`riba.models.class_logit`).

    Raises
    ------
    ValueError
        A class has no set.
    """
    targets = torch.zeros(len(names), classes, dtype=torch.bool)
    for row, name in zip(targets, names, strict=True):
        if name not in sets:
            raise ValueError(f"{name!r} has no counterpart in this network: leave its samples out")
        row[list(sets[name])] = True
    return targets


# --- mask files ----------------------------------------------------------------------------------


def palette(path: Path) -> np.ndarray:
    """H×W numbers of a palette PNG, as VOC's masks are.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file, it cannot be read, or it has colours in place of numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no mask at {path}: is the data set complete?")
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("P", "L"):
                raise ValueError(
                    f"{path.name} holds colours ({picture.mode}), not the numbers of classes: "
                    "take the data set's own file, not one that was converted"
                )
            return np.array(picture)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path.name} cannot be read, it may be damaged ({error})") from error


def trimap(path: Path) -> np.ndarray:
    """Codes of a trimap of Oxford-IIIT Pet: 1 is the animal, 2 background, 3 unclear."""
    numbers = palette(path)
    codes = np.full_like(numbers, BACKGROUND)
    codes[numbers == 1], codes[numbers == 3] = 1, VOID
    return codes


def silhouette(path: Path) -> np.ndarray:
    """Codes of a black-and-white mask: 1 where it is above 127."""
    return (datasets.read_photo(path).mean(2) > 127).astype(np.uint8)


# --- folders -------------------------------------------------------------------------------------


def _objects(codes: np.ndarray) -> list[int]:
    return [int(code) for code in np.unique(codes) if code not in (BACKGROUND, VOID)]


def _below(root: Path | str, name: str, holds: str) -> Path:
    """``root``, or the folder ``name`` somewhere just below it, that holds what it must."""
    root = Path(root)
    for place in (root, root / name, root / "VOCdevkit" / name):
        if (place / holds).is_dir():
            return place
    raise FileNotFoundError(
        f"{root} does not hold {name} (no folder {holds}): data/README.md says how it must lie"
    )


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}: is this split part of the data set?")
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]
