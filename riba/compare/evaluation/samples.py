"""Which samples can be judged, and what the table says about each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from riba import progress
from riba.compare.evaluation.blocks import CONTRAST
from riba.testbed.datasets import Chosen, Sample
from riba.workbench import Workbench

SMALLEST_OBJECT, LARGEST_OBJECT = 0.01, 0.75
"""Shares of the image; samples with smaller or larger objects are not judged."""


def select(
    wb: Workbench, samples: Sequence[Sample], count: int | None = None, top: int = 2
) -> tuple[Chosen, dict[str, int]]:
    """The first ``count`` samples that can be judged, and how many were left out by reason.

    The network gets the class right, or one of the classes that the label stands for (with a
    second object: both are among its ``top`` classes), and the object covers 1–75 % of the image
    (with a second: each at least 1 %). The samples are read again when they are used: none stays in
    memory.

    Parameters
    ----------
    count
        How many; None: all there are.
    """
    places, left_out = [], {"wrong class": 0, "object too small or large": 0}
    for index in progress.track(range(len(samples)), "choosing samples"):
        if len(places) == count:
            break
        try:
            sample = samples[index]
        except (OSError, ValueError):
            reason = "unreadable"
        else:
            reason = _unfit(wb, sample, top)
        if reason is None:
            places.append((samples, index))
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    return Chosen(places), left_out


def _unfit(wb: Workbench, sample: Sample, top: int) -> str | None:
    """Why a sample cannot be judged; None where it can."""
    if sample.mask is None or sample.label is None:
        return "no mask or no label"
    largest = LARGEST_OBJECT if sample.other is None else 1
    if not SMALLEST_OBJECT <= sample.mask.double().mean() <= largest:
        return "object too small or large"
    classes = wb.classes(sample.label)
    if not classes:
        return "no such class in the network"
    best = wb.predict(sample.image[None])[0].topk(1 if sample.other is None else top).indices
    return None if set(best.tolist()) & set(classes) else "wrong class"


def select_pairs(
    wb: Workbench, sides: Sequence[Sequence[Sample]], count: int, top: int = 2
) -> tuple[Chosen, int]:
    """Both targets of the first ``count`` scenes that have both among the network's top classes.

    Parameters
    ----------
    sides
        The same scenes twice, with either target, as :meth:`riba.datasets.Scenes.pairs` has them.

    Returns
    -------
    The samples, two a scene, and how many scenes were left out.
    """
    places, left_out = [], 0
    for index in progress.track(range(len(sides[0])), "choosing pairs"):
        if len(places) == 2 * count:
            break
        pair = Chosen([(side, index) for side in sides])
        if all(len(select(wb, Chosen([place]), top=top)[0]) for place in pair.places):
            places += pair.places
        else:
            left_out += 1
    return Chosen(places), left_out


def read_once(
    wb: Workbench, samples: Sequence[Sample], metrics: Sequence[str], explain: str
) -> tuple[Chosen, list[dict[str, object]], list[str]]:
    """Check samples before they are evaluated.

    Returns
    -------
    The samples that can be read and measured, what a row of the table says about each, and why
    others are passed over.

    Raises
    ------
    ValueError
        None is left.
    """
    places, rows, unreadable, size = [], {}, [], None
    for place in progress.track(range(len(samples)), "reading samples"):
        try:
            sample = samples[place]
            row = _identified(sample)
            _check(wb, sample, row["sample"], metrics, explain)
            size = size or sample.image.shape
            if sample.image.shape != size:
                raise ValueError(
                    f"sample {row['sample']} is {'×'.join(map(str, sample.image.shape))}, others "
                    f"{'×'.join(map(str, size))}: resize it"
                )
            if row["digest"] in rows:
                raise ValueError(f"sample {row['sample']} is in the list twice")
        except (OSError, ValueError) as error:
            unreadable.append(str(error))
            continue
        places.append((samples, place))
        rows[row["digest"]] = row
    if not rows:
        reasons = f" ({'; '.join(unreadable)})" if unreadable else ""
        raise ValueError(f"no samples to evaluate: pass one that can be read and judged{reasons}")
    return Chosen(places), list(rows.values()), unreadable


def _identified(sample: Sample) -> dict[str, object]:
    """Columns of the table that describe a sample; the digest identifies it."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in (sample.image, sample.mask, sample.other, sample.void):
        if tensor is not None:
            digest.update(tensor.contiguous().numpy().data)
    digest.update(str(sample.label).encode())
    return {
        "sample": sample.name or digest.hexdigest(),
        "group": sample.group or sample.name or digest.hexdigest(),
        "label": sample.label,
        "digest": digest.hexdigest(),
        "area": 0.0 if sample.mask is None else sample.mask.double().mean().item(),
    }


def _check(wb: Workbench, sample: Sample, name: str, metrics: Sequence[str], explain: str) -> None:
    if sample.mask is None:
        raise ValueError(f"sample {name} has no mask: it can be explained, but not judged")
    if sample.mask.shape != sample.image.shape[1:]:
        raise ValueError(
            f"sample {name}: mask {tuple(sample.mask.shape)} and image "
            f"{tuple(sample.image.shape[1:])} differ in size: resize the mask"
        )
    if not sample.mask.any():
        raise ValueError(f"sample {name}: its mask is empty, drop it first")
    if CONTRAST in metrics and sample.other is None:
        raise ValueError(f"sample {name} has one object only: {CONTRAST} needs two")
    known = range(len(wb.class_names if wb.sets is None else wb.sets))
    named = sample.label is not None and sample.label in known and wb.classes(sample.label)
    if explain == "label" and not named:
        raise ValueError(
            f"sample {name}: no class of the network stands for its label: take the samples that "
            "riba.evaluation.select keeps, or explain='prediction'"
        )
