"""The tests of trust of notebook 07, on a hundred scenes, beside the controls without LRP.

    python -m benchmarks.trust                       # the bundled network, test scenes
    python -m benchmarks.trust efficientnet-lite0    # an hour; montages, needs `make photos`

Every test runs on the methods of :data:`riba.trust.UNDER_TEST`, plain IBA and the strongest
controls without LRP among them. Writes the network's rows of ``benchmarks/trust.csv``: means with
intervals over scenes (montages: over cut-outs), and the paired difference from the control in the
column ``against`` with Holm's p.

- *randomised*: rank correlation with the trained network's map after the weights were drawn anew;
  low is good.
- *other class*: rank correlation of the maps for the two classes of one picture; low is good.
- *absent class*: what is left of the map's total for a class that is not there, and where its first
  pixels lie (allocation area on the object that is).
- *grid pointing*: share in the class's quarter of a mosaic; bundled network only.
- *cheating network*: share in the mark that it reads, and the honest network's share there; bundled
  network only.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

import riba
from riba.compare import metrics, trust
from riba.compare.evaluation import compare, select, select_pairs, summarise
from riba.method.network import names_through
from riba.testbed import datasets
from riba.testbed.datasets import Sample
from riba.testbed.networks import CLEVER_HANS_WEIGHTS

TABLE = Path(__file__).with_suffix(".csv")
CONTROL, JOINT_CONTROL = "no LRP", "joint, no LRP"
JOINT = ("joint", "cascade", JOINT_CONTROL)
"""Labels of :data:`riba.trust.UNDER_TEST`: the strongest controls, and what the second is for."""
BATCH = 12
REFERENCE = 128
"""Training images for the statistics of randomised layers."""
Values = dict[str, dict[str, Tensor]]
"""A value for each image, by measure and label of the method."""


def explain(wb: riba.Workbench, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The maps under test, a few images at a time."""
    parts = [
        trust.explain(wb, images[s : s + BATCH], targets[s : s + BATCH])
        for s in tqdm(range(0, len(images), BATCH), "maps", leave=False)
    ]
    return {label: torch.cat([part[label] for part in parts]) for label in parts[0]}


