"""Faithfulness: change pixels in the order of a map and measure the effect on the class.

Every measure takes the network, images (B×3×H×W), targets (B class numbers or B×classes bool) and
maps (B×H×W, larger is more important), and returns B values. Pixels of the same value are taken
in a random order that ``seed`` fixes. They raise ValueError where shapes differ or a map is not
finite.

Images changed in this way are unlike those that the network was trained on, so all of these are
rough: they complement localisation and do not replace it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riba.method.bottleneck import log_probability, smooth
from riba.method.network import check_images, check_targets, class_logit, errors_in_words

Targets = Tensor | Sequence[int]
BLUR = 5.0
AT_ONCE = 64
"""Images that pass through the network together."""


def insertion(
    model: nn.Module, images: Tensor, targets: Targets, maps: Tensor, steps: int = 20, seed: int = 0
) -> Tensor:
    """Area under the class probability while the image appears out of its blur, 0–1; high is good.

    Petsiuk et al., "RISE", BMVC 2018. The most important pixels come first, a ``1/steps`` share of
    the image at a time; the blur has a Gaussian of 5 pixels.
    """
    _check(model, images, maps)
    return _area(model, targets, _order(maps, seed), smooth(images, BLUR), images, steps)


def deletion(
    model: nn.Module, images: Tensor, targets: Targets, maps: Tensor, steps: int = 20, seed: int = 0
) -> Tensor:
    """Area under the class probability while the image turns grey, 0–1; low is good.

    Petsiuk et al., "RISE", BMVC 2018. The most important pixels go first; grey is 0 in the space
    that the network takes.
    """
    _check(model, images, maps)
    return _area(model, targets, _order(maps, seed), images, torch.zeros_like(images), steps)


def degradation(
    model: nn.Module,
    images: Tensor,
    targets: Targets,
    maps: Tensor,
    steps: int = 20,
    tile: int = 8,
    seed: int = 0,
) -> Tensor:
    """Area between both degradation curves, ∫ (LeRF − MoRF), in −1 to 1; high is good.

    Ancona et al., ICLR 2018; Schulz et al. 2020, section 4.3. Tiles turn grey by their mean
    relevance, most relevant first (MoRF) and least relevant first (LeRF).
    """
    _check(model, images, maps)
    tiles = F.avg_pool2d(maps[:, None].double(), tile, ceil_mode=True)[:, 0]
    grey = torch.zeros_like(images)
    most_first, least_first = (
        _pixelwise(_order(sign * tiles, seed), tile, maps.shape[1:]) for sign in (1, -1)
    )
    morf = _area(model, targets, most_first, images, grey, steps)
    return _area(model, targets, least_first, images, grey, steps) - morf


def sensitivity_n(
    model: nn.Module,
    images: Tensor,
    targets: Targets,
    maps: Tensor,
    shares: Sequence[float] = (0.01, 0.05, 0.1, 0.2, 0.4),
    subsets: int = 50,
    seed: int = 0,
) -> Tensor:
    """Correlation of a subset's relevance with the drop of the logit when it is removed, −1 to 1.

    Ancona et al., "Towards better understanding of gradient-based attribution methods", ICLR 2018:
    Pearson's correlation over random subsets of n pixels set to grey, here averaged over several n.
    A constant map has none: 0.

    Parameters
    ----------
    shares
        n as shares of the image.
    subsets
        Random subsets per n, the same for every image.
    """
    _check(model, images, maps)
    if not all(0 < share < 1 for share in shares):
        raise ValueError(f"shares must lie between 0 and 1, got {tuple(shares)}")
    flat = maps.detach().flatten(1).double()
    generator = torch.Generator().manual_seed(seed)
    whole = class_logit(*_answers(model, images, targets)).double()
    correlations = []
    for share in shares:
        count = max(1, round(share * flat.shape[1]))
        picks = torch.rand(subsets, flat.shape[1], generator=generator).topk(count).indices
        removed = torch.zeros(subsets, flat.shape[1], dtype=torch.bool)
        removed = removed.scatter_(1, picks, True).to(images.device)
        holes = removed.unflatten(1, maps.shape[1:])[:, None]
        logits = [class_logit(*_answers(model, images * ~hole, targets)) for hole in holes]
        drops = whole[:, None] - torch.stack(logits, dim=1).double()
        correlations.append(_pearson(flat @ removed.double().T, drops))
    return torch.stack(correlations).mean(0)


FAITHFULNESS: dict[str, Callable[..., Tensor]] = {
    metric.__name__: metric for metric in (insertion, deletion, degradation, sensitivity_n)
}
"""Measures that ask the network, by name: ``(model, images, targets, maps) -> B``."""


def _order(maps: Tensor, seed: int) -> Tensor:
    """Rank of every pixel by importance (B×H×W), from 0; ties at random."""
    flat = maps.flatten(1)
    shuffle = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed))
    shuffle = shuffle.to(maps.device)
    ranked = shuffle[flat[:, shuffle].argsort(dim=1, descending=True, stable=True)]
    return ranked.argsort(dim=1).view_as(maps)


def _pixelwise(order: Tensor, tile: int, size: torch.Size) -> Tensor:
    """Rank of every pixel (B×H×W) where whole tiles change: how many pixels change earlier."""
    large = order.repeat_interleave(tile, 1).repeat_interleave(tile, 2)
    ranks = large[:, : size[0], : size[1]].flatten(1)  # tiles at the far borders may be cut
    counts = torch.zeros_like(order.flatten(1)).scatter_add_(1, ranks, torch.ones_like(ranks))
    return (counts.cumsum(1) - counts).gather(1, ranks).unflatten(1, size)


def _area(
    model: nn.Module, targets: Targets, order: Tensor, start: Tensor, end: Tensor, steps: int
) -> Tensor:
    """Area under the class probability while ``start`` turns into ``end`` in ``order``, 0–1.

    (Σs − ½s₀ − ½s_N)/N: the trapezoid rule over a budget from 0 to 1.
    """
    probabilities = []
    for cutoff in torch.linspace(0, order[0].numel(), steps + 1).tolist():
        answers = _answers(model, torch.where((order < cutoff)[:, None], end, start), targets)
        probabilities.append(log_probability(*answers).exp().double())
    return torch.trapezoid(torch.stack(probabilities, dim=1), dx=1 / steps, dim=1)


@torch.no_grad()
def _answers(model: nn.Module, images: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Logits, and the targets as a tensor that fits them."""
    with errors_in_words(images):
        logits = torch.cat([model(part) for part in images.split(AT_ONCE)])
    return logits, check_targets(targets, logits)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation over the last dimension; 0 where one of the two is constant."""
    x, y = (values - values.mean(-1, keepdim=True) for values in (a, b))
    flat, other = (c.norm(dim=-1) <= 1e-9 * v.norm(dim=-1) for c, v in ((x, a), (y, b)))
    correlation = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
    return torch.where(flat | other, 0.0, correlation)


def _check(model: nn.Module, images: Tensor, maps: Tensor) -> None:
    if maps.shape != (len(images), *images.shape[2:]):
        raise ValueError(
            f"maps {tuple(maps.shape)} must be B×H×W of images {tuple(images.shape)}: "
            "resize the maps to the images"
        )
    if not torch.isfinite(maps).all():
        raise ValueError("a map holds NaN or infinite values: it cannot be ranked")
    check_images(model, images)
