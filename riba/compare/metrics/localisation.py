"""Localisation of a map against segmentation masks.

The publication's own formula is not public; these are the standard measures closest to its words,
"the most important pixels within an object's boundaries". Every measure takes

maps
    B×H×W, signed; larger is more important.
masks
    B×H×W bool, True on the object.
void
    B×H×W bool, True on pixels left out of mask, size and ranking (:func:`border_band`), or None.

and returns B values in float64. They raise ValueError where shapes differ, a mask is empty, or a
map holds NaN or infinite values. Pixels of the same value are ranked by expectation over every
order of them, never by where they lie: a constant map scores chance.

Notation: n pixels, mask G of K pixels, α = K/n, and H(j), the expected number of pixels of G among
the j most important.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BAND = 0.01
"""Half the width of the border band, as a share of the image's width."""

LARGEST_BOX = 0.33
"""Boxes above this share of the image are not counted (Schulz et al. 2020)."""


# --- the most important pixels -------------------------------------------------------------------


def allocation_curve(
    maps: Tensor, masks: Tensor, fractions: Sequence[float], void: Tensor | None = None
) -> Tensor:
    """Pixel importance allocation A(p): the share of the p·n most important pixels that lie in G.

    Chance is α at every p, an oracle reaches min(1, α/p).

    Parameters
    ----------
    fractions
        Budgets p in (0, 1]; between whole pixels the hits are interpolated, and at least one pixel
        is counted.

    Returns
    -------
    B×fractions.
    """
    budget = torch.as_tensor(fractions, dtype=torch.float64, device=maps.device)
    if budget.ndim != 1 or not ((budget > 0) & (budget <= 1)).all():
        raise ValueError(f"fractions must lie in (0, 1], one or more in a list; got {fractions}")
    ranking = _Ranking(maps, masks, void)
    pixels = (budget * ranking.pixels[:, None]).clamp(min=1)
    return ranking.hits(pixels) / pixels


def allocation_area(maps: Tensor, masks: Tensor, void: Tensor | None = None) -> Tensor:
    """Mean precision over all budgets up to the object's size: (1/K) Σ_{j=1…K} H(j)/j."""
    ranking = _Ranking(maps, masks, void)
    budget = torch.arange(1, ranking.hits_at.shape[1], device=maps.device, dtype=torch.float64)
    within = budget <= ranking.size[:, None]
    return (ranking.hits_at[:, 1:] / budget * within).sum(1) / ranking.size


def rank_accuracy(maps: Tensor, masks: Tensor, void: Tensor | None = None) -> Tensor:
    """Relevance rank accuracy A(α) = H(K)/K: the share of the K most important pixels in the mask.

    Arras, Osman and Samek, "CLEVR-XAI", Information Fusion 2022, eq. 3. Chance is α.
    """
    ranking = _Ranking(maps, masks, void)
    return ranking.hits(ranking.size[:, None])[:, 0] / ranking.size


def rank_skill(maps: Tensor, masks: Tensor, void: Tensor | None = None) -> Tensor:
    """Rank accuracy above chance: (A(α) − α)/(1 − α), 0 by chance and 1 at best.

    NaN where the mask covers the whole image.
    """
    _, inside, keep = _prepared(maps, masks, void)
    chance = inside.sum(1).double() / keep.sum(1)
    return (rank_accuracy(maps, masks, void) - chance) / (1 - chance)


def iou_at_k(maps: Tensor, masks: Tensor, void: Tensor | None = None) -> Tensor:
    """Intersection over union of G and the K most important pixels: H(K)/(2K − H(K)).

    Of the expected intersection, where values are equal. Chance is α/(2 − α).
    """
    accuracy = rank_accuracy(maps, masks, void)
    return accuracy / (2 - accuracy)


def pointing_game(maps: Tensor, masks: Tensor, void: Tensor | None = None) -> Tensor:
    """Whether the most important pixel lies in the mask, H(1); without any tolerance around it.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016.
    """
    return _Ranking(maps, masks, void).hits_at[:, 1]


def auroc(maps: Tensor, masks: Tensor, void: Tensor | None = None) -> Tensor:
    """Probability that a pixel of the object ranks above one beside it; ties count one half."""
    ranking = _Ranking(maps, masks, void)
    hits = ranking.hits_at
    misses = torch.arange(hits.shape[1], device=hits.device).minimum(ranking.pixels[:, None]) - hits
    area = ((hits[:, 1:] + hits[:, :-1]) / 2 * misses.diff(dim=1)).sum(1)
    beside = ranking.pixels - ranking.size
    if (beside == 0).any():
        raise ValueError("a mask covers the whole image: nothing to rank against, drop that sample")
    return area / (ranking.size * beside)


