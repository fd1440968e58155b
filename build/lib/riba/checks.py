"""Checkers of the notebooks' exercises: each tries the learner's function on values of its own.

The right answers come from the package or from a second, independent way of computing them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop
from zennit.rules import Epsilon, ZPlus

from riba.compare import metrics
from riba.method import bottleneck, network, relevance, rules
from riba.testbed import segmentation


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and one sentence on it."""

    right: bool
    message: str

    def __repr__(self) -> str:
        return f"{'✓' if self.right else '✗'} {self.message}"

    def __bool__(self) -> bool:
        return self.right


def _compare(
    function: Callable[..., object],
    cases: Sequence[tuple],
    answer: Callable[..., object],
    praise: str,
    tolerance: float = 1e-4,
) -> Verdict:
    """Run ``function`` and ``answer`` on every case and say where they first part."""
    for case in cases:
        expected = torch.as_tensor(answer(*case)).double()
        try:
            given = function(*case)
        except Exception as error:  # a learner's function may raise anything
            return Verdict(False, f"your function raised {type(error).__name__}: {error}")
        if given is None or given is ...:
            return Verdict(False, "nothing returned yet: fill in the function and run the cell")
        try:
            given = torch.as_tensor(given).double()
        except (TypeError, ValueError, RuntimeError):
            return Verdict(False, f"the result is a {type(given).__name__}, not numbers")
        if given.shape != expected.shape:
            shapes = f"{tuple(given.shape)}, expected {tuple(expected.shape)}"
            return Verdict(False, f"the result has shape {shapes}")
        if not torch.allclose(given, expected, rtol=tolerance, atol=tolerance):
            off = (given - expected).abs().max().item()
            return Verdict(False, f"right shape, but off by up to {off:.3g}")
    return Verdict(True, praise)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def total_bits(function: Callable[[Tensor], object]) -> Verdict:
    """Notebook 00: nats of any shape to the total number of bits."""
    cases = [(_random(3, 4, 5),), (_random(7, seed=1),)]
    return _compare(
        function, cases, lambda nats: nats.sum() / math.log(2), "one nat is 1.44 bits", 1e-5
    )


def mass_accuracy(function: Callable[[Tensor, Tensor], object]) -> Verdict:
    """Notebook 01: share of the positive relevance in the mask, for one map."""
    cases = [(_random(6, 6, seed=s) - 0.4, _random(6, 6, seed=s + 9) > 0.6) for s in range(3)]
    return _compare(
        function,
        cases,
        lambda values, mask: metrics.mass_accuracy(values[None], mask[None])[0],
        "negative relevance counts as none",
    )


def chance(function: Callable[[Tensor], object]) -> Verdict:
    """Notebook 01: the rank accuracy of a constant map, from the mask alone."""
    cases = [(_random(8, 8, seed=s) > 0.7,) for s in range(3)]
    return _compare(
        function,
        cases,
        lambda mask: metrics.rank_accuracy(torch.ones(1, 8, 8), mask[None])[0],
        "a map that knows nothing scores the mask's share of the picture",
    )


def capacity(function: Callable[[Tensor, Tensor, Tensor, Tensor], object]) -> Verdict:
    """Notebook 02: nats per element, against ``torch.distributions``."""

    def divergence(r: Tensor, mean: Tensor, std: Tensor, lambda_: Tensor) -> Tensor:
        normal = torch.distributions.Normal
        rest = 1 - lambda_
        passed = normal(lambda_ * r + rest * mean, rest * std)
        return torch.distributions.kl_divergence(passed, normal(mean, std))

    shape = (2, 3, 4)
    cases = [
        (3 * _random(*shape, seed=s), _random(*shape, seed=s + 1),
         0.1 + _random(*shape, seed=s + 2), 0.95 * _random(*shape, seed=s + 3))
        for s in (0, 10)
    ]  # fmt: skip
    return _compare(function, cases, divergence, "the KL of two Gaussians, element by element")


