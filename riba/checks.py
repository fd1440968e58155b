"""Checkers of the notebooks' exercises: each tries the learner's function on values of its own.

The right answers come from the package or from a second, independent way of computing them. Every
case has a name, which a hint repeats: "wrong for negative values: off by up to 0.12".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torchvision.transforms.functional import center_crop
from zennit.rules import ZPlus

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


def _compare(function: Function, name: str, case: tuple, right: Tensor, tolerance: float) -> str:
    """What is wrong with the learner's result for one case; empty where nothing is."""
    wrong = f"wrong for {name}:"
    try:
        result = function(*deepcopy(case))
    except Exception as error:  # a learner's function may raise anything
        return f"{wrong} your function raised {type(error).__name__}: {error}"
    if result is None or result is ...:
        return "nothing returned yet: fill in the function and run the cell"
    try:
        if not isinstance(result, Tensor):  # NumPy reads more: lists of tensors, reversed arrays
            result = torch.from_numpy(np.array(result, order="C"))
        result = result.double()
    except (TypeError, ValueError, RuntimeError):
        return f"{wrong} the result is a {type(result).__name__}, not numbers"
    if result.shape != right.shape:
        return f"{wrong} the result has shape {tuple(result.shape)}, expected {tuple(right.shape)}"
    if result.isnan().any():
        return f"{wrong} the result is not a number (nan)"
    slack = tolerance * right.abs().mean().item()  # as all numbers of a map may be small
    if not torch.allclose(result, right, rtol=tolerance, atol=slack):
        ratio = ((result * right).sum() / right.square().sum()).item()
        unit = right.numel() > 1 and 1e-3 < abs(ratio) < 1e3 and abs(ratio - 1) > 0.01
        if unit and torch.allclose(result, ratio * right, tolerance, slack * abs(ratio)):
            return f"{wrong} {ratio:.3g} times what is right"
        return f"{wrong} off by up to {(result - right).abs().max().item():.3g}"
    return ""


def _checker(cases: dict[str, tuple], praise: str, tolerance: float = 1e-4) -> Callable:
    """Make the right answer that follows into a checker of a learner's function, on ``cases``."""

    def checker_of(answer: Function) -> Callable[[Function], Verdict]:
        def check(function: Function) -> Verdict:
            for name, case in cases.items():
                right = torch.as_tensor(answer(*case)).double()
                if fault := _compare(function, name, case, right, tolerance):
                    return Verdict(False, fault)
            return Verdict(True, praise)

        check.__name__, check.__doc__ = answer.__name__, answer.__doc__
        return check

    return checker_of


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


ONE, TWO = _random(2, 6, 8)
"""Two maps without ties, 0–1."""
MASK, CELL = TWO > 0.6, torch.arange(48).reshape(6, 8) < 16
"""The mask of an object, and a cell that is a third of the picture."""
TOTALS = {"a block of nats": (_random(3, 4, 5),), "many nats": (100 * _random(7),)}
"""Nats; with so many, exp overflows in single precision."""
MAPS = {"signed values": (ONE - 0.4, MASK), "values above 1": (5 * ONE - 2, CELL)}
"""Maps with masks."""
MASKS = {"a square mask": (_random(8, 8) > 0.6,), "a mask that is not square": (MASK,)}
"""Masks."""
AREAS = {"positive values": (ONE, MASK), "mostly negative values": (ONE - 0.7, CELL)}
"""Maps without ties, with masks."""
PAIRS = {"positive values": (ONE, TWO), "negative values": (ONE - 0.7, ONE + TWO - 1)}
"""Two maps without ties."""
OBJECTS = {name: (values, TWO > 0.7, TWO < 0.2) for name, (values, _) in MAPS.items()}
"""Maps with masks of two objects."""
MOSAICS = {"signed values": (ONE - 0.4, CELL), "an empty map": (0 * ONE, CELL)}
MOSAICS |= {"a map of negative values": (-ONE, CELL)}
"""Maps with a cell."""
ROWS, COLUMNS = torch.meshgrid(torch.arange(32), torch.arange(48), indexing="ij")
DISC, SMALL = (size > (ROWS - 15) ** 2 + (COLUMNS - 20) ** 2 for size in (120, 40))
LINE = (COLUMNS > 9) & (COLUMNS < 12)
OUTLINES = {"a disc": (DISC, [2, 4, 8, 16]), "a line": (LINE, [1, 2, 4, 8])}
OUTLINES |= {"another order": (DISC, [16, 2, 8, 4]), "a small disc": (SMALL, [2, 4, 8])}
"""Masks, and strides of which at least one is fine enough."""
BITS = {"a square map": (_random(4, 4), 16), "a size that is no multiple": (_random(3, 5), 7)}
"""Maps of bits, and the size to enlarge them to; plain interpolation changes the second's total."""
NATS, FEATURES = _random(2, 2, 3, 4, 4)
SIGNED = FEATURES - torch.tensor([0, 0.5, 0.5])[:, None, None]
UNITS = {"inactive units": (NATS, SIGNED.clamp(min=0)), "negative features": (NATS, SIGNED)}
"""Nats and features, of which only those in the first channel are all positive."""
LOCATIONS = {"positive features": (NATS, FEATURES), "negative features": (NATS, SIGNED)}
"""Nats and features, at no location all zero or below."""
OPEN = {"a block of λ": (0.95 * _random(2, 3, 4),), "λ near 1": (1 - 0.01 * _random(7),)}
"""Shares that pass, below 1."""
X, LAYER = _random(6), (_random(4, 6, seed=1) - 0.4, _random(4, seed=2))
DENSE = {"positive inputs": (X, *LAYER), "negative inputs": (X - 0.5, *LAYER)}
"""Inputs, weights and relevance above of dense layers."""
BIAS = torch.tensor([0.3, -0.2, 0.1, 0.5])
BIASED = {k: (x, weight, BIAS, above) for k, (x, weight, above) in DENSE.items()}
"""The same with biases before the relevance."""
PICTURES = {"a wide picture": (_random(6, 10, 3),), "a tall picture": (_random(9, 5, 3),)}
"""Pictures, H×W×3."""
BYTES = {"random bytes": ((256 * _random(4, 5, 3)).to(torch.uint8),)}
"""Masks as ImageNet-S stores them, H×W×3 bytes."""
SCORES, MEMBERS = 4 * _random(3, 6), [0, 4]
LOGITS = {"small logits": (SCORES, MEMBERS), "large logits": (100 + SCORES, MEMBERS)}
LOGITS |= {"a class far above the set": (SCORES + 200 * torch.eye(6)[5], [2])}
"""Logits, and a set of classes."""


