"""Photographs for ImageNet networks: a few examples, and photomontages with exact masks.

The examples, and the crops for feature statistics, come with scikit-image; they are in the public
domain or CC0, and scikit-image's ``data/README.txt`` names each source. The montages are cut-outs
(pictures with transparency) pasted on photographs: those that ``make photos`` gets, or any others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import skimage
import torch
from PIL import Image
from torch import Tensor

from riba import storage
from riba.method.network import near_matches
from riba.storage import DATA, Memory
from riba.testbed import datasets, segmentation
from riba.testbed.datasets import Chosen, Preparation, Sample
from riba.testbed.segmentation import Entry, Photos

FOLDER = Path(skimage.__file__).parent / "data"
EXAMPLES = {
    "cat": "chelsea.png",
    "espresso": "coffee.png",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
    "astronaut": "astronaut.png",
}
"""Files of the photographs to explain, by what they show."""
FILES = [FOLDER / file for file in (*EXAMPLES.values(), "brick.png", "grass.png", "gravel.png")]
"""Files of all eight photographs for the feature statistics: the five and three textures."""
BATCH = 10
"""Images in one batch: larger batches are slower on a CPU."""
LITE0 = Preparation(256, 224, (0.5,) * 3, (0.5,) * 3, Image.Resampling.BICUBIC)
"""Preparation with which EfficientNet-Lite0 was trained."""


def examples(class_names: Sequence[str] = ()) -> Photos:
    """The photographs of :data:`EXAMPLES` as EfficientNet-Lite0 takes them; no labels, no masks."""
    entries = [Entry(name, FOLDER / file) for name, file in EXAMPLES.items()]
    return Photos(entries, LITE0, class_names, segmentation.silhouette)


def crops(count: int, seed: int = 0) -> Iterator[Tensor]:
    """Random squares of the eight photographs as batches of network input (B×3×224×224).

    Each has 30 to 100 % of the shorter side, and is mirrored half of the time. They stand in for a
    thousand photographs: the spread between pictures is understated, and those to be explained are
    among them.
    """
    pictures = [Image.fromarray(datasets.read_photo(file)) for file in FILES]
    draw = torch.Generator().manual_seed(seed)

    def images() -> Iterator[Tensor]:
        for place in range(count):
            scale, *where = torch.rand(4, generator=draw).tolist()
            picture = pictures[place % len(pictures)]
            yield LITE0.normalise(np.array(_square(picture, LITE0, 0.3 + 0.7 * scale, *where)))

    return _batched(images())


def digest() -> str:
    """Hash of the photographs and of this code: whatever changes the crops changes it."""
    return datasets.files_hash([*FILES, Path(__file__)])


def _square(picture: Image.Image, prepare: Preparation, *random: float) -> Image.Image:
    """A square at the network's size: share of the shorter side, place across and down, mirroring;
    each in 0–1."""
    scale, across, down, mirrored = random
    side = min(picture.size) * scale
    left, top = (picture.width - side) * across, (picture.height - side) * down
    size, box = (prepare.crop, prepare.crop), (left, top, left + side, top + side)
    return _mirrored(picture.resize(size, prepare.interpolation, box), mirrored)


def _mirrored(picture: Image.Image, mirrored: float) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored > 0.5 else picture


def _batched(images: Iterator[Tensor]) -> Iterator[Tensor]:
    while batch := list(islice(images, BATCH)):
        yield torch.stack(batch)


# --- cut-outs and backgrounds --------------------------------------------------------------------

FETCHED = DATA / "cache" / "photos"
"""Where ``make photos`` puts ``cutouts`` and ``backgrounds``."""
TABLES = {kind: DATA / f"{kind}.csv" for kind in ("cutouts", "backgrounds")}
"""Tables of what ``make photos`` gets: classes, splits, sources, licences."""
COLUMNS = {
    "cutouts": ["file", "split", "classes"],
    "backgrounds": ["file", "split", "used", "class"],
}
"""What is read of a table of cut-outs or backgrounds."""
SPLITS = ("train", "validation", "test")
SHARES = (0.25, 0.5)
"""Where training ends and testing begins, of files that have no table."""
OPAQUE = 128
"""Alpha (0–255) from which on a pixel belongs to the object."""


@dataclass(frozen=True)
class Picture:
    """A cut-out or a background.

    Attributes
    ----------
    name
        Its file's path below the folder, without the ending.
    file
        A cut-out has transparency.
    split
        ``"train"``, ``"validation"`` or ``"test"``.
    label
        Of a cut-out, its class; of a background, its class where it shows a scene that is one, such
        as a valley, else None.
    """

    name: str
    file: Path
    split: str
    label: int | None

    @classmethod
    def of(cls, folder: Path | str, file: str, split: str, label: int | None) -> Picture:
        """A file of a folder."""
        name = Path(file).with_suffix("").as_posix().replace("/", "-")
        return cls(name, storage.place(folder) / file, split, label)


@dataclass(frozen=True)
class Collection:
    """Cut-outs, backgrounds, and what their labels stand for.

    Attributes
    ----------
    cutouts, backgrounds
        All pictures of every split.
    label_names
        Name of each label: first the network's classes, then the sets of several classes.
    sets
        The network's classes that each label stands for.
    """

    cutouts: tuple[Picture, ...]
    backgrounds: tuple[Picture, ...]
    label_names: tuple[str, ...]
    sets: tuple[tuple[int, ...], ...]


def collect(
    cutouts: Path | str,
    backgrounds: Path | str,
    class_names: Sequence[str],
    tables: Mapping[str, Path | str] | None = None,
) -> Collection:
    """Cut-outs and backgrounds of two folders.

    Parameters
    ----------
    cutouts
        Folder of pictures with transparency. Without a table each lies in a subfolder that has the
        name of its class.
    backgrounds
        Folder of photographs, in subfolders or not.
    class_names
        Name of each class of the network.
    tables
        CSV files, both optional. ``"cutouts"`` has the columns ``file`` (below the folder),
        ``classes`` (names, ``;`` between them where several fit) and ``split``. ``"backgrounds"``
        has ``file``, ``split``, ``used`` (``plain``; ``scene``; ``no``: in training only) and
        ``class``, which is read where a background is a scene. Without a table, files are divided
        at random, the same way each time: a quarter for training, a quarter for validation, half
        for testing.

    Raises
    ------
    FileNotFoundError
        A folder does not exist.
    ValueError
        A folder holds no pictures, a table lacks a column, or a class is unknown (near matches
        are listed).
    """
    tables = tables or {}
    names, sets = list(class_names), [(number,) for number in range(len(class_names))]

    def label(file: str, classes: str) -> int:
        members = [name.strip() for name in classes.split(";")]
        for name in members:
            if name not in class_names:
                near = near_matches(name, class_names)
                raise ValueError(f"{file} is of no class of the network: no {name!r}; {near}")
        name = " or ".join(members)
        if name not in names:
            names.append(name)
            sets.append(tuple(map(names.index, members)))
        return names.index(name)

    objects = [
        Picture.of(cutouts, row.file, row.split, label(row.file, row.classes))
        for row in _listed("cutouts", cutouts, tables).itertuples()
    ]
    places = [
        Picture.of(backgrounds, file, split, label(file, scene) if used == "scene" else None)
        for file, split, used, scene in _listed("backgrounds", backgrounds, tables).to_numpy()
        if used != "no" or split == "train"
    ]
    return Collection(tuple(objects), tuple(places), tuple(names), tuple(sets))


def fetched(class_names: Sequence[str]) -> Collection:
    """The cut-outs and backgrounds that ``make photos`` gets.

    Raises
    ------
    FileNotFoundError
        They are not here, or not all of them: says what to do.
    """
    for kind, table in TABLES.items():
        for file in pd.read_csv(table)["file"]:
            if not (FETCHED / kind / file).is_file():
                raise FileNotFoundError(
                    f"the photographs are not here (no {kind}/{file}): run `make photos`, or see "
                    "data/README.md"
                )
    return collect(FETCHED / "cutouts", FETCHED / "backgrounds", class_names, TABLES)


def _listed(kind: str, folder: Path | str, tables: Mapping[str, Path | str]) -> pd.DataFrame:
    """The rows of a table; without one, all pictures below a folder."""
    folder = storage.place(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: check the path")
    if kind in tables:
        table = pd.read_csv(tables[kind], dtype=str, keep_default_na=False, usecols=COLUMNS[kind])
        return table[COLUMNS[kind]]
    files = segmentation.pictures(folder, "pictures", subfolders=True)
    places = np.random.default_rng(0).permutation(len(files)) / len(files)
    columns = {
        "file": [str(file.relative_to(folder)) for file in files],
        "split": [SPLITS[np.searchsorted(SHARES, place, side="right")] for place in places],
        "used": "plain",
        "class": "",
        "classes": [file.parent.name for file in files],
    }
    return pd.DataFrame(columns)[COLUMNS[kind]]


def read_cutout(file: Path | str) -> Image.Image:
    """A cut-out as RGBA, cropped to what is visible of it.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file, it cannot be read, or has no transparency, or nothing but.
    """
    with datasets.open_picture(file, "cut-out") as picture:
        if not picture.has_transparency_data:
            raise ValueError(f"{Path(file).name} has no transparency: a cut-out needs an RGBA file")
        picture = picture.convert("RGBA")
    alpha = picture.getchannel("A")
    if alpha.getextrema()[1] < OPAQUE:
        raise ValueError(f"{Path(file).name} is transparent all over: there is no object in it")
    return picture.crop(alpha.point(lambda value: 255 * (value >= OPAQUE // 8)).getbbox())


def read_background(file: Path | str, prepare: Preparation) -> Image.Image:
    """A photograph, no larger than :func:`random_crop` needs where that saves time.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file, or it cannot be read.
    """
    return Image.fromarray(datasets.read_photo(file, 2 * prepare.crop))


def random_crop(photo: Image.Image, prepare: Preparation, draw: np.random.Generator) -> Image.Image:
    """A random square of a photograph at the network's size, mirrored half of the time.

    Its side is half to all of the shorter side.
    """
    return _square(photo, prepare, draw.uniform(0.5, 1), *draw.random(3))


# --- montages ------------------------------------------------------------------------------------

DECODED = 16
"""Backgrounds that are kept in memory, 1 to 3 MB each: decoding one takes longer than all else."""
KINDS = ("single", "pair", "scene", "null")
SIZES = {"single": (0.45, 0.8), "pair": (0.42, 0.5)}
"""Longer side of an object as a share of the picture's width, from and to."""


