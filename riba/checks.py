"""Checkers of the notebooks' exercises: each tries the learner's function on values of its own.

The right answers come from the package or from a second, independent way of computing them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torchvision.transforms.functional import center_crop
from zennit.core import Hook
from zennit.rules import Epsilon, ZPlus

from riba.compare import metrics
from riba.method import bottleneck, network, relevance, rules
from riba.testbed import segmentation

Function = Callable[..., object]


class Verdict(NamedTuple):
    """Whether an answer is right, and one sentence on it."""

    right: bool
    message: str

    def __repr__(self) -> str:
        return f"{'✓' if self.right else '✗'} {self.message}"

    def __bool__(self) -> bool:
        return self.right


def _compare(function: Function, case: tuple, expected: Tensor, tolerance: float) -> str:
    """What is wrong with the learner's result for one case; empty where nothing is."""
    try:
        result = function(*deepcopy(case))
    except Exception as error:  # a learner's function may raise anything
        return f"your function raised {type(error).__name__}: {error}"
    if result is None or result is ...:
        return "nothing returned yet: fill in the function and run the cell"
    try:
        result = torch.as_tensor(result).double()
    except (TypeError, ValueError, RuntimeError):
        return f"the result is a {type(result).__name__}, not numbers"
    if result.shape != expected.shape:
        return f"the result has shape {tuple(result.shape)}, expected {tuple(expected.shape)}"
    if not torch.allclose(result, expected, rtol=tolerance, atol=tolerance):
        return f"right shape, but off by up to {(result - expected).abs().max().item():.3g}"
    return ""


def _checker(cases: Sequence[tuple], praise: str, tolerance: float = 1e-4) -> Callable:
    """Make the right answer that follows into a checker of a learner's function, on ``cases``."""

    def checker_of(answer: Function) -> Callable[[Function], Verdict]:
        def check(function: Function) -> Verdict:
            for case in cases:
                expected = torch.as_tensor(answer(*case)).double()
                if fault := _compare(function, case, expected, tolerance):
                    return Verdict(False, fault)
            return Verdict(True, praise)

        check.__name__, check.__doc__ = answer.__name__, answer.__doc__
        return check

    return checker_of


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


PAIRS = [(_random(6, 6, seed=s), _random(6, 6, seed=s + 9)) for s in range(3)]
"""Two maps without ties."""
MAPS = [(one - 0.4, other > 0.6) for one, other in PAIRS]
"""Signed maps with masks."""
RANKS = [*PAIRS, (PAIRS[0][0], PAIRS[0][0].exp())]
"""Two maps, the last the rescaled first."""
MAPS_OF_TWO = [(one - 0.4, other > 0.7, other < 0.2) for one, other in PAIRS]
"""Signed maps with masks of two objects."""
MASKS = [(_random(8, 8, seed=s) > 0.6,) for s in range(3)]
"""Masks of a larger image."""
CELLS = torch.zeros(2, 8, 8, dtype=torch.bool)
CELLS[0, :4, :4] = CELLS[1, 4:, :4] = True
"""Masks of two quarters of an image."""
MOSAICS = [(_random(8, 8) - 0.4, CELLS[0]), (_random(8, 8, seed=1) - 0.4, CELLS[1])]
"""Signed maps with the mask of one quarter."""
EMPTY = (torch.zeros(8, 8), CELLS[0])
"""A map without relevance."""
FEATURES = [(_random(2, 3, 4, 4, seed=s), _random(2, 3, 4, 4, seed=s + 5)) for s in (0, 1)]
"""Nats and features."""
CENTRED = [(nats, (features - 0.5).clamp(min=0)) for nats, features in FEATURES]
"""Nats and features, half of them inactive."""
GAUSSIANS = [
    (3 * r, mean, 0.1 + std, 0.95 * lambda_) for r, mean, std, lambda_ in _random(2, 4, 2, 3, 4)
]
"""Features, their mean and standard deviation, and λ."""
PIXELS = [(r, lambda_, mean) for r, mean, _, lambda_ in GAUSSIANS]
"""Pixels, λ and the prior's share m."""
DENSE = [
    (_random(6, seed=s), _random(4, 6, seed=s + 1) - 0.4, _random(4, seed=s + 2)) for s in (0, 20)
]
"""Inputs, weights and relevance above of dense layers."""
DAMPED = [(*case, eps) for case in DENSE for eps in (0.1, 1.0)]
"""Dense layers, and ε."""
PICTURES = [(_random(6, 10, 3),), (_random(9, 5, 3, seed=1),), (_random(4, 4, 3, seed=2),)]
"""Pictures, H×W×3."""
BYTES = [((256 * _random(4, 5, 3, seed=s)).to(torch.uint8),) for s in range(2)]
"""Masks as ImageNet-S stores them, H×W×3 bytes."""
LOGITS = [(4 * _random(3, 6), [0, 4]), (4 * _random(3, 6, seed=1), [2])]
"""Logits, and a set of classes."""


@_checker([(_random(3, 4, 5),), (_random(7, seed=1),)], "one nat is 1.44 bits", 1e-5)
def total_bits(nats: Tensor) -> Tensor:
    """Notebook 00: nats of any shape to the total number of bits."""
    return nats.sum() / math.log(2)