@_checker(TOTALS, "one nat is 1.44 bits", 1e-5)
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
    return metrics.rank_accuracy(torch.ones(1, *mask.shape), mask[None])[0]


@_checker(OPEN, "to pass exactly tells that it was average")
def capacity_at_mean(lambda_: Tensor) -> Tensor:
    """Notebook 02: nats of features at their mean, by λ, against ``torch.distributions``."""
    return kl_divergence(Normal(0.0, 1 - lambda_.double()), Normal(0.0, 1.0))


@_checker(BITS, "larger, and the total stays")
def enlarge(bits: Tensor, size: int) -> Tensor:
    """Notebook 02: a map of bits enlarged with its total preserved."""
    return bottleneck.to_bits(bits[None, None] * math.log(2), size)[0]


@_checker(OUTLINES, "the thinner an object, the finer the layer must be")
def coarsest(mask: Tensor, strides: list[int]) -> int:
    """Notebook 03: the largest stride whose ceiling ranks nine in ten pixels right."""
    masks = mask[None]
    ceilings = {s: metrics.rank_accuracy(metrics.best_at_stride(masks, s), masks) for s in strides}
    return max(stride for stride, ceiling in ceilings.items() if ceiling >= 0.9)


@_checker(AREAS, "early hits count more than late ones")
def allocation_area(values: Tensor, mask: Tensor) -> Tensor:
    """Notebook 06: mean precision over budgets up to the object's size, for a map without ties."""
    return metrics.allocation_area(values[None], mask[None])[0]


@_checker(OBJECTS, "size does not matter, only mean relevance does")
def two_object_contrast(values: Tensor, target: Tensor, other: Tensor) -> Tensor:
    """Notebook 06: how far a map prefers its target object, for one map."""
    return metrics.two_object_contrast(values[None], target[None], other[None])[0]


@_checker(MOSAICS, "knowing nothing gives every cell its share")
def grid_pointing(values: Tensor, cell: Tensor) -> Tensor:
    """Notebook 07: share of the positive relevance in one cell, for one map."""
    return metrics.mass_accuracy(values[None], cell[None])[0]


@_checker(PAIRS, "only the order counts: any monotone rescaling leaves it alone")
def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Notebook 07: Spearman's correlation of two maps without ties, against SciPy's."""
    return spearmanr(one.flatten(), other.flatten())[0]


@_checker(DENSE, "never negative, and nothing lost")
def z_plus(x: Tensor, weight: Tensor, above: Tensor) -> Tensor:
    """Notebook 04: the z⁺ rule of a dense layer, against Zennit's."""
    return _z_plus(x, weight, torch.zeros(len(weight)), above)


@_checker(BIASED, "what a bias takes, no pixel gets", 1e-3)
def lost_to_biases(x: Tensor, weight: Tensor, bias: Tensor, above: Tensor) -> Tensor:
    """Notebook 04: share that the biases of a dense layer take by the z⁺ rule, against Zennit's."""
    return 1 - _z_plus(x, weight, bias, above).sum() / above.sum()


def _z_plus(x: Tensor, weight: Tensor, bias: Tensor, above: Tensor) -> Tensor:
    layer = nn.Linear(*reversed(weight.shape))
    layer.weight.data, layer.bias.data = weight, bias
    return rules.hand_down(ZPlus(rules.STABILISER), layer, x[None], above[None])[0]


@_checker(UNITS, "the rest says that something is absent")
def active_share(nats: Tensor, features: Tensor) -> Tensor:
    """Notebook 05: share of the nats on units with r > 0."""
    return (nats * (features > 0)).sum() / nats.sum()


@_checker(LOCATIONS, "every location keeps its nats")
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


@_checker(BYTES, "bytes added as bytes would start again at 256", 0)
def class_numbers(rgb: Tensor) -> Tensor:
    """Notebook 09: class numbers of a mask of ImageNet-S, R + 256 · G, for H×W×3 bytes."""
    return segmentation.numbers_of(rgb.numpy())
