"""Photos on disk with segmentation masks: VOC 2012, Oxford-IIIT Pet, ImageNet-S, or your own.

Every loader returns :class:`Photos`, a sequence of :class:`riba.datasets.Sample`. Image and mask
are resized and cropped alike; pixels that a data set leaves unlabelled become ``void`` and count in
no metric. Nothing is downloaded: ``data/README.md`` says where each data set is found and which
folders it must have.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

from riba import progress, storage
from riba.method.network import near_matches
from riba.storage import DATA
from riba.testbed import datasets
from riba.testbed.datasets import Preparation

VOC_CLASSES = tuple(DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"][1:])
"""The twenty classes, without the background that torchvision lists first."""
BACKGROUND, VOID = 0, 1000
"""Codes of pixels without an object and of unlabelled pixels, as ImageNet-S has them."""
HELP = "its layout is described in data/README.md"
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


# --- samples -------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """Files and class of one sample.

    Attributes
    ----------
    name
        As in the data set.
    image, mask
        Files of photo and mask; None: there is no mask.
    label
        Class number; None where it is unknown.
    code
        Number of the object's pixels in the mask.
    """

    name: str
    image: Path
    mask: Path | None = None
    label: int | None = None
    code: int = 1


@dataclass(frozen=True, eq=False)
class Photos(Sequence):
    """Samples from image and mask files; each is read when it is indexed.

    Attributes
    ----------
    entries
        Files and class of each sample.
    prepare
        How pictures become network input.
    class_names
        Name of each class number.
    decode
        Reads a mask file as H×W codes: 0 is background, 1000 unlabelled, others are objects.
    sets
        ImageNet classes of each class, empty without a counterpart (:func:`imagenet_sets`); None:
        labels are meant as the network's own.
    """

    entries: Sequence[Entry]
    prepare: Preparation
    class_names: tuple[str, ...]
    decode: Callable[[Path], np.ndarray]
    sets: tuple[tuple[int, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int | slice) -> datasets.Sample | Photos:
        """The sample; ``other`` holds objects of other codes. Of a slice, those photos.

        Raises
        ------
        FileNotFoundError, ValueError
            A file is missing, unreadable, or of another size than its mask; the sentence names it.
        """
        if isinstance(index, slice):
            return replace(self, entries=self.entries[index])
        entry = self.entries[index]
        picture = datasets.read_photo(entry.image)
        image = self.prepare.image(picture)
        if entry.mask is None:
            return datasets.Sample(image, entry.label, None, name=entry.name)
        codes = self.decode(entry.mask)
        if picture.shape[:2] != codes.shape:
            size, other = (f"{x.shape[1]}×{x.shape[0]}" for x in (picture, codes))
            name = entry.image.name
            raise ValueError(f"{name} has {size} pixels, its mask {other}: they must agree")
        codes = torch.from_numpy(self.prepare.square(codes))
        mask, void = codes == entry.code, codes == VOID
        other = (codes != BACKGROUND) & ~mask & ~void
        other, void = (pixels if pixels.any() else None for pixels in (other, void))
        named = "" if entry.label is None else f"-{self.class_names[entry.label]}"
        return datasets.Sample(image, entry.label, mask, other, entry.name + named, void)

    def spread(self, count: int) -> Photos:
        """Up to ``count`` different photos, evenly spread over all; each once."""
        distinct = list({entry.image: entry for entry in self.entries}.values())
        count = min(count, len(distinct))
        chosen = [distinct[int(place * len(distinct) / count)] for place in range(count)]
        return replace(self, entries=chosen)

    def digest(self) -> str:
        """Changes with what is in the photos' files, and with how they are prepared."""
        there = [entry.image for entry in self.entries if entry.image.is_file()]
        contents = [datasets.files_hash([file]) for file in there]
        text = json.dumps([len(self.entries), contents, astuple(self.prepare)])
        return f"photos-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def batches(photos: Photos, size: int = 32) -> Iterator[Tensor]:
    """The photos without masks as network input (B×3×H×W); unreadable photos are left out.

    Warns
    -----
    UserWarning
        After the last batch, of the photos that were left out.
    """
    reasons = []
    for start in range(0, len(photos), size):
        images = []
        for entry in photos.entries[start : start + size]:
            try:
                images.append(photos.prepare.image(datasets.read_photo(entry.image)))
            except (OSError, ValueError) as error:
                reasons.append(str(error))
        if images:
            yield torch.stack(images)
    if reasons:
        warnings.warn(f"{len(reasons)} photos were left out: {'; '.join(reasons)}", stacklevel=2)