@_checker(MAPS, "negative relevance counts as none")
def mass_accuracy(values: Tensor, mask: Tensor) -> Tensor:
    """Notebook 01: share of the positive relevance in the mask, for one map."""
    return metrics.mass_accuracy(values[None], mask[None])[0]


@_checker(MASKS, "a map that knows nothing scores the mask's share of the picture")
def chance(mask: Tensor) -> Tensor:
    """Notebook 01: the rank accuracy of a constant map, from the mask alone."""
    return metrics.rank_accuracy(torch.ones(1, 8, 8), mask[None])[0]


@_checker(GAUSSIANS, "the KL of two Gaussians, element by element")
def capacity(r: Tensor, mean: Tensor, std: Tensor, lambda_: Tensor) -> Tensor:
    """Notebook 02: nats per element, against ``torch.distributions``."""
    rest = 1 - lambda_
    return kl_divergence(Normal(lambda_ * r + rest * mean, rest * std), Normal(mean, std))


@_checker([(_random(4, 4), 16), (_random(4, 4, seed=1), 128)], "larger, and the total stays")
def enlarge(bits: Tensor, size: int) -> Tensor:
    """Notebook 02: a map of bits enlarged with its total preserved."""
    return bottleneck.to_bits(bits[None, None] * math.log(2), size)[0]


@_checker(PIXELS, "only what the prior did not expect is counted")
def input_capacity(x: Tensor, lambda_: Tensor, m: Tensor) -> Tensor:
    """Notebook 03: nats beyond the prior at the pixels, against ``torch.distributions``."""
    return kl_divergence(Normal(lambda_ * x, 1 - lambda_), Normal(lambda_ * m * x, 1 - lambda_ * m))


@_checker([(*MASKS[0], 2), (*MASKS[1], 4)], "no map at this layer can know more")
def best_at_stride(mask: Tensor, stride: int) -> Tensor:
    """Notebook 03: the share of every cell that lies on the object."""
    return nn.functional.avg_pool2d(mask.double()[None, None], stride)[0, 0]


@_checker([(one, other > 0.6) for one, other in PAIRS], "early hits count more than late ones")
def allocation_area(values: Tensor, mask: Tensor) -> Tensor:
    """Notebook 06: mean precision over budgets up to the object's size, for a map without ties."""
    return metrics.allocation_area(values[None], mask[None])[0]


@_checker(MAPS_OF_TWO, "size does not matter, only mean relevance does")
def two_object_contrast(values: Tensor, target: Tensor, other: Tensor) -> Tensor:
    """Notebook 06: how far a map prefers its target object, for one map."""
    return metrics.two_object_contrast(values[None], target[None], other[None])[0]


@_checker([*MOSAICS, EMPTY], "knowing nothing gives every cell its share")
def grid_pointing(values: Tensor, cell: Tensor) -> Tensor:
    """Notebook 07: share of the positive relevance in one cell, for one map."""
    return metrics.mass_accuracy(values[None], cell[None])[0]


@_checker(RANKS, "only the order counts: any monotone rescaling leaves it alone")
def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Notebook 07: Spearman's correlation of two maps without ties, against SciPy's."""
    return spearmanr(one.flatten(), other.flatten())[0]


@_checker(DENSE, "never negative, and nothing lost")
def z_plus(x: Tensor, weight: Tensor, above: Tensor) -> Tensor:
    """Notebook 04: the z⁺ rule of a dense layer, against Zennit's."""
    return _below_dense(ZPlus(), x, weight, above)


@_checker(DAMPED, "the larger ε, the more it keeps", 1e-3)
def epsilon(x: Tensor, weight: Tensor, above: Tensor, eps: float) -> Tensor:
    """Notebook 04: the ε rule of a dense layer, against Zennit's."""
    return _below_dense(Epsilon(eps), x, weight, above)


def _below_dense(rule: Hook, x: Tensor, weight: Tensor, above: Tensor) -> Tensor:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    return rules.hand_down(rule, layer, x[None], above[None])[0]


@_checker(CENTRED, "the rest says that something is absent")
def active_share(nats: Tensor, features: Tensor) -> Tensor:
    """Notebook 05: share of the nats on units with r > 0."""
    return (nats * (features > 0)).sum() / nats.sum()


@_checker(FEATURES, "every location keeps its nats")
def spread(nats: Tensor, features: Tensor) -> Tensor:
    """Notebook 05: nats of a location over its channels by activation."""
    return relevance.spread_by_activation(nats, features)


@_checker(PICTURES, "what lies outside, the network never sees")
def middle(picture: Tensor) -> Tensor:
    """Notebook 08: the largest square in the middle of a picture, against torchvision's crop."""
    return center_crop(picture.movedim(-1, 0), min(picture.shape[:2])).movedim(0, -1)


@_checker(LOGITS, "a set of one is the class itself")
def set_logit(logits: Tensor, members: list[int]) -> Tensor:
    """Notebook 09: the logit of a set of classes, for B×classes logits."""
    inside = torch.zeros(logits.shape, dtype=torch.bool)
    inside[:, members] = True
    return network.class_logit(logits, inside)


@_checker(BYTES, "bytes added as bytes would start again at 256")
def class_numbers(rgb: Tensor) -> Tensor:
    """Notebook 09: class numbers of a mask of ImageNet-S, R + 256 · G, for H×W×3 bytes."""
    return segmentation.numbers_of(rgb.numpy())
