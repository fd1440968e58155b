"""Photographs that come with scikit-image: five to explain, and crops for feature statistics.

They are in the public domain or CC0; scikit-image's ``data/README.txt`` names each source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import skimage
import torch
from PIL import Image
from torch import Tensor

from riba.testbed import datasets, segmentation
from riba.testbed.datasets import Preparation
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
"""Crops in one batch: larger batches are slower on a CPU."""
LITE0 = Preparation(256, 224, (0.5,) * 3, (0.5,) * 3, Image.Resampling.BICUBIC)
"""Preparation with which EfficientNet-Lite0 was trained."""


def examples(class_names: Sequence[str] = ()) -> Photos:
    """The photographs of :data:`EXAMPLES` as EfficientNet-Lite0 takes them; no labels, no masks."""
    entries = [Entry(name, FOLDER / file) for name, file in EXAMPLES.items()]
    return Photos(entries, LITE0, class_names, segmentation.silhouette)


def crops(count: int) -> Iterator[Tensor]:
    """Random squares of the eight photographs as batches of network input (B×3×224×224).

    Each has 30 to 100 % of the shorter side, and is mirrored half of the time. They stand in for a
    thousand photographs: the spread between pictures is understated, and those to be explained are
    among them.
    """
    pictures = [Image.fromarray(datasets.read_photo(file)) for file in FILES]
    draw = torch.Generator().manual_seed(0)
    batch = []
    for place in range(count):
        picture = pictures[place % len(pictures)]
        scale, across, down, mirrored = torch.rand(4, generator=draw).tolist()
        side = min(picture.size) * (0.3 + 0.7 * scale)
        left, top = (picture.width - side) * across, (picture.height - side) * down
        size, box = (LITE0.crop, LITE0.crop), (left, top, left + side, top + side)
        square = picture.resize(size, LITE0.interpolation, box)
        if mirrored > 0.5:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        batch.append(LITE0.normalise(square))
        if len(batch) == BATCH or place == count - 1:
            yield torch.stack(batch)
            batch = []


def digest() -> str:
    """Hash of the photographs and of this code: whatever changes the crops changes it."""
    return datasets.files_hash([*FILES, Path(__file__)])
