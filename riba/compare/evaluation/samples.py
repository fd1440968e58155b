"""Which samples can be judged, and what the table says about each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from riba import progress, storage
from riba.compare.evaluation.blocks import CONTRAST
from riba.compare.methods import told
from riba.method.network import hash_of
from riba.testbed import datasets, segmentation
from riba.testbed.datasets import Chosen, Sample, files_hash
from riba.testbed.segmentation import Photos
from riba.workbench import Workbench

SMALLEST_OBJECT, LARGEST_OBJECT = 0.01, 0.75
"""Shares of the image; samples with smaller or larger objects are not judged."""
SEEN = f".samples-{files_hash([Path(datasets.__file__), Path(segmentation.__file__)])}.json"
"""What is known of the samples of a folder of results, so that their files are read once."""
Seen = dict[str, tuple[str, dict[str, object]]]
"""By :func:`_stamp`: the size of a sample, and what a row of the table says about it."""


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
    wb: Workbench, samples: Sequence[Sample], metrics: Sequence[str], explain: str, seen: Seen
) -> tuple[Chosen, list[dict[str, object]], list[str]]:
    """Check samples before they are evaluated; those that were ``seen`` are not read, others enter.

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
            stamp = _stamp(samples, place, CONTRAST in metrics)
            shape, row = seen.get(stamp) or _read(wb, samples[place], metrics, explain)
            if shape != (size := size or shape):
                raise ValueError(f"sample {row['sample']} is {shape}, others {size}: resize it")
            if row["digest"] in rows:
                raise ValueError(f"sample {row['sample']} is in the list twice")
        except (OSError, ValueError) as error:
            unreadable.append(str(error))
            continue
        places.append((samples, place))
        rows[row["digest"]] = row
        seen |= {stamp: (shape, row)} if stamp else {}
    if not rows:
        reasons = f" ({'; '.join(unreadable)})" if unreadable else ""
        raise ValueError(f"no samples to evaluate: pass one that can be read and judged{reasons}")
    return Chosen(places), list(rows.values()), unreadable


def remembered(folder: Path | None) -> Seen:
    """What earlier runs have seen."""
    with suppress(OSError, ValueError):
        return json.loads((folder / SEEN).read_text(encoding="utf-8")) if folder else {}
    return {}


def remember(folder: Path, seen: Seen) -> None:
    """Store what was seen, where it is news."""
    if len(seen) > len(remembered(folder)):
        with storage.unless_full("what the samples are"), storage.whole(folder / SEEN) as part:
            part.write_text(json.dumps(seen, default=int), encoding="utf-8")


def _stamp(samples: Sequence[Sample], place: int, *asked: object) -> str:
    """What tells the files of a sample from others, and from what they were; empty without files.

    Not their content, but all that changes when a file is written or another takes its place.
    """
    while isinstance(samples, Chosen):
        samples, place = samples.places[place]
    if type(samples) is not Photos:  # of a subclass, files may not be all
        return ""
    entry = samples.entries[place]
    files = [file.stat() for file in entry if isinstance(file, Path) and file.is_file()]
    states = [(x.st_dev, x.st_ino, x.st_size, x.st_mtime_ns, x.st_ctime_ns) for x in files]
    named = samples.class_names[entry.label or 0 :][:1]
    text = repr((entry, states, named, samples.prepare, told(samples.decode), asked))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _read(
    wb: Workbench, sample: Sample, metrics: Sequence[str], explain: str
) -> tuple[str, dict[str, object]]:
    """The size of a sample, and the table's columns about it; the digest identifies its content."""
    tensors = (sample.image, sample.mask, sample.other, sample.void)
    digest = hash_of(tensor for tensor in tensors if tensor is not None)
    digest.update(str(sample.label).encode())
    name = sample.name or digest.hexdigest()
    _check(wb, sample, name, metrics, explain)
    return "×".join(map(str, sample.image.shape)), {
        "sample": name,
        "group": sample.group or name,
        "label": sample.label,
        "digest": digest.hexdigest(),
        "area": sample.mask.double().mean().item(),
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