def readable(samples: Sequence[datasets.Sample]) -> tuple[list[datasets.Sample], dict[int, str]]:
    """All samples that can be read and show their object; and, by index, why others cannot.

    A damaged file need not stop a run: use the samples, and report the reasons at its end.
    """
    good, bad = [], {}
    for index in progress.track(range(len(samples)), "reading photos"):
        try:
            sample = samples[index]
            if sample.mask is not None and not sample.mask.any():
                raise ValueError(f"{sample.name}: nothing of its object is left after the crop")
            good.append(sample)
        except (OSError, ValueError) as error:
            bad[index] = str(error)
    return good, bad


# --- data sets -----------------------------------------------------------------------------------


def voc(root: Path | str, prepare: Preparation, *, split: str = "val") -> Photos:
    """PASCAL VOC 2012 segmentation: a sample per photo and class.

    Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010.

    Parameters
    ----------
    root
        Folder that holds ``JPEGImages``, ``SegmentationClass`` and ``ImageSets/Segmentation``, or
        one above it (``VOCdevkit/VOC2012``).
    split
        ``"train"``, ``"val"`` or ``"trainval"``.

    Raises
    ------
    FileNotFoundError
        The folder does not hold VOC; says what is missing.

    A photo whose mask is missing or damaged has an entry, which raises when it is read.
    """
    root = _find_folder(root, "VOC2012", "ImageSets", ("", "VOC2012", "VOCdevkit/VOC2012"))
    entries = []
    rows = _rows(root / "ImageSets" / "Segmentation" / f"{split}.txt")
    for name, *_ in progress.track(rows, "reading VOC's masks"):
        image = root / "JPEGImages" / f"{name}.jpg"
        mask = root / "SegmentationClass" / f"{name}.png"
        try:
            codes = np.setdiff1d(palette(mask), [BACKGROUND, VOID]).tolist()
        except (OSError, ValueError):  # raised again when this entry is read
            codes = [1]
        entries += [Entry(name, image, mask, code - 1, code) for code in codes]
    return Photos(entries, prepare, VOC_CLASSES, palette, _sets("voc", VOC_CLASSES))