def enlarge(function: Callable[[Tensor, int], object]) -> Verdict:
    """Notebook 02: a map of bits enlarged with its total preserved."""
    cases = [(_random(4, 4, seed=s), size) for s, size in ((0, 16), (1, 128))]
    return _compare(
        function,
        cases,
        lambda bits, size: bottleneck.to_bits(bits[None, None] * math.log(2), size)[0],
        "larger, and not a bit more",
    )


def input_capacity(function: Callable[..., object]) -> Verdict:
    """Notebook 03: nats beyond the prior at the pixels, against ``torch.distributions``."""

    def divergence(x: Tensor, lambda_: Tensor, m: Tensor) -> Tensor:
        normal = torch.distributions.Normal
        passed = normal(lambda_ * x, 1 - lambda_)
        return torch.distributions.kl_divergence(passed, normal(lambda_ * m * x, 1 - lambda_ * m))

    shape = (3, 4, 4)
    cases = [
        tuple(scale * _random(*shape, seed=s + i) for i, scale in enumerate((2, 0.95, 1)))
        for s in (0, 10)
    ]
    return _compare(function, cases, divergence, "only what the prior did not expect is counted")


def best_at_stride(function: Callable[[Tensor, int], object]) -> Verdict:
    """Notebook 03: the share of every cell that lies on the object."""
    cases = [(_random(8, 8, seed=s) > 0.6, stride) for s, stride in ((0, 2), (1, 4))]

    def cells(mask: Tensor, stride: int) -> Tensor:
        return nn.functional.avg_pool2d(mask.double()[None, None], stride)[0, 0]

    return _compare(function, cases, cells, "no map at this layer can know more")


def allocation_area(function: Callable[[Tensor, Tensor], object]) -> Verdict:
    """Notebook 06: mean precision over budgets up to the object's size, for a map without ties."""
    cases = [(_random(6, 6, seed=s), _random(6, 6, seed=s + 9) > 0.6) for s in range(3)]
    return _compare(
        function,
        cases,
        lambda values, mask: metrics.allocation_area(values[None], mask[None])[0],
        "early hits count more than late ones",
    )


def two_object_contrast(function: Callable[[Tensor, Tensor, Tensor], object]) -> Verdict:
    """Notebook 06: how far a map prefers its own object, for one map."""
    cases = []
    for s in range(3):
        place = _random(6, 6, seed=s + 9)
        cases.append((_random(6, 6, seed=s) - 0.4, place > 0.7, place < 0.2))
    return _compare(
        function,
        cases,
        lambda values, own, other: metrics.two_object_contrast(
            values[None], own[None], other[None]
        )[0],
        "size does not matter, only mean relevance does",
    )


def grid_pointing(function: Callable[[Tensor, Tensor], object]) -> Verdict:
    """Notebook 07: share of the positive relevance in one cell, for one map."""
    cells = torch.zeros(2, 8, 8, dtype=torch.bool)
    cells[0, :4, :4] = cells[1, 4:, :4] = True
    cases = [(_random(8, 8, seed=s) - 0.4, cell) for s, cell in enumerate(cells)]
    cases.append((torch.zeros(8, 8), cells[0]))
    return _compare(
        function,
        cases,
        lambda values, cell: metrics.mass_accuracy(values[None], cell[None])[0],
        "knowing nothing gives every cell its share",
    )


def rank_correlation(function: Callable[[Tensor, Tensor], object]) -> Verdict:
    """Notebook 07: Spearman's correlation of two maps without ties, against SciPy's."""
    cases = [(_random(6, 7, seed=s), _random(6, 7, seed=s + 5)) for s in range(3)]
    cases.append((cases[0][0], cases[0][0].exp()))
    return _compare(
        function,
        cases,
        lambda one, other: spearmanr(one.flatten(), other.flatten())[0],
        "only the order counts: any monotone rescaling leaves it alone",
    )