def average_precision(maps: Tensor, masks: Tensor, void: Tensor | None = None) -> Tensor:
    """Mean over the pixels of G of the precision at their rank, expected over every order of ties.

    Chance is that of a random ranking, slightly above α.
    """
    ranking = _Ranking(maps, masks, void)
    start, end, before, inside = ranking.groups
    width, position = end - start, torch.arange(start.shape[1], device=maps.device) - start
    # given a hit at this rank, each rank above it in its group is one of the other hits with
    # probability (inside - 1) / (width - 1)
    others = position * (inside - 1).clamp(min=0) / (width - 1).clamp(min=1)
    expected = inside / width * (before + others + 1) / (start + position + 1)
    return expected.sum(1) / ranking.size


# --- the relevance itself ------------------------------------------------------------------------


def mass_accuracy(maps: Tensor, masks: Tensor, void: Tensor | None = None) -> Tensor:
    """Relevance mass accuracy Σ_G a⁺ / Σ a⁺: the share of the positive relevance in the mask.

    Arras, Osman and Samek, "CLEVR-XAI", Information Fusion 2022, eq. 2. A map with no positive
    value at all scores chance, α, as a constant map does.
    """
    maps, masks, keep = _prepared(maps, masks, void)
    positive = _positive(maps, keep)
    return (positive * masks).sum(1) / positive.sum(1)


def effective_heat_ratio(maps: Tensor, masks: Tensor, void: Tensor | None = None) -> Tensor:
    """Heat in the mask per pixel above a threshold, averaged over thresholds.

    Zhang et al., "Fine-Grained Neural Network Explanation by Identifying Input Features with
    Predictive Information", NeurIPS 2021. Heat is a⁺ over its maximum; thresholds are the deciles
    of the heat of at least 0.1, at most 0.99; trapezoid rule over them. A constant map scores α.
    """
    maps, masks, keep = _prepared(maps, masks, void)
    heat = _positive(maps, keep)
    levels = torch.arange(11, dtype=heat.dtype, device=heat.device) / 10
    warm = heat.masked_fill((heat < 0.1) | ~keep, torch.nan)
    thresholds = warm.nanquantile(levels, dim=1).clamp(max=0.99)
    above = (heat >= thresholds[:, :, None]) & keep
    ratios = (above * masks * heat).sum(2) / above.sum(2)
    return torch.trapezoid(ratios, levels, dim=0)


def two_object_contrast(
    maps: Tensor, masks: Tensor, other_masks: Tensor, void: Tensor | None = None
) -> Tensor:
    """Share of the explained object in the mean relevance of two objects: m_A / (m_A + m_B).

    m is the mean of a⁺ over an object. Chance is 0.5; a map without positive relevance on either
    object scores 0.5, too.

    Parameters
    ----------
    masks, other_masks
        B×H×W bool: the object of the explained class, and one of another class; disjoint.
    """
    _, others, _ = _prepared(maps, other_masks, void)
    maps, masks, _ = _prepared(maps, masks, void)
    if (masks & others).any():
        raise ValueError("the masks of the two objects overlap: make them disjoint first")
    positive = _positive(maps, masks | others)
    target_mean = (positive * masks).sum(1) / masks.sum(1)
    other_mean = (positive * others).sum(1) / others.sum(1)
    return target_mean / (target_mean + other_mean)


# --- bounding boxes ------------------------------------------------------------------------------


def energy_pointing_game(maps: Tensor, masks: Tensor, void: Tensor | None = None) -> Tensor:
    """Share of the positive relevance in the object's bounding box (Wang et al., 2020)."""
    _prepared(maps, masks, void)
    return mass_accuracy(maps, boxes(masks), void)


def bounding_box_ratio(maps: Tensor, masks: Tensor, void: Tensor | None = None) -> Tensor:
    """Share of the most important pixels, as many as the box has, in the bounding box.

    Schulz et al. 2020, section 4.4. NaN where the box covers more than 33 % of the image: there is
    little to miss.
    """
    _prepared(maps, masks, void)
    box = boxes(masks)
    small = box.double().mean((1, 2)) <= LARGEST_BOX
    return rank_accuracy(maps, box, void).where(small, torch.nan)


def boxes(masks: Tensor) -> Tensor:
    """The bounding box of every mask, as a mask (B×H×W bool)."""
    rows, columns = masks.any(2), masks.any(1)
    return _span(rows)[:, :, None] & _span(columns)[:, None, :]


def _span(hit: Tensor) -> Tensor:
    """True from the first True to the last, per row."""
    count = hit.long()
    return (count.cumsum(1) > 0) & (count.flip(1).cumsum(1).flip(1) > 0)


# --- the border band -----------------------------------------------------------------------------


def border_band(masks: Tensor, share: float = BAND) -> Tensor:
    """A void band along the border of each mask, as wide on its inside as on its outside.

    A contour is evidence on both of its sides; VOC draws the same kind of border and calls it void.

    Parameters
    ----------
    masks
        B×H×W bool.
    share
        Half the band's width as a share of the image's width; at least one pixel.

    Returns
    -------
    B×H×W bool: pixels within that many pixels (in any direction) of one of the other kind.
    """
    masks, reach = masks.bool(), max(1, round(share * masks.shape[-1]))
    return _grown(masks, reach) & _grown(~masks, reach)