def pet(root: Path | str, prepare: Preparation, *, split: str = "test") -> Photos:
    """Oxford-IIIT Pet: 37 breeds of cats and dogs; the unlabelled border of its trimaps is void.

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
    root = _find_folder(root, "oxford-iiit-pet", "annotations", ("", "oxford-iiit-pet"))
    entries, breeds = [], {}
    for name, number, *_ in _rows(root / "annotations" / f"{split}.txt"):
        label = int(number) - 1
        breeds[label] = name.rsplit("_", 1)[0].replace("_", " ")
        mask = root / "annotations" / "trimaps" / f"{name}.png"
        entries.append(Entry(name, root / "images" / f"{name}.jpg", mask, label))
    names = [breeds.get(label, f"breed {label}") for label in range(max(breeds) + 1)]
    return Photos(entries, prepare, tuple(names), trimap, _sets("pet", names))


def imagenet_s(root: Path | str, prepare: Preparation, *, split: str = "validation") -> Photos:
    """ImageNet-S: photos of ImageNet with masks, of 50, 300 or 919 classes; labels are ImageNet's.

    Gao et al., "Large-scale Unsupervised Semantic Segmentation", TPAMI 2022.

    Parameters
    ----------
    root
        ``ImageNetS50``, ``ImageNetS300`` or ``ImageNetS919``, or the folder above one of them.
    split
        ``"validation"`` or ``"train-semi"``; the masks lie in ``<split>-segmentation``.

    Raises
    ------
    FileNotFoundError
        The folder does not hold the data set, or not this split.
    ValueError
        It holds a class that the subset does not have.
    """
    places = ("", *_SUBSETS) if Path(root).name in _SUBSETS else tuple(_SUBSETS)
    name = "ImageNet-S as ImageNetS50, ImageNetS300 or ImageNetS919"
    folder = _find_folder(root, name, f"{split}-segmentation", places)
    table = pd.read_csv(DATA / "imagenet_classes.csv").set_index("wordnet")
    codes = table[_SUBSETS[folder.name]]
    entries = []
    for mask in sorted((folder / f"{split}-segmentation").glob("*/*.png")):
        wordnet = mask.parent.name
        if not codes.get(wordnet, 0) > 0:
            cure = "remove it, or pass a larger subset"
            raise ValueError(f"{folder.name} has no class {wordnet}: {cure}")
        image = folder / split / wordnet / f"{mask.stem}.JPEG"
        label = int(table["imagenet"][wordnet])
        entries.append(Entry(mask.stem, image, mask, label, int(codes[wordnet])))
    return Photos(entries, prepare, tuple(table["name"]), two_channels)


_SUBSETS = {"ImageNetS50": "s50", "ImageNetS300": "s300", "ImageNetS919": "s919"}
"""Folder of each subset of ImageNet-S, and the column of the class table with its codes."""


def folder(
    images: Path | str,
    masks: Path | str,
    prepare: Preparation,
    labels: dict[str, int | str],
    class_names: Sequence[str] = (),
) -> Photos:
    """A folder of photos and one of masks, paired by name: ``dog.jpg`` with ``dog.png``.

    Parameters
    ----------
    images, masks
        Folders; for the masks :func:`silhouette`.
    labels
        Class number, or name out of ``class_names``, of each photo, by name without its ending.
    class_names
        Of all classes of the network, in its order.

    Raises
    ------
    FileNotFoundError
        A folder does not exist.
    ValueError
        There are no photos with mask and label.

    Warns
    -----
    UserWarning
        Of the photos that have no mask or no label, which are left out.
    """
    by_name = {mask.stem: mask for mask in pictures(storage.place(masks), "masks")[::-1]}
    numbers = [label for label in labels.values() if not isinstance(label, str)]
    if len(numbers) < len(labels) and not class_names:
        raise ValueError("labels are names: pass class_names=, those of all classes of the network")
    names = class_names or [f"class {number}" for number in range(max(numbers, default=-1) + 1)]
    entries, left_out = [], []
    for photo in pictures(storage.place(images)):
        label = labels.get(photo.stem)
        if isinstance(label, str):
            label = names.index(label) if label in names else None
        if photo.stem in by_name and label is not None:
            entries.append(Entry(photo.stem, photo, by_name[photo.stem], label))
        else:
            lacks = "label that is known" if photo.stem in by_name else "mask"
            left_out.append(f"{photo.name} has no {lacks}")
    if left_out:
        warnings.warn(f"{len(left_out)} photos left out: {'; '.join(left_out)}", stacklevel=2)
    if not entries:
        raise ValueError(f"no photo of {images} has a mask and a label: their names must agree")
    return Photos(entries, prepare, tuple(names), silhouette)


def unmasked(
    place: Path | str,
    prepare: Preparation,
    class_names: Sequence[str] = (),
    *,
    subfolders: bool = False,
) -> Photos:
    """One photo, or all photos of a folder, without masks: to be explained, not evaluated.

    With ``subfolders`` those below it, too, named by their path.

    Raises
    ------
    FileNotFoundError
        There is no such file or folder.
    ValueError
        There are no photos in the folder.
    """
    place = storage.place(place)
    if not place.exists():
        raise FileNotFoundError(f"no photo and no folder at {place}: check the path")
    files = [place] if place.is_file() else pictures(place, subfolders=subfolders)
    root = place.parent if place.is_file() else place
    entries = [Entry("-".join(path.relative_to(root).parts), path) for path in files]
    return Photos(entries, prepare, tuple(class_names), silhouette)


def splits(data: str, root: Path | str | None, prepare: Preparation) -> tuple[Photos, Photos]:
    """Photos of ``"voc"``, ``"pet"`` or ``"imagenet-s"`` to explain, and others for statistics.

    Raises
    ------
    ValueError
        Unknown data set, or no folder was named.
    FileNotFoundError
        The folder does not hold it.
    """
    if data not in DATA_SETS:
        near = near_matches(data, DATA_SETS)
        raise ValueError(f"no data set {data!r}; {near}; or pass what riba.segmentation gives")
    if root is None:
        raise ValueError(f"where is {data}? pass root=FOLDER ({HELP})")
    loader, test_split, train_split = DATA_SETS[data]
    photos = loader(root, prepare, split=test_split)
    try:
        return photos, loader(root, prepare, split=train_split)
    except FileNotFoundError:  # this split was not downloaded
        return photos, photos


DATA_SETS = {
    "voc": (voc, "val", "train"),
    "pet": (pet, "test", "trainval"),
    "imagenet-s": (imagenet_s, "validation", "train-semi"),
}
"""Loader of each data set, the split to explain, and the split for feature statistics."""


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
    table = pd.read_csv(DATA / "imagenet_sets.csv", index_col="data_set")
    if data_set not in table.index:
        known = ", ".join(table.index.unique())
        raise ValueError(f"no ImageNet classes for {data_set!r}: there are tables for {known}")
    return table.loc[data_set].groupby("class", sort=False)["imagenet"].agg(tuple).to_dict()


def _sets(data_set: str, class_names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    sets = imagenet_sets(data_set)
    return tuple(sets.get(name, ()) for name in class_names)


# --- mask files ----------------------------------------------------------------------------------


def palette(path: Path) -> np.ndarray:
    """Codes of a palette PNG, as VOC's masks are: its numbers, H×W; 255 is unlabelled.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file, it cannot be read, or it has colours in place of numbers.
    """
    numbers = _read_mask(path, ("P", "L"), "holds colours, not the numbers of classes")
    return np.where(numbers == 255, np.int32(VOID), numbers)


def trimap(path: Path) -> np.ndarray:
    """Codes of a trimap of Oxford-IIIT Pet: 1 is the animal, 2 background, 3 unlabelled."""
    numbers = palette(path)
    return np.select([numbers == 1, numbers == 3], [1, VOID], BACKGROUND)


def two_channels(path: Path) -> np.ndarray:
    """Codes of a mask of ImageNet-S: R + 256·G; 0 is no class, 1000 unlabelled.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file, it cannot be read, or it is not in colour.
    """
    return numbers_of(_read_mask(path, ("RGB",), "is not in colour"))


def numbers_of(rgb: np.ndarray) -> np.ndarray:
    """R + 256·G of an H×W×3 uint8 picture: class numbers, H×W."""
    return rgb[..., :2] @ np.array([1, 256], np.int32)


def silhouette(path: Path) -> np.ndarray:
    """Codes of a mask of one object: 1 on the object.

    That is where a picture of two values, or one with indexed colours, is not 0, where a grey or
    coloured one is above half of its range, and where one with values of 0 and 1 only is 1. Of a
    picture with transparent parts it is where it is opaque.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file, it cannot be read, or its values are no greys.
    """
    with datasets.open_picture(path, "mask") as picture:
        indexed = picture.mode in ("1", "P")
        if picture.mode == "P":
            rgb = np.array(picture.convert("RGB"))
            indexed = (rgb != rgb[..., :1]).any()  # an index of greys is a grey picture
        if "A" in picture.getbands() and picture.getchannel("A").getextrema()[0] < 255:
            picture = picture.getchannel("A")
        values = np.array(picture if indexed or picture.mode[0] in "IF" else picture.convert("L"))
    half = datasets.range_of(values, path.name) / 2
    return (values > (0 if indexed else half)).astype(np.uint8)


def _read_mask(path: Path, modes: Sequence[str], problem: str) -> np.ndarray:
    with datasets.open_picture(path, "mask") as picture:
        if picture.mode not in modes:
            raise ValueError(f"{path.name} {problem} ({picture.mode}): use the original file")
        return np.array(picture)


# --- folders -------------------------------------------------------------------------------------


def pictures(folder: Path, what: str = "photos", subfolders: bool = False) -> list[Path]:
    """All pictures in a folder, or below it, sorted by name.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such folder, or there are none in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: check the path")
    paths = folder.rglob("*") if subfolders else folder.iterdir()
    found = sorted(path for path in paths if path.suffix.lower() in PICTURES)
    if not found:
        raise ValueError(f"no {what} in {folder}: {', '.join(PICTURES)} are read")
    return found


def _find_folder(root: Path | str, name: str, content: str, places: Sequence[str]) -> Path:
    """The first of ``places`` below ``root`` that has a folder ``content``."""
    for place in map(storage.place(root).joinpath, places):
        if (place / content).is_dir():
            return place
    raise FileNotFoundError(f"{root} does not hold {name} (no folder {content}): {HELP}")


def _rows(path: Path) -> list[list[str]]:
    """The words of every line of a list; blank lines and comments are left out."""
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}: is this split part of the data set?")
    rows = map(str.split, path.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row and not row[0].startswith("#")]
