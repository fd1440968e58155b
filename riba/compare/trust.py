"""Can a map be trusted? Randomised weights, shuffled channels, mosaics of several scenes.

None of these ranks methods; each is a way to catch a map that does not depend on what it claims to
explain (Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018; Sixt et al., "When
Explanations Lie", ICML 2020; Binder et al., "Shortcomings of Top-Down Randomization-Based Sanity
Checks", CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from riba.method import relevance
from riba.method.bottleneck import InformationBottleneck
from riba.method.explicit import frozen_copy
from riba.method.joint import JointBottlenecks
from riba.method.network import find_layer, fingerprint, names_through
from riba.method.statistics import FeatureStatistics
from riba.testbed import datasets


def explain(
    model: nn.Module, stats: Mapping[str, FeatureStatistics], images: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """The maps that are put to the test, by name, from one network and its statistics.

    Parameters
    ----------
    stats
        Feature statistics by layer, the deepest first.
    images, targets
        B×3×H×W and B class numbers.

    Returns
    -------
    B×H×W maps: ``IBA`` at the deepest layer (bits), ``LRP`` (logits), ``Relevance-IBA`` as
    published from the deepest layer, ``joint`` and ``cascade`` from all (nats).
    """
    layers = list(stats)
    deepest, shallowest = layers[0], layers[-1]
    top = InformationBottleneck(model, deepest, stats[deepest])(images, targets)
    found = JointBottlenecks(model, list(stats.values()))(images, targets)
    pixels = {
        "LRP": relevance.lrp(model, images, targets),
        "Relevance-IBA": relevance.descend(model, deepest, images, top.nats),
        "joint": relevance.descend(model, shallowest, images, found[shallowest].nats),
        "cascade": relevance.cascade(model, images, found),
    }
    maps = {name: values.sum(1) for name, values in pixels.items()}
    return {"IBA": top.bits(tuple(images.shape[-2:])), **maps}


def weighted_layers(model: nn.Module) -> list[str]:
    """Names of the layers that hold weights, from the logits down."""
    names = [name for name, module in model.named_modules() if hasattr(module, "reset_parameters")]
    return names[::-1]


def randomised(model: nn.Module, layers: Iterable[str], seed: int = 0) -> nn.Module:
    """A copy of ``model`` whose ``layers`` hold freshly drawn weights, as before any training.

    Each tensor keeps its mean and its spread, so that the signal stays in range (a fresh
    initialisation would let it die away, and every method would notice that).

    Raises
    ------
    ValueError
        A layer that does not exist; the message lists near matches.
    """
    copy = frozen_copy(model)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers:
            for weight in find_layer(copy, layer).parameters():
                noise = torch.randn(weight.shape, generator=draw).to(weight)
                spread = weight.std() if weight.numel() > 1 else 0.0
                weight.copy_(weight.mean() + spread * noise)
    return copy


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Spearman's correlation of two maps (B×H×W each) over their pixels: B values.

    Ties share their mean rank; NaN where a map is constant.
    """
    ranks, other = (_ranks(m.flatten(1)) for m in (maps, others))
    ranks, other = (r - r.mean(1, keepdim=True) for r in (ranks, other))
    return (ranks * other).sum(1) / (ranks.norm(dim=1) * other.norm(dim=1))


def _ranks(values: Tensor) -> Tensor:
    """Mean ranks per row, in float64."""
    rows = []
    for row in values:
        _, place, count = row.unique(return_inverse=True, return_counts=True)
        last = count.cumsum(0).double()
        rows.append((last - (count - 1) / 2)[place])
    return torch.stack(rows)


def shuffled_channels(relevance: Tensor, seed: int = 0) -> Tensor:
    """Relevance (B×C×h×w) with the channels of every location in another order.

    The same order for every image, another at each location; the location's total stays.
    """
    _, channels, *size = relevance.shape
    draw = torch.Generator().manual_seed(seed)
    order = torch.rand(channels, *size, generator=draw).argsort(0).to(relevance.device)
    return relevance.gather(1, order.expand_as(relevance))


def mosaic(samples: Sequence[datasets.Sample], across: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """``across``² scenes of different classes as one picture, for the grid pointing game.

    Böhle, Fritz and Schiele, "Convolutional Dynamic Alignment Networks for Interpretable
    Classifications", CVPR 2021.

    Returns
    -------
    Picture (3×across·H×across·W), labels (across²), and the masks of the cells
    (across²×across·H×across·W bool).

    Raises
    ------
    ValueError
        Not that many samples, or two of the same class.
    """
    if len(samples) != across**2 or len({sample.label for sample in samples}) < across**2:
        raise ValueError(f"a mosaic takes {across**2} samples of different classes")
    images, labels, masks = datasets.stack(samples)
    height, width = masks.shape[1:]
    picture = images.unflatten(0, (across, across)).permute(2, 0, 3, 1, 4)
    cells = torch.zeros(across**2, across * height, across * width, dtype=torch.bool)
    for cell in range(across**2):
        row, column = divmod(cell, across)
        rows = slice(row * height, (row + 1) * height)
        cells[cell, rows, column * width : (column + 1) * width] = True
    return picture.reshape(3, across * height, across * width), labels, cells


def tiled(stats: FeatureStatistics, across: int = 2) -> FeatureStatistics:
    """Feature statistics for a mosaic: those of one picture, repeated ``across`` times each way."""
    mean, std, active = (x.tile(1, across, across) for x in (stats.mean, stats.std, stats.active))
    size = (across * stats.size[0], across * stats.size[1])
    return replace(stats, mean=mean, std=std, active=active, size=size)


def statistics_of(
    model: nn.Module,
    stats: Mapping[str, FeatureStatistics],
    changed: Iterable[str],
    images: Callable[[], Iterable[Tensor]],
) -> dict[str, FeatureStatistics]:
    """Statistics of a network that differs from that of ``stats`` in the ``changed`` layers.

    Those of layers below all of them are carried over; the others are fitted to ``images()``,
    which may be few.
    """
    own = {}
    for layer, known in stats.items():
        if set(names_through(model, layer)).isdisjoint(changed):
            own[layer] = carried_over(known, model)
        else:
            own[layer] = FeatureStatistics.fit(model, layer, images(), few=True)
    return own


def carried_over(stats: FeatureStatistics, model: nn.Module) -> FeatureStatistics:
    """Statistics for another network that is the same up to their layer.

    Which the caller vouches for: only then do they describe it.
    """
    return replace(stats, fingerprint=fingerprint(model))