def _grown(masks: Tensor, reach: int) -> Tensor:
    return F.max_pool2d(masks.float()[:, None], 2 * reach + 1, 1, reach)[:, 0] > 0


# --- how good a coarse map can be ----------------------------------------------------------------


def best_at_stride(masks: Tensor, stride: int) -> Tensor:
    """The mask itself as a layer with cells of ``stride`` pixels can hold it, enlarged: B×H×W.

    Each cell holds the share of its pixels on the object; enlarged bilinearly, as IBA's maps are.
    What it scores is a ceiling for maps that are only enlarged.

    Raises
    ------
    ValueError
        The masks cannot be cut into whole cells.
    """
    if masks.shape[1] % stride or masks.shape[2] % stride:
        raise ValueError(f"masks {tuple(masks.shape)} cannot be cut into cells of {stride} pixels")
    cells = F.avg_pool2d(masks.float()[:, None], stride)
    return F.interpolate(cells, masks.shape[1:], mode="bilinear", align_corners=False)[:, 0]


# --- the ranking of pixels ------------------------------------------------------------------------


class _Ranking:
    """Maps ranked once, with ties by expectation.

    Attributes
    ----------
    size, pixels
        B: K and n, without the void.
    hits_at
        B×(n + 1): H(j) for j = 0 … n.
    groups
        Per rank (B×n): where its group of equal values starts and ends, hits before the group, and
        hits in it.
    """

    def __init__(self, maps: Tensor, masks: Tensor, void: Tensor | None) -> None:
        maps, masks, keep = _prepared(maps, masks, void)
        self.size, self.pixels = masks.sum(1).double(), keep.sum(1).double()
        values, order = maps.masked_fill(~keep, -torch.inf).sort(1, descending=True)
        hits = F.pad(masks.gather(1, order).double().cumsum(1), (1, 0))
        ranks = torch.arange(values.shape[1], device=values.device).expand_as(values)
        changes = values[:, 1:] != values[:, :-1]
        first = F.pad(changes, (1, 0), value=True)
        last = F.pad(changes, (0, 1), value=True)
        start = ranks.where(first, 0).cummax(1).values
        end = (ranks + 1).where(last, values.shape[1]).flip(1).cummin(1).values.flip(1)
        before = hits.gather(1, start)
        inside = hits.gather(1, end) - before
        self.groups = start, end, before, inside
        self.hits_at = F.pad(before + inside * (ranks + 1 - start) / (end - start), (1, 0))

    def hits(self, pixels: Tensor) -> Tensor:
        """H at budgets (B×m), linear between whole pixels."""
        low = pixels.double().floor().clamp(max=self.hits_at.shape[1] - 1)
        high = (low + 1).clamp(max=self.hits_at.shape[1] - 1)
        below, above = self.hits_at.gather(1, low.long()), self.hits_at.gather(1, high.long())
        return below + (pixels - low) * (above - below)


def _positive(maps: Tensor, keep: Tensor) -> Tensor:
    """Positive relevance of the pixels that count; where there is none at all, a constant.

    Over its maximum, so that no sum of it overflows or vanishes.
    """
    positive = maps.clamp(min=0) * keep
    positive = torch.where(positive.any(1, keepdim=True), positive, keep.to(positive))
    return positive / positive.amax(1, keepdim=True)


def _prepared(maps: Tensor, masks: Tensor, void: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Flat float64 maps, flat masks without the void, and the pixels that count."""
    if maps.ndim != 3 or maps.shape != masks.shape:
        raise ValueError(
            f"maps {tuple(maps.shape)} and masks {tuple(masks.shape)} must both be B×H×W: "
            "resize the map to the mask"
        )
    if void is not None and void.shape != masks.shape:
        raise ValueError(f"void {tuple(void.shape)} must be as large as masks {tuple(masks.shape)}")
    if not torch.isfinite(maps).all():
        raise ValueError("a map holds NaN or infinite values: it cannot be ranked")
    keep = torch.ones_like(masks, dtype=torch.bool) if void is None else ~void.bool()
    masks = masks.bool() & keep
    if not masks.flatten(1).any(dim=1).all():
        raise ValueError("a mask is empty (or all void): drop that sample first")
    return maps.flatten(1).double(), masks.flatten(1), keep.flatten(1)


LOCALISATION: dict[str, Callable[..., Tensor]] = {
    metric.__name__: metric
    for metric in (
        allocation_area,
        rank_accuracy,
        mass_accuracy,
        rank_skill,
        iou_at_k,
        pointing_game,
        energy_pointing_game,
        auroc,
        average_precision,
        effective_heat_ratio,
        bounding_box_ratio,
    )
}
"""Measures of one map against one mask, by name: ``(maps, masks, void=None) -> B``."""