def z_plus(function: Callable[[Tensor, Tensor, Tensor], object]) -> Verdict:
    """Notebook 04: the z⁺ rule of a dense layer, against Zennit's."""

    def rule(x: Tensor, weight: Tensor, above: Tensor) -> Tensor:
        return rules.hand_down(ZPlus(), _dense(weight), x[None], above[None])[0]

    return _compare(function, _dense_cases(), rule, "never negative, and nothing lost")


def epsilon(function: Callable[[Tensor, Tensor, Tensor, float], object]) -> Verdict:
    """Notebook 04: the ε rule of a dense layer, against Zennit's."""

    def rule(x: Tensor, weight: Tensor, above: Tensor, eps: float) -> Tensor:
        return rules.hand_down(Epsilon(eps), _dense(weight), x[None], above[None])[0]

    cases = [(*case, eps) for case in _dense_cases() for eps in (0.1, 1.0)]
    return _compare(function, cases, rule, "the larger ε, the more it keeps", 1e-3)


def active_share(function: Callable[[Tensor, Tensor], object]) -> Verdict:
    """Notebook 05: share of the nats on units with r > 0."""

    def share(nats: Tensor, features: Tensor) -> Tensor:
        return (nats * (features > 0)).sum() / nats.sum()

    cases = [
        (_random(2, 3, 4, 4, seed=s), (_random(2, 3, 4, 4, seed=s + 5) - 0.5).clamp(min=0))
        for s in (0, 1)
    ]
    return _compare(function, cases, share, "the rest says that something is absent")


def spread(function: Callable[[Tensor, Tensor], object]) -> Verdict:
    """Notebook 05: nats of a location over its channels by activation."""

    def start(nats: Tensor, features: Tensor) -> Tensor:
        nothing = torch.zeros(1)
        trace = bottleneck.Trace(nothing, nothing, nothing)
        information = bottleneck.Information(
            nats, nats, nats, features, nats, nothing, nothing, trace
        )
        return relevance.spread(information).relevance

    cases = [(_random(2, 3, 4, 4, seed=s), _random(2, 3, 4, 4, seed=s + 5)) for s in (0, 1)]
    return _compare(function, cases, start, "every location keeps its nats")


def middle(function: Callable[[Tensor], object]) -> Verdict:
    """Notebook 08: the largest square in the middle of a picture, against torchvision's crop."""

    def crop(picture: Tensor) -> Tensor:
        return center_crop(picture.movedim(-1, 0), min(picture.shape[:2])).movedim(0, -1)

    cases = [(_random(6, 10, 3),), (_random(9, 5, 3, seed=1),), (_random(4, 4, 3, seed=2),)]
    return _compare(function, cases, crop, "what lies outside, the network never sees")


def set_logit(function: Callable[[Tensor, list[int]], object]) -> Verdict:
    """Notebook 09: the logit of a set of classes, for B×classes logits."""

    def explained(logits: Tensor, members: list[int]) -> Tensor:
        inside = torch.zeros(logits.shape, dtype=torch.bool)
        inside[:, members] = True
        return network.class_logit(logits, inside)

    cases = [(4 * _random(3, 6, seed=s), members) for s, members in enumerate(([0, 4], [2]))]
    return _compare(function, cases, explained, "a set of one is the class itself")


def class_numbers(function: Callable[[Tensor], object]) -> Verdict:
    """Notebook 09: class numbers of a mask of ImageNet-S, R + 256 · G, for H×W×3 bytes."""
    cases = [((256 * _random(4, 5, 3, seed=s)).to(torch.uint8),) for s in range(2)]
    return _compare(
        function,
        cases,
        lambda rgb: segmentation.numbers_of(rgb.numpy()),
        "bytes added as bytes would start again at 256",
    )


def _dense(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    return layer


def _dense_cases() -> list[tuple[Tensor, Tensor, Tensor]]:
    return [
        (_random(6, seed=s), _random(4, 6, seed=s + 1) - 0.4, _random(4, seed=s + 2))
        for s in (0, 20)
    ]