@dataclass(frozen=True)
class Montage:
    """A photomontage with all that was put into it.

    Attributes
    ----------
    image, background
        H×W×3 uint8, with and without the objects.
    labels
        One of each object, then that of the scene; None where there is none.
    masks
        One of each label, H×W bool: the pixels of the object, or those of the scene.
    cutouts, place
        Names of the objects and of the background.
    """

    image: np.ndarray
    background: np.ndarray
    labels: tuple[int | None, ...]
    masks: np.ndarray
    cutouts: tuple[str, ...]
    place: str


def _pick(pictures: Sequence[Picture], draw: np.random.Generator) -> Picture:
    return pictures[int(draw.random() * len(pictures))]


class Montages(Sequence):
    """Photomontages of a split as samples; each is made when it is read, always the same way.

    Cut-outs take turns. The background, its crop, the object's position and size, and whether
    either is mirrored are drawn at random, seeded by split and number of the scene; the same number
    gives the same places in every kind but pairs. No cut-out and no background of a split is in
    another.

    Parameters
    ----------
    collection
        Cut-outs and backgrounds.
    split
        ``"train"``, ``"validation"`` or ``"test"``.
    count
        How many scenes the sequence holds.
    kind
        ``"single"``: one object. ``"pair"``: two objects of different classes, side by side or one
        above the other. ``"scene"``: an object on a background that is a class itself. ``"null"``:
        as single, but the pixels within the mask are those of another background, and there is
        no label.
    target
        Which of the two labels of a pair or scene is the sample's: a scene's second one is the
        background's, and its mask is all that the object does not cover.
    hard
        The object is cut along its mask; else its edges stay as transparent as they were.
    prepare
        Size and normalisation of the images.

    Raises
    ------
    ValueError
        No such split, kind or target; or too few pictures for it.
    """

    def __init__(
        self,
        collection: Collection,
        split: str,
        count: int,
        *,
        kind: str = "single",
        target: int = 0,
        hard: bool = False,
        prepare: Preparation = LITE0,
    ) -> None:
        for value, known in ((split, SPLITS), (kind, KINDS)):
            if value not in known:
                raise ValueError(f"no {value!r} here: choose one of {', '.join(known)}")
        if target not in range(1 + (kind in ("pair", "scene"))):
            raise ValueError(f"a scene of kind {kind!r} has no label number {target}")
        self.collection, self.split, self.count = collection, split, count
        self.kind, self.target, self.hard, self.prepare = kind, target, hard, prepare
        self.class_names, self.sets = collection.label_names, collection.sets
        self._photos = Memory(DECODED)
        self.name = "-".join([split] + [kind] * (kind != "single") + ["hard"] * hard)
        cutouts = [cutout for cutout in collection.cutouts if cutout.split == split]
        self.cutouts = [cutouts[i] for i in np.random.default_rng(0).permutation(len(cutouts))]
        self.places = [
            place
            for place in collection.backgrounds
            if place.split == split and (place.label is not None) == (kind == "scene")
        ]
        if not cutouts or len(self.places) < 1 + (kind == "null"):
            raise ValueError(
                f"too few pictures for {self.name}: {len(cutouts)} cut-outs, "
                f"{len(self.places)} backgrounds"
            )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int | slice) -> Sample | Chosen:
        index = range(self.count)[index]
        if isinstance(index, range):
            return Chosen([(self, place) for place in index])
        montage = self.scene(index)
        masks = torch.from_numpy(montage.masks)
        return Sample(
            image=self.prepare.normalise(montage.image),
            label=montage.labels[self.target],
            mask=masks[self.target],
            other=masks[1 - self.target] if len(masks) > 1 else None,
            name=f"{self.name}-{index}-{'-and-'.join(montage.cutouts)}-on-{montage.place}",
            group=montage.cutouts[0],
        )

    def scene(self, index: int) -> Montage:
        """The montage itself, with its background alone and both objects.

        Raises
        ------
        IndexError
            There are not so many scenes.
        FileNotFoundError, ValueError
            A file is missing or unreadable, or a cut-out has no transparency.
        """
        index = range(self.count)[index]
        draw = np.random.default_rng([SPLITS.index(self.split), index])
        place = _pick(self.places, draw)
        background = self._crop(place, draw)
        chosen = [self.cutouts[index % len(self.cutouts)]]
        regions = [(0, 0, self.prepare.crop, self.prepare.crop)]
        if self.kind == "pair":
            chosen.append(self._rival(chosen[0], draw))
            regions = self._halves(draw)
        layers = [self._layer(*pair, draw) for pair in zip(chosen, regions, strict=True)]
        image, paint, masks = background.copy(), None, []
        if self.kind == "null":
            others = [other for other in self.places if other is not place]
            paint = self._crop(_pick(others, draw), draw)
        for layer in layers:
            alpha = layer.getchannel("A")
            masks.append(np.array(alpha) >= OPAQUE)
            outline = Image.fromarray(masks[-1]) if self.hard else alpha
            image.paste(paint or layer, (0, 0), outline)
        labels = [None if paint else cutout.label for cutout in chosen]
        if self.kind == "scene":
            masks.append(~masks[0])
            labels.append(place.label)
        return Montage(
            image=np.array(image),
            background=np.array(background),
            labels=tuple(labels),
            masks=np.stack(masks),
            cutouts=tuple(cutout.name for cutout in chosen),
            place=place.name,
        )

    def pairs(self) -> dict[str, tuple[Montages, Montages]]:
        """As many scenes with two objects, or object and scene, once for either as the target."""

        def side(kind: str, target: int) -> Montages:
            like = {"hard": self.hard, "prepare": self.prepare}
            return Montages(
                self.collection, self.split, self.count, kind=kind, target=target, **like
            )

        kinds = {"two-object scenes": "pair", "object-and-scene pairs": "scene"}
        return {name: (side(kind, 0), side(kind, 1)) for name, kind in kinds.items()}

    def batches(self) -> Iterator[Tensor]:
        """All scenes as network input (B×3×H×W)."""
        return _batched(self[index].image for index in range(self.count))

    def digest(self) -> str:
        """Changes with the content of the files that are used here, and with this code."""
        files = [Path(__file__), *(picture.file for picture in self.cutouts + self.places)]
        prepared = hashlib.sha256(repr(astuple(self.prepare)).encode()).hexdigest()[:6]
        return f"montages-{self.name}-{datasets.files_hash(files)}-{prepared}"

    def _crop(self, place: Picture, draw: np.random.Generator) -> Image.Image:
        read = partial(read_background, place.file, self.prepare)
        return random_crop(self._photos.once(place.file, read), self.prepare, draw)

    def _rival(self, first: Picture, draw: np.random.Generator) -> Picture:
        """A cut-out that has no class in common with the first."""
        sets = self.collection.sets
        rivals = [c for c in self.cutouts if set(sets[c.label]).isdisjoint(sets[first.label])]
        if not rivals:
            raise ValueError(f"{self.split} has cut-outs of one class only: a pair needs two")
        return _pick(rivals, draw)

    def _halves(self, draw: np.random.Generator) -> list[tuple[int, int, int, int]]:
        """Two halves of the picture (left, top, width, height) in random order."""
        size = self.prepare.crop
        half = size // 2
        halves = [(0, 0, half, size), (half, 0, half, size)]
        if draw.random() < 0.5:
            halves = [(top, left, height, width) for left, top, width, height in halves]
        return halves if draw.random() < 0.5 else halves[::-1]

    def _layer(
        self, cutout: Picture, region: tuple[int, int, int, int], draw: np.random.Generator
    ) -> Image.Image:
        """A cut-out somewhere within ``region`` on a transparent picture (RGBA)."""
        left, top, width, height = region
        piece = _mirrored(read_cutout(cutout.file), draw.random())
        longer = draw.uniform(*SIZES.get(self.kind, SIZES["single"])) * self.prepare.crop
        size = [max(1, int(side * longer / max(piece.size))) for side in piece.size]
        piece = piece.resize(size, self.prepare.interpolation)
        left += int(draw.random() * (width - piece.width + 1))
        top += int(draw.random() * (height - piece.height + 1))
        layer = Image.new("RGBA", (self.prepare.crop, self.prepare.crop))
        layer.paste(piece, (left, top))
        return layer