def correlated(maps: dict[str, Tensor], others: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rank correlation of magnitudes, method by method."""
    return {k: trust.rank_correlation(maps[k].abs(), others[k].abs()) for k in maps}


def on_single(wb: riba.Workbench, samples: Sequence[Sample]) -> Iterator[tuple[str, dict]]:
    """Randomised weights, and a class that is not there."""
    images, labels, masks = datasets.stack(samples)
    targets, band = wb.targets(labels), metrics.border_band(masks)
    trained = explain(wb, images, targets)
    layers = trust.weighted_layers(wb.model)
    reference = datasets.stack([wb.train[index] for index in range(REFERENCE)])[0]
    below = set(names_through(wb.model, wb.layer))
    levels = {
        "logits": layers[:1],
        "above the bottleneck": [layer for layer in layers if layer not in below],
        "everything": layers,
    }
    for level, names in levels.items():
        model = trust.randomised(wb.model, names)
        bench = trust.with_network(wb, model, names, lambda: reference.split(BATCH))
        yield f"randomised: {level}", correlated(trained, explain(bench, images, targets))
    least = wb.predict(images).argmin(1)
    absent = explain(wb, images, least)
    yield "absent class: correlation", correlated(trained, absent)
    total = {k: absent[k].clamp(min=0).sum((1, 2)) / trained[k].clamp(min=0).sum((1, 2))
             for k in trained}  # fmt: skip
    yield "absent class: total left", total
    for test, maps in (("own", trained), ("absent", absent)):
        area = {k: metrics.allocation_area(values, masks, band) for k, values in maps.items()}
        yield f"{test} class: area on the object", area


def on_pairs(wb: riba.Workbench, sides: Sequence[Sample]) -> dict[str, Tensor]:
    """Correlation of the maps for the two classes of a picture (``sides`` in turns)."""
    images, labels, _ = datasets.stack(sides)
    maps = explain(wb, images, wb.targets(labels))
    return correlated(*({k: v[side::2] for k, v in maps.items()} for side in (0, 1)))


def mosaics(wb: riba.Workbench, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Mosaics of four test scenes whose classes are the network's top four."""
    start = 100
    while count:
        four: dict[int, Sample] = {}
        for index in range(start, start + 12):
            four.setdefault(wb.test[index].label, wb.test[index])
        start += 12
        if len(four) >= 4:
            picture, labels, cells = trust.mosaic(list(four.values())[:4])
            top = wb.predict(picture[None])[0].topk(4).indices
            if set(top.tolist()) == set(labels.tolist()):
                count -= 1
                yield picture.expand(4, -1, -1, -1), labels, cells


def pointing(wb: riba.Workbench, count: int) -> dict[str, Tensor]:
    """Share of each map in its quarter, the mean of a mosaic's four."""
    shares: dict[str, list[Tensor]] = {label: [] for label in trust.UNDER_TEST}
    wide = trust.tiled(wb)
    for picture, labels, cells in tqdm(mosaics(wb, count), "mosaics", count, leave=False):
        for label, values in trust.explain(wide, picture, labels).items():
            shares[label].append(metrics.mass_accuracy(values, cells).mean())
    return {label: torch.stack(values) for label, values in shares.items()}


def cheating(wb: riba.Workbench, count: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Share in the corner mark, of scenes that the cheating network gets right only with it."""
    hans = riba.load(weights=CLEVER_HANS_WEIGHTS)
    marked, plain = (datasets.Scenes("test", 10 * count, shortcut=x) for x in (True, False))
    cheats, index = [], 0
    while len(cheats) < count:
        right = [
            hans.predict(side[index].image[None]).argmax().item() == side[index].label
            for side in (marked, plain)
        ]
        cheats += [index] * (right == [True, False])
        index += 1
    images, targets, _ = datasets.stack([marked[i] for i in cheats])
    marks = torch.stack([torch.from_numpy(marked.scene(i).shortcut) for i in cheats])
    for name, bench in (("cheating", hans), ("honest", wb)):
        maps = explain(bench, images, targets)
        mass = {k: metrics.mass_accuracy(values, marks) for k, values in maps.items()}
        yield f"{name} network: share in the mark", mass


def rows(test: str, values: dict[str, Tensor], groups: Sequence[str]) -> pd.DataFrame:
    """Rows of a tidy table: a value for each image and method."""
    frames = [
        pd.DataFrame({"sample": range(len(value)), "group": groups, "value": value.cpu()}).assign(
            method=label, metric=test, mask="none"
        )
        for label, value in values.items()
    ]
    return pd.concat(frames)


def measured(wb: riba.Workbench, scenes: int) -> Iterator[pd.DataFrame]:
    """Every test."""
    singles, _ = select(wb, wb.test, scenes)
    chosen = [singles[i] for i in range(len(singles))]
    for test, values in on_single(wb, chosen):
        yield rows(test, values, [s.group or s.name for s in chosen])
    drawn = isinstance(wb.test, datasets.Scenes)
    top = 2 if drawn else 5
    sides, _ = select_pairs(wb, wb.test.pairs()["two-object scenes"], scenes, top)
    sides = [sides[i] for i in range(len(sides))]
    yield rows("other class", on_pairs(wb, sides), [s.group or s.name for s in sides[::2]])
    if drawn:
        quarters = pointing(wb, scenes // 4)
        yield rows("grid pointing", quarters, range(len(next(iter(quarters.values())))))
        for test, values in cheating(wb, scenes):
            yield rows(test, values, range(scenes))


def main() -> None:
    """Measure one network; the rows of others stay as they were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?", default="scenenet")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--device", help="cuda, or cpu")
    parser.add_argument("--out", type=Path, default=TABLE)
    arguments = parser.parse_args()
    data = "photos" if arguments.network == "efficientnet-lite0" else None
    wb = riba.load(arguments.network, data=data, device=arguments.device)
    table = pd.concat(measured(wb, arguments.scenes), ignore_index=True)
    joint = table["method"].isin(JOINT)
    paired = pd.concat([compare(table[~joint], CONTROL), compare(table[joint], JOINT_CONTROL)])
    paired = paired.drop(columns=["mask", "n"])
    names = {"low": "difference_low", "high": "difference_high", "p_holm": "p"}
    fresh = summarise(table).drop(columns="mask")
    fresh = fresh.merge(paired.rename(columns=names), how="left", on=["method", "metric"])
    fresh = fresh.rename(columns={"metric": "test"})
    fresh.insert(0, "network", arguments.network)
    old = [pd.read_csv(arguments.out)] if arguments.out.is_file() else []
    kept = [rows_[rows_["network"] != arguments.network] for rows_ in old]
    pd.concat([*kept, fresh]).to_csv(arguments.out, index=False, float_format="%.5g")
    print(fresh.pivot_table("mean", "test", "method", sort=False).round(3).to_string())


if __name__ == "__main__":
    main()
