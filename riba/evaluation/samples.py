"""Which samples can be judged: right class, neither too small nor too large."""

from __future__ import annotations

from collections.abc import Sequence

from riba import datasets
from riba.workbench import Workbench

SMALLEST, LARGEST = 0.01, 0.75
"""Objects outside this share of the image are not judged."""


def select(
    wb: Workbench, samples: Sequence[datasets.Sample], count: int
) -> tuple[list[datasets.Sample], dict[str, int]]:
    """The first ``count`` samples that can be judged, and how many were passed over and why.

    The network gets the class right (with a second object: both classes are its top two), and the
    object covers 1–75 % of the image.
    """
    kept, passed = [], {"wrong class": 0, "object too small or large": 0}
    for index in range(len(samples)):
        if len(kept) == count:
            break
        sample = samples[index]
        best = wb.predict(sample.image[None])[0].topk(1 if sample.other is None else 2).indices
        if not SMALLEST <= sample.mask.double().mean() <= LARGEST:
            passed["object too small or large"] += 1
        elif sample.label not in best:
            passed["wrong class"] += 1
        else:
            kept.append(sample)
    return kept, passed


def select_pairs(
    wb: Workbench, split: str, count: int
) -> tuple[list[datasets.Sample], dict[str, int]]:
    """Both objects of the first two-object scenes whose classes are the network's top two."""
    sides = [datasets.Scenes(split, 2 * count, others=1, target=target) for target in (0, 1)]
    kept, passed = [], 0
    for index in range(2 * count):
        pair, _ = select(wb, [side[index] for side in sides], 2)
        passed += len(pair) < 2
        kept += pair if len(pair) == 2 else []
        if len(kept) == 2 * count:
            break
    return kept, {"two objects, not both on top or too small": passed}
