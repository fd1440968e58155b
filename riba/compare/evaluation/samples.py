"""Which samples can be judged: right class, neither too small nor too large."""

from __future__ import annotations

from collections.abc import Sequence

from riba import progress
from riba.testbed import datasets
from riba.workbench import Workbench

SMALLEST, LARGEST = 0.01, 0.75
"""Objects outside this share of the image are not judged."""
NO_COUNTERPART, UNREADABLE = "no such class in the network", "unreadable"
UNLABELLED = "no mask or no label"


def select(
    wb: Workbench, samples: Sequence[datasets.Sample], count: int | None = None
) -> tuple[datasets.Chosen, dict[str, int]]:
    """The first ``count`` samples that can be judged, and how many were passed over and why.

    The network gets the class right, or one of the classes that the label stands for (with a
    second object: both classes are its top two), and the object covers 1–75 % of the image. The
    samples are read again when they are asked for: none is kept in memory.

    Parameters
    ----------
    count
        How many; None: all there are.
    """
    kept, passed = [], {"wrong class": 0, "object too small or large": 0}
    for index in progress.track(range(len(samples)), "choosing samples"):
        if len(kept) == count:
            break
        try:
            why = _unfit(wb, samples[index])
        except (OSError, ValueError):
            why = UNREADABLE
        if why is None:
            kept.append((samples, index))
        else:
            passed[why] = passed.get(why, 0) + 1
    return datasets.Chosen(kept), passed


def _unfit(wb: Workbench, sample: datasets.Sample) -> str | None:
    """Why a sample cannot be judged; None where it can."""
    if sample.mask is None or sample.label is None:
        return UNLABELLED
    if not SMALLEST <= sample.mask.double().mean() <= LARGEST:
        return "object too small or large"
    classes = wb.classes(sample.label)
    if not classes:
        return NO_COUNTERPART
    best = wb.predict(sample.image[None])[0].topk(1 if sample.other is None else 2).indices
    return None if set(best.tolist()) & set(classes) else "wrong class"


def select_pairs(wb: Workbench, split: str, count: int) -> tuple[datasets.Chosen, dict[str, int]]:
    """Both objects of the first two-object scenes whose classes are the network's top two."""
    sides = [datasets.Scenes(split, 2 * count, others=1, target=target) for target in (0, 1)]
    kept, passed = [], 0
    for index in range(2 * count):
        pair = datasets.Chosen([(side, index) for side in sides])
        fits = len(select(wb, pair)[0]) == 2
        passed += not fits
        kept += pair.places if fits else []
        if len(kept) == 2 * count:
            break
    return datasets.Chosen(kept), {"two objects, not both on top or too small": passed}
