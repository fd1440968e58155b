"""Photos on disk with segmentation masks: VOC 2012, Oxford-IIIT Pet, ImageNet-S, or your own.

Every loader gives a sequence of :class:`riba.datasets.Sample`. Image and mask are cropped and
resized alike; pixels that a data set calls unclear become ``void`` and count in no metric. Nothing
is downloaded: ``data/README.md`` says where each data set is to be had and how it must lie.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from riba import progress
from riba.method.network import near_matches
from riba.storage import DATA
from riba.testbed import datasets
from riba.testbed.datasets import Preparation

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
BACKGROUND, VOID = 0, 255
"""Codes in masks as VOC has them: nothing, and unclear."""
IGNORED = 1000
"""Code of unclear pixels in ImageNet-S, where 255 is a class."""
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


# --- samples -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """Where one sample lies.

    Attributes
    ----------
    name
        As in the data set.
    image, mask
        Their files; a photo of one's own may have no mask.
    label
        Class number; None where nobody has said what the photo shows.
    code
        Number of the object's pixels in the mask.
    """

    name: str
    image: Path
    mask: Path | None = None
    label: int | None = None
    code: int = 1


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
        From a mask file to H×W codes: 0 is background, ``void`` unclear, others are objects.
    data_set
        Name of the table that maps its classes to ImageNet's (:func:`imagenet_sets`); empty: none.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        prepare: Preparation,
        class_names: Sequence[str],
        decode: Callable[[Path], np.ndarray],
        void: int = VOID,
        data_set: str = "",
    ) -> None:
        self.entries, self.prepare = list(entries), prepare
        self.class_names, self.decode, self.void = tuple(class_names), decode, void
        self.data_set = data_set

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
            return self._with(self.entries[index])
        entry = self.entries[index]
        picture = datasets.read_photo(entry.image)
        if entry.mask is None:
            return datasets.Sample(self.prepare.image(picture), entry.label, None, name=entry.name)
        codes = self.decode(entry.mask)
        if picture.shape[:2] != codes.shape:
            raise ValueError(
                f"{entry.image.name} has {picture.shape[1]}×{picture.shape[0]} pixels, its mask "
                f"{codes.shape[1]}×{codes.shape[0]}: they must agree"
            )
        codes = torch.from_numpy(self.prepare.codes(codes))
        mask, void = codes == entry.code, codes == self.void
        other = (codes != BACKGROUND) & ~mask & ~void
        return datasets.Sample(
            image=self.prepare.image(picture),
            label=entry.label,
            mask=mask,
            other=other if other.any() else None,
            name=f"{entry.name}-{self.class_names[entry.label]}",
            void=void if void.any() else None,
        )

    def _with(self, entries: Iterable[Entry]) -> Photos:
        kinds = self.prepare, self.class_names, self.decode, self.void, self.data_set
        return Photos(entries, *kinds)

    def spread(self, count: int) -> Photos:
        """Up to ``count`` different photos, evenly spread over all; each once."""
        once = list({entry.image: entry for entry in self.entries}.values())
        step = max(1, len(once) / count)
        return self._with(once[int(place * step)] for place in range(min(count, len(once))))

    def digest(self) -> str:
        """Changes with the photos' names and sizes in bytes, and with how they are prepared."""
        facts = [[e.image.name, e.image.is_file() and e.image.stat().st_size] for e in self.entries]
        text = json.dumps([facts, astuple(self.prepare)])
        return f"photos-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def batches(photos: Photos, size: int = 32) -> Iterator[Tensor]:
    """The photos alone as network input (B×3×H×W); what cannot be read is left out.

    Warns
    -----
    UserWarning
        At the end, of the photos that were left out.
    """
    images, bad = [], []
    for entry in photos.entries:
        try:
            images.append(photos.prepare.image(datasets.read_photo(entry.image)))
        except (OSError, ValueError) as error:
            bad.append(str(error))
        if len(images) == size:
            yield torch.stack(images)
            images = []
    if images:
        yield torch.stack(images)
    if bad:
        warnings.warn(f"{len(bad)} photos were left out: {'; '.join(bad)}", stacklevel=2)


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
        if sample.mask is None or sample.mask.any():
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
        The folder does not hold VOC; says what is missing.

    A photo whose mask is missing or damaged has an entry all the same: reading it says so.
    """
    root = _below(root, "VOC2012", "ImageSets")
    listed = _lines(root / "ImageSets" / "Segmentation" / f"{split}.txt")
    entries = []
    for name in progress.track(listed, "reading VOC's masks"):
        image = root / "JPEGImages" / f"{name}.jpg"
        classes = root / "SegmentationClass" / f"{name}.png"
        objects = root / "SegmentationObject" / f"{name}.png"
        masks = []
        for path in (classes, objects) if instances else (classes,):
            try:
                masks.append(palette(path))
            except (OSError, ValueError):  # whoever reads this entry is told what is wrong
                entries.append(Entry(name, image, path, 0))
                break
        else:
            entries += _of_voc(name, image, path, masks)
    return Photos(entries, prepare, VOC_CLASSES, palette, data_set="voc")


def _of_voc(name: str, image: Path, path: Path, masks: list[np.ndarray]) -> Iterator[Entry]:
    """An entry for each class of one photo, or for each object where its numbers are there too."""
    shown, *numbers = masks
    if not numbers:
        yield from (Entry(name, image, path, code - 1, code) for code in _objects(shown))
        return
    for number in _objects(numbers[0]):
        label = int(np.bincount(shown[numbers[0] == number]).argmax()) - 1
        yield Entry(f"{name}-{number}", image, path, label, number)


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
    return Photos(entries, prepare, class_names, trimap, data_set="pet")


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
    root = Path(root)
    places = [root, *(root / name for name in _SUBSETS)]
    masks = [place / f"{split}-segmentation" for place in places if place.name in _SUBSETS]
    found = next((place for place in masks if place.is_dir()), None)
    if found is None:
        raise FileNotFoundError(
            f"{root} does not hold ImageNet-S (no ImageNetS50, ImageNetS300 or ImageNetS919 with "
            f"a folder {split}-segmentation): data/README.md says how it must lie"
        )
    table = pd.read_csv(DATA / "imagenet_classes.csv")
    place = found.parent
    codes = table[table[_SUBSETS[place.name]] > 0].set_index("wordnet")
    entries = []
    for mask in sorted(found.glob("*/*.png")):
        wordnet = mask.parent.name
        if wordnet not in codes.index:
            raise ValueError(f"{place.name} has no class {wordnet}: is {mask.parent} its folder?")
        row = codes.loc[wordnet]
        image = place / split / wordnet / f"{mask.stem}.JPEG"
        entries.append(
            Entry(mask.stem, image, mask, int(row["imagenet"]), int(row[_SUBSETS[place.name]]))
        )
    return Photos(entries, prepare, table["name"], two_channels, IGNORED)


_SUBSETS = {"ImageNetS50": "s50", "ImageNetS300": "s300", "ImageNetS919": "s919"}
"""Folder of each subset of ImageNet-S, and the column that numbers its classes."""


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
    found = _pictures(images)
    by_name = {path.stem: path for path in sorted(masks.iterdir(), reverse=True)}  # first wins
    entries = []
    for photo in found:
        if photo.stem not in by_name:
            raise FileNotFoundError(f"{photo.name} has no mask in {masks}: the names must agree")
        if photo.stem not in labels:
            raise ValueError(f"{photo.name} has no label: add {photo.stem!r} to labels")
        entries.append(Entry(photo.stem, photo, by_name[photo.stem], labels[photo.stem], 1))
    names = [f"class {number}" for number in range(max(labels.values()) + 1)]
    return Photos(entries, prepare, names, silhouette)


def unmasked(place: Path | str, prepare: Preparation, class_names: Sequence[str] = ()) -> Photos:
    """One photo, or all photos of a folder, without masks: to be explained, not to be judged.

    Raises
    ------
    FileNotFoundError
        There is no such file or folder.
    ValueError
        There are no photos in the folder.
    """
    place = Path(place)
    if not place.exists():
        raise FileNotFoundError(f"no photo and no folder at {place}: check the path")
    found = _pictures(place) if place.is_dir() else [place]
    return Photos([Entry(path.name, path) for path in found], prepare, class_names, silhouette)


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
        raise ValueError(f"where is {data}? pass root=FOLDER (data/README.md says how it must lie)")
    read, shown, others = DATA_SETS[data]
    photos = read(root, prepare, split=shown)
    try:
        return photos, read(root, prepare, split=others)
    except FileNotFoundError:  # that half was not downloaded
        return photos, photos


DATA_SETS = {
    "voc": (voc, "val", "train"),
    "pet": (pet, "test", "trainval"),
    "imagenet-s": (imagenet_s, "validation", "train-semi"),
}
"""Reader of each data set, the split to explain, and one for feature statistics."""


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


def sets_of(photos: Photos) -> tuple[tuple[int, ...], ...] | None:
    """ImageNet classes of each class of a data set, empty without a counterpart.

    None where there is no table, and labels are meant as the network's own.
    """
    if not photos.data_set:
        return None
    sets = imagenet_sets(photos.data_set)
    return tuple(sets.get(name, ()) for name in photos.class_names)


def as_targets(names: Sequence[str], sets: dict[str, tuple[int, ...]], classes: int) -> Tensor:
    """Class names as targets of a network: B×classes bool, each row its set.

    Explained is the logsumexp of the set's logits (:func:`riba.network.class_logit`).

    Raises
    ------
    ValueError
        A class has no set.
    """
    targets = torch.zeros(len(names), classes, dtype=torch.bool)
    for row, name in zip(targets, names, strict=True):
        if not sets.get(name):
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
    return _opened(path, ("P", "L"), "holds colours, not the numbers of classes")


def _opened(path: Path, modes: Sequence[str], otherwise: str) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"no mask at {path}: is the data set complete?")
    try:
        with Image.open(path) as picture:
            if picture.mode not in modes:
                raise ValueError(
                    f"{path.name} {otherwise} ({picture.mode}): take the data set's own file, not "
                    "one that was converted"
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


def two_channels(path: Path) -> np.ndarray:
    """Codes of a mask of ImageNet-S: R + 256·G; 0 is no class, 1000 unclear.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file, it cannot be read, or it is not in colour.
    """
    return numbers_of(_opened(path, ("RGB",), "is not in colour"))


def numbers_of(rgb: np.ndarray) -> np.ndarray:
    """R + 256·G of an H×W×3 uint8 picture: class numbers, H×W."""
    return rgb[..., :2].astype(np.int32) @ np.array([1, 256])


def silhouette(path: Path) -> np.ndarray:
    """Codes of a black-and-white mask: 1 where it is above 127."""
    return (datasets.read_photo(path).mean(2) > 127).astype(np.uint8)


# --- folders -------------------------------------------------------------------------------------


def _objects(codes: np.ndarray) -> list[int]:
    return [int(code) for code in np.unique(codes) if code not in (BACKGROUND, VOID)]


def _pictures(place: Path) -> list[Path]:
    found = sorted(path for path in place.iterdir() if path.suffix.lower() in PICTURES)
    if not found:
        raise ValueError(f"no photos in {place}: {', '.join(PICTURES)} are read")
    return found


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
