"""Localisation of a map against segmentation masks.

The publication's own formula is not public; these are the standard measures closest to its words,
"the most important pixels within an object's boundaries". Ties count by expectation, so a
constant map scores chance: the share of the image that the mask covers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rank_accuracy(maps: Tensor, masks: Tensor, void: Tensor | None = None) -> Tensor:
    """Relevance rank accuracy: the share of the K = |mask| most important pixels in the mask.

    Parameters
    ----------
    maps
        B×H×W, signed; larger is more important.
    masks
        B×H×W bool, True on the object.
    void
        B×H×W bool, True on pixels left out of mask, K and ranking (a border band).

    Returns
    -------
    B values in 0–1. Chance is the mask's share of the pixels; ties count by expectation.

    Raises
    ------
    ValueError
        Shapes differ, a mask is empty, or a map holds NaN or infinite values.

    References
    ----------
    Arras, Osman and Samek, "CLEVR-XAI", Information Fusion 2022, Eq. (3).
    """
    maps, masks, keep = _prepared(maps, masks, void)
    size = masks.sum(dim=1)
    ranked = maps.masked_fill(~keep, -torch.inf).sort(dim=1, descending=True).values
    threshold = ranked.gather(1, size[:, None] - 1)
    above = (maps > threshold) & keep
    tied = (maps == threshold) & keep
    room = (size - above.sum(dim=1)).double()
    hits = (above & masks).sum(dim=1) + room * (tied & masks).sum(dim=1) / tied.sum(dim=1)
    return hits / size


def mass_accuracy(maps: Tensor, masks: Tensor, void: Tensor | None = None) -> Tensor:
    """Relevance mass accuracy: the share of the positive relevance that lies in the mask.

    Arguments, errors and reference as for :func:`rank_accuracy` (Eq. 2 there). A map with no
    positive value at all scores chance, as a constant map does.
    """
    maps, masks, keep = _prepared(maps, masks, void)
    positive = maps.clamp(min=0) * keep
    positive = torch.where(positive.any(dim=1, keepdim=True), positive, keep.to(positive))
    return (positive * masks).sum(dim=1) / positive.sum(dim=1)


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
