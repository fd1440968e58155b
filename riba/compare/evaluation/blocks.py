"""A block of samples: explained together by each method, and every map measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from riba.compare import metrics
from riba.compare.methods import Method
from riba.compare.results import write_part
from riba.method.bottleneck import in_chunks, smooth
from riba.testbed.datasets import Sample
from riba.workbench import Workbench

FRACTIONS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75)
"""Budgets at which the allocation curve is tabulated."""
CURVE = tuple(f"allocation@{fraction:g}" for fraction in FRACTIONS)
CONTRAST = "two_object_contrast"
METRICS = (*metrics.LOCALISATION, *CURVE, CONTRAST, *metrics.FAITHFULNESS)
"""Names of everything that can be measured."""
KEYS = ["sample", "label", "digest", "method", "seed", "version", "metric", "mask"]
"""Columns that identify a row of the table."""
Jobs = list[tuple[str, list[str]]]
"""Methods, and which metrics of each."""


@dataclass(frozen=True)
class Block:
    """A few samples of one size, to be explained together by one method after the other.

    Attributes
    ----------
    images
        B×3×H×W.
    masks, others, void
        B×H×W bool: the object, objects of other classes, and pixels left out of every measure.
    rows
        Columns of the table that describe each sample.
    jobs
        Methods, and the metrics that are missing of each.
    seed
        Of whatever is random.
    explain
        ``"label"`` or ``"prediction"``.
    versions
        Of each method, by name.
    folder
        Where results are stored, which a worker may not reach; None: nowhere.
    """

    images: Tensor
    masks: Tensor
    others: Tensor
    void: Tensor
    rows: list[dict]
    jobs: Jobs
    seed: int
    explain: str
    versions: dict[str, str]
    folder: Path | None

    def results(self, wb: Workbench, methods: Mapping[str, Method]) -> Iterator[pd.DataFrame]:
        """Rows of the table, method by method; stored as soon as they are measured."""
        # of objects: a label that is None must not make floats of the others
        block, samples = self.to(wb.device), pd.DataFrame(self.rows, dtype=object)
        targets, size, plain = block.targets(wb), len(samples), None
        for name, names in self.jobs:
            method = methods[name]
            if method.plain != plain:  # a smoothed map is made of the one before it
                plain = method.plain

                def maps_of(part: slice, method: Method = plain) -> tuple[Tensor]:
                    given = {"masks": block.masks[part], "seed": self.seed}
                    return (method(wb, block.images[part], targets[part], **given),)

                (computed,), size = in_chunks(maps_of, len(samples), size)
            maps = smooth(computed, method.blur)
            key = {"method": name, "seed": self.seed, "version": self.versions[name]}
            frames = [
                samples.assign(**key, metric=metric, mask=mask, value=values.tolist())
                for metric, mask, values in block.measure(wb, targets, maps, names)
            ]
            frame = pd.concat(frames, ignore_index=True).infer_objects()
            if self.folder is not None and self.folder.is_dir():
                write_part(self.folder, frame, KEYS)
            yield frame

    def to(self, device: torch.device) -> Block:
        """The block with its images and masks on a device."""
        names = ("images", "masks", "others", "void")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def targets(self, wb: Workbench) -> Tensor:
        """What is explained: B class numbers, or B×classes bool."""
        if self.explain == "prediction":
            return wb.predict(self.images).argmax(1)
        return wb.targets([row["label"] for row in self.rows]).to(self.images.device)

    def measure(
        self, wb: Workbench, targets: Tensor, maps: Tensor, names: Sequence[str]
    ) -> Iterator[tuple[str, str, Tensor]]:
        """Metric, kind of mask, and B values, NaN where the metric does not apply."""
        for name in names:
            if name in metrics.FAITHFULNESS:
                metric = metrics.FAITHFULNESS[name]
                yield name, "none", metric(wb.model, self.images, targets, maps, seed=self.seed)
        band = metrics.border_band(self.masks) | metrics.border_band(self.others)
        singles = [[name] for name in names if name in metrics.LOCALISATION or name == CONTRAST]
        curve = [name for name in names if name in CURVE]  # from one ranking
        for mask, void in (("strict", self.void), ("banded", self.void | band)):
            for group in [*singles, curve] if curve else singles:
                for name, values in zip(group, self._localise(group, maps, void), strict=True):
                    yield name, mask, values

    def _localise(self, names: list[str], maps: Tensor, void: Tensor) -> Tensor:
        """Values (names × B) of one metric, or of several budgets of the allocation curve."""
        kinds = (self.masks, ~self.masks, self.others)
        rows, beside, other = ((pixels & ~void).any((1, 2)) for pixels in kinds)
        if names == ["auroc"]:
            rows &= beside
        elif names == [CONTRAST]:
            rows &= other
        filled = torch.full((len(names), len(rows)), torch.nan, dtype=torch.float64)
        if rows.any():
            filled[:, rows.cpu()] = self._scores(names, maps, void, rows).cpu()
        return filled

    def _scores(self, names: list[str], maps: Tensor, void: Tensor, rows: Tensor) -> Tensor:
        maps, masks, void = maps[rows], self.masks[rows], void[rows]
        if names == [CONTRAST]:
            return metrics.two_object_contrast(maps, masks, self.others[rows], void)
        if names[0] in CURVE:
            budgets = [FRACTIONS[CURVE.index(name)] for name in names]
            return metrics.allocation_curve(maps, masks, budgets, void).T
        return metrics.LOCALISATION[names[0]](maps, masks, void)


def stacked(samples: Sequence[Sample]) -> list[Tensor]:
    """Images, masks, others and void of samples, one batch each; no mask is an empty mask."""
    rows = [(sample.image, sample.mask, sample.other, sample.void) for sample in samples]
    empty = torch.zeros_like(rows[0][1])
    columns = zip(*rows, strict=True)
    return [torch.stack([empty if x is None else x for x in column]) for column in columns]
