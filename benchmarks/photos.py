"""Are the photomontages fair? What EfficientNet-Lite0 makes of them, and of what they are made of.

    python -m benchmarks.photos            # 500 test scenes: benchmarks/photos.csv (ten minutes)
    python -m benchmarks.photos verdicts   # cut-outs and backgrounds one by one: data/*.csv

``verdicts`` fills in columns of the two tables, so that the data set itself asks no network: ``p``,
the probability of a cut-out's classes on plain grey (where the network names it wrong, the command
ends with an error, and the row has to go); and ``class``, ``p`` and ``used`` of every background:
its most probable class and the mean probability of the best one over a few crops. A background
that shows a thing is not used (its ``note`` says so), nor is one of which the network is sure.
One whose most probable class is a scene, such as a valley, is used for object against scene only.
Both need what ``make photos`` gets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from riba import progress
from riba.testbed import networks, photos
from riba.testbed.photos import LITE0, Collection, Montages

TABLE = Path(__file__).with_suffix(".csv")
SCENES = ("alp", "cliff", "coral reef", "geyser", "lakeside", "promontory", "sandbar", "seashore")
SCENES += ("valley", "volcano")
"""Classes of ImageNet that are scenes and no things."""
SURE, LIKELY = 0.4, 0.3
"""Mean probability of the best class from which on the network is sure of a background, and from
which on a scene is one."""
CROPS = 24
GREY_SIZE = 0.625
"""Longer side of a cut-out on plain grey as a share of the width: the middle of what is drawn."""


class Judge:
    """EfficientNet-Lite0 and its classes."""

    def __init__(self) -> None:
        self.model: nn.Module = networks.efficientnet_lite0().to(memory_format=torch.channels_last)
        self.class_names = networks.torchvision_input("resnet50")[1]

    @torch.no_grad()
    def __call__(self, pictures: Sequence[np.ndarray | Image.Image]) -> Tensor:
        """Class probabilities (B×1000) of pictures (224×224)."""
        images = [LITE0.normalise(np.array(picture)) for picture in pictures]
        parts = torch.stack(images).split(photos.BATCH)
        return torch.cat([self.model(part).softmax(1) for part in parts])


# --- cut-outs and backgrounds one by one ---------------------------------------------------------


def verdicts(judge: Judge) -> list[str]:
    """Fill in the tables; the cut-outs that are named wrong on grey."""
    cutouts = pd.read_csv(photos.TABLES["cutouts"], dtype=str, keep_default_na=False)
    wrong = []
    for place, row in enumerate(progress.track(cutouts.to_dict("records"), "cut-outs")):
        p = judge([on_grey(photos.FETCHED / "cutouts" / row["file"])])[0]
        classes = [judge.class_names.index(name) for name in row["classes"].split("; ")]
        cutouts.loc[place, "p"] = f"{p[classes].sum().item():.3f}"
        if p.argmax().item() not in classes:
            wrong.append(f"{row['file']} ({judge.class_names[p.argmax().item()]})")
    cutouts.to_csv(photos.TABLES["cutouts"], index=False)
    places = pd.read_csv(photos.TABLES["backgrounds"], dtype=str, keep_default_na=False)
    for place, row in enumerate(progress.track(places.to_dict("records"), "backgrounds")):
        draw = np.random.default_rng(0)
        photo = photos.read_background(photos.FETCHED / "backgrounds" / row["file"], LITE0)
        p = judge([photos.random_crop(photo, LITE0, draw) for _ in range(CROPS)])
        best, name = p.amax(1).mean().item(), judge.class_names[p.mean(0).argmax().item()]
        places.loc[place, ["class", "p"]] = name, f"{best:.3f}"
        places.loc[place, "used"] = use_of(row["note"], name, best)
    places.to_csv(photos.TABLES["backgrounds"], index=False)
    return wrong


def use_of(note: str, name: str, best: float) -> str:
    """What a background is used for: ``plain``, ``scene`` or ``no``."""
    if note:
        return "no"
    if name in SCENES and best >= LIKELY:
        return "scene"
    return "no" if best >= SURE else "plain"


def on_grey(file: Path) -> Image.Image:
    """A cut-out in the middle of plain grey, 224×224."""
    piece = photos.read_cutout(file)
    factor = GREY_SIZE * LITE0.crop / max(piece.size)
    piece = piece.resize([max(1, int(side * factor)) for side in piece.size], LITE0.interpolation)
    grey = Image.new("RGB", (LITE0.crop, LITE0.crop), (128, 128, 128))
    corner = (grey.width - piece.width) // 2, (grey.height - piece.height) // 2
    grey.paste(piece, corner, piece)
    return grey


# --- scenes --------------------------------------------------------------------------------------


def fairness(judge: Judge, count: int, split: str = "test") -> dict[str, float]:
    """Measures of the first ``count`` scenes of each kind, by name."""
    collection = photos.fetched(judge.class_names)
    measure = partial(Scenes, judge, collection, split, count)
    single, hard, pair, scene, null = (
        measure(kind="single"),
        measure(kind="single", hard=True),
        measure(kind="pair"),
        measure(kind="scene"),
        measure(kind="null"),
    )
    right = single.rank(0) == 0
    cutouts = {name for name, good in zip(single.groups, right, strict=True) if good}
    both, against = (both_in_top(scenes, 5) for scenes in (pair, scene))
    return {
        "background alone names the object's class": (single.rank(0, "background") == 0).mean(),
        "object named right": right.mean(),
        "object named right, hard edges": (hard.rank(0) == 0).mean(),
        "mean probability of the object's classes": single.probability().mean(),
        "mean area of the object": single.areas.mean(),
        "smallest area of the object": single.areas.min(),
        "cut-outs": len(set(single.groups)),
        "cut-outs named right in a scene": len(cutouts),
        "null paste names the cut-out's class": (null.rank(0, labels=single.labels) == 0).mean(),
        "pairs with both classes in the top two": both_in_top(pair, 2).mean(),
        "pairs with both classes in the top five": both.mean(),
        "pairs with both classes in the top five, how many": both.sum(),
        "mean area of an object of a pair": pair.areas.mean(),
        "object against scene, both classes in the top two": both_in_top(scene, 2).mean(),
        "object against scene, both classes in the top five": against.mean(),
        "object against scene, both classes in the top five, how many": against.sum(),
        "cut-outs of these": len(set(np.array(scene.groups)[against])),
    }


class Scenes:
    """What the network makes of scenes of one kind, with their objects and without."""

    def __init__(
        self, judge: Judge, collection: Collection, split: str, count: int, **kind: object
    ) -> None:
        self.sets = collection.sets
        montages = Montages(collection, split, count, **kind)
        scenes = [montages.scene(i) for i in progress.track(range(count), montages.name)]
        self.labels = [scene.labels for scene in scenes]
        self.groups = [scene.cutouts[0] for scene in scenes]
        self.areas = np.array([scene.masks[0].mean() for scene in scenes])
        self.p = {"image": judge([scene.image for scene in scenes])}
        if montages.name == split:
            self.p["background"] = judge([scene.background for scene in scenes])

    def probability(self) -> np.ndarray:
        """Probability of the first label, all its classes together."""
        rows = zip(self.p["image"], self.labels, strict=True)
        return np.array([p[list(self.sets[labels[0]])].sum().item() for p, labels in rows])

    def rank(
        self, which: int, picture: str = "image", labels: Sequence[tuple[int, ...]] | None = None
    ) -> np.ndarray:
        """Place among all classes of label number ``which``, 0 is the first; the best of a set.

        Of the scenes' own labels, or of others.
        """
        rows = zip(self.p[picture], labels or self.labels, strict=True)
        places = ((p > p[list(self.sets[row[which]])].max()).sum() for p, row in rows)
        return np.array([place.item() for place in places])


def both_in_top(scenes: Scenes, count: int) -> np.ndarray:
    """Whether both labels are among the first ``count`` classes."""
    return np.maximum(scenes.rank(0), scenes.rank(1)) < count


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``python -m benchmarks.photos --help``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photos", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("fairness", "verdicts"), default="fairness")
    parser.add_argument("--scenes", type=int, default=500)
    arguments = parser.parse_args(argv)
    judge = Judge()
    if arguments.what == "verdicts":
        wrong = verdicts(judge)
        if wrong:
            sys.exit(f"named wrong on grey, remove from data/cutouts.csv: {', '.join(wrong)}")
        return
    measures = fairness(judge, arguments.scenes)
    table = pd.DataFrame({"measure": measures.keys(), "value": measures.values()})
    table["value"] = table["value"].astype(float).round(4)
    table.insert(1, "scenes", arguments.scenes)
    table.to_csv(TABLE, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
