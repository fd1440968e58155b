"""The per-sample information bottleneck: how many nats of each feature the class needs.

Schulz, Sixt, Tombari and Landgraf, "Restricting the Flow: Information Bottlenecks for
Attribution", ICLR 2020. Noise is mixed into the features of one layer, as much of it as the
prediction bears; what had to be let through, in nats, is the attribution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riba import progress
from riba.method.explicit import Part, explicit
from riba.method.network import check_images, check_targets, class_logit, device_of
from riba.method.statistics import FeatureStatistics

MIN_STD = 0.01
"""Floor under the standard deviation of a feature, as published."""

COPIES = 80
"""Noisy copies that pass through the network together: more is not faster, and takes memory."""

SETTLED = 0.05
"""Relative change of the total nats in the last update below which a map counts as settled."""


# --- the formulae --------------------------------------------------------------------------------


def smooth(x: Tensor, sigma: float) -> Tensor:
    """Blur maps (…×h×w) with a Gaussian of side 2·round(2·sigma) + 1, reflecting at the border.

    Schulz et al. 2020, section 3.3: neighbouring features share their fate, or the map would
    pick up the grid of the strided layers above. ``sigma`` 0 returns ``x``. Maps smaller than the
    kernel are reflected as often as it takes.
    """
    if sigma == 0:
        return x
    rows, columns = (_blur_matrix(side, float(sigma)).to(x) for side in x.shape[-2:])
    return rows @ x @ columns.T


@lru_cache(maxsize=64)
def _blur_matrix(side: int, sigma: float) -> Tensor:
    """The blur along one axis as a side×side matrix: exact, and faster than a convolution."""
    reach = round(2 * sigma)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-offsets.double().square() / (2 * sigma**2))
    period = max(2 * (side - 1), 1)
    source = (torch.arange(side)[:, None] + offsets) % period
    source = torch.minimum(source, period - source)
    matrix = torch.zeros(side, side, dtype=torch.float64)
    return matrix.scatter_add_(1, source, (weights / weights.sum()).expand(side, -1)).float()


def openness(alpha: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """λ = smooth(sigmoid(α)) and 1 − λ, both …×h×w in 0–1 (Schulz et al. 2020, eq. 5 ff.).

    1 − λ comes from sigmoid(−α): subtracted from one, a λ of α ≥ 17 leaves nothing in float32,
    its capacity would be infinite and its gradient lost.
    """
    rest = smooth(torch.sigmoid(-alpha), sigma)
    return smooth(torch.sigmoid(alpha), sigma), rest.clamp(min=torch.finfo(rest.dtype).tiny)


def restrict(
    r: Tensor, lambda_: Tensor, noise: Tensor, mean: Tensor, std: Tensor, active: Tensor
) -> Tensor:
    """The restricted features z = λ r + (1 − λ) ε, ε = μ + σ · noise (Schulz et al. 2020, eq. 1).

    Parameters
    ----------
    r, lambda_
        B×C×h×w.
    noise
        S×C×h×w standard normal, the same for every image.
    mean, std, active
        C×h×w; where an element is not active, z is zero.

    Returns
    -------
    B×S×C×h×w: S noisy copies of each image's features.
    """
    centre, spread = restricted_moments(r, lambda_, mean, std, active)
    return torch.addcmul(centre[:, None], spread[:, None], noise)


def restricted_moments(
    r: Tensor, lambda_: Tensor, mean: Tensor, std: Tensor, active: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of z (:func:`restrict`), each as large as ``r``."""
    rest = 1 - lambda_
    return active * (lambda_ * r + rest * mean), active * rest * std


def capacity(
    r: Tensor, mean: Tensor, std: Tensor, lambda_: Tensor, rest: Tensor | None = None
) -> Tensor:
    """Nats that pass at each element: KL[N(λr + (1−λ)μ, (1−λ)²σ²) ‖ N(μ, σ²)].

    With r̂ = (r − μ)/σ: KL = −½ [1 + ln (1−λ)² − (λ r̂)² − (1−λ)²] (Schulz et al. 2020, eq. 6).

    Parameters
    ----------
    r, lambda_
        …×C×h×w.
    mean, std
        C×h×w, ``std`` above zero.
    rest
        1 − λ where it is known better than by subtraction (:func:`openness`).
    """
    if rest is None:
        rest = (1 - lambda_).clamp(min=2**-24)  # half a unit in the last place of float32 below 1
    normal = (r - mean) / std
    return -0.5 * (1 + 2 * rest.log() - (lambda_ * normal).square() - rest.square())


def measure(
    r: Tensor, alpha: Tensor, stats: FeatureStatistics, sigma: float
) -> tuple[Tensor, Tensor]:
    """λ and capacity in nats (each B×C×h×w) for features ``r`` under parameters ``alpha``."""
    stats = stats.to(r.device)
    lambda_, rest = openness(alpha, sigma)
    nats = capacity(r, stats.mean, stats.std.clamp(min=MIN_STD), lambda_, rest)
    return lambda_, stats.active * nats


def settled(totals: Tensor) -> Tensor:
    """B bool: the last update changed the total nats ((steps + 1)×B) by less than 5 %."""
    before, after = totals[-2:]
    return (after - before).abs() <= SETTLED * before


def to_bits(nats: Tensor, size: int | tuple[int, int]) -> Tensor:
    """A map of bits for display: B×H×W from nats (B×C×h×w), the total number of bits preserved.

    Summed over channels, divided by ln 2, enlarged bilinearly to ``size`` and rescaled per image,
    because interpolation alone keeps the total only roughly.
    """
    bits = nats.sum(1, keepdim=True) / math.log(2)
    size = (size, size) if isinstance(size, int) else tuple(size)
    large = F.interpolate(bits, size, mode="bilinear", align_corners=False)
    ratio = bits.sum((2, 3), keepdim=True) / large.sum((2, 3), keepdim=True)
    return (large * ratio.nan_to_num(0.0, 0.0, 0.0))[:, 0]


def capacity_product(nats: Iterable[Tensor], size: int | tuple[int, int]) -> Tensor:
    """Maps of several depths (each B×C×h×w nats), enlarged to ``size`` and multiplied: B×H×W.

    Each is divided by its mean first, so that the product of many depths stays in range; 1 where
    every depth has its average. No unit.
    """
    maps = [to_bits(depth, size) for depth in nats]
    means = [m.mean((1, 2), keepdim=True).clamp(min=torch.finfo(m.dtype).tiny) for m in maps]
    return torch.stack([m / mean for m, mean in zip(maps, means, strict=True)]).prod(0)


# --- what comes back -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Trace:
    """How the optimisation went: each (steps + 1)×B, the last row after the last update.

    Attributes
    ----------
    loss
        Cross-entropy + β · mean information per element.
    cross_entropy
        Of the class through the bottleneck, in nats, mean over the noisy copies.
    information
        Total nats in the bottleneck.
    """

    loss: Tensor
    cross_entropy: Tensor
    information: Tensor


@dataclass(frozen=True)
class Information:
    """What the bottleneck let through, for each of B images.

    Attributes
    ----------
    nats
        B×C×h×w: capacity per element, after the last update; never negative.
    alpha, lambda_
        B×C×h×w: the parameter, and the share of the feature that passes (0–1, smoothed).
    features
        B×C×h×w: r, what the layer computes.
    published_nats
        B×C×h×w: capacity at the last forward pass, one update earlier, as published code has it.
    probability, open_probability
        B: probability of the class with the bottleneck (mean over the noisy copies) and without.
        Far apart: β is too large for this image.
    trace
        Loss, cross-entropy and information at every step.
    history
        (steps + 1)×B×C×h×w: α at every step, where it was asked for.
    """

    nats: Tensor
    alpha: Tensor
    lambda_: Tensor
    features: Tensor
    published_nats: Tensor
    probability: Tensor
    open_probability: Tensor
    trace: Trace
    history: Tensor | None = None

    @property
    def settled(self) -> Tensor:
        """B bool: the last update changed the total nats by less than 5 %."""
        return settled(self.trace.information)

    def bits(self, size: int | tuple[int, int]) -> Tensor:
        """B×H×W map of bits whose sum is the total number of bits in the bottleneck."""
        return to_bits(self.nats, size)


# --- the bottleneck ------------------------------------------------------------------------------


class InformationBottleneck:
    """Per-sample bottleneck behind one layer of a network.

    Minimises, for each image by itself and over its own α, cross-entropy + β · mean capacity
    (Schulz et al. 2020, eq. 7) with Adam. Features below the layer are computed once; all images
    of a batch are optimised together. The network is not touched.

    Parameters
    ----------
    model
        Images (B×3×H×W) to logits (B×classes), in evaluation mode.
    layer
        Name of the module behind which the bottleneck sits; it must return B×C×h×w.
    stats
        Statistics of that layer of that network.
    beta
        Weight of the information against the cross-entropy.
    steps, lr
        Updates of Adam, and its learning rate.
    samples
        Noisy copies per image and step.
    sigma
        Width of the Gaussian that smooths λ, in elements of the feature map; 0: none.
    initial_alpha
        Where α starts; 5 lets 99.3 % through.
    seed
        Of the noise: the same for every image, whatever the batch around it.
    chunk
        Images that pass through the network together, ``samples`` copies of each; halved when
        GPU memory runs out.
    precision
        Of the passes through the layers above during the optimisation, as ``torch.bfloat16``
        (autocast); information and loss stay in that of the weights. None: all of it does.

    Raises
    ------
    ValueError
        No statistics, or of another layer or network; a parameter out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        stats: FeatureStatistics,
        beta: float = 10.0,
        steps: int = 10,
        samples: int = 10,
        lr: float = 1.0,
        sigma: float = 1.0,
        initial_alpha: float = 5.0,
        seed: int = 0,
        *,
        chunk: int | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        check_statistics(stats)
        stats.check(model, layer)
        check_settings(beta, steps, samples, lr, sigma, initial_alpha, chunk)
        self.model, self.layer, self.precision = model, layer, precision
        self.stats = stats.to(device_of(model))
        self.beta, self.steps, self.samples, self.lr = beta, steps, samples, lr
        self.sigma, self.initial_alpha, self.seed = sigma, initial_alpha, seed
        self.chunk = chunk or max(1, COPIES // samples)

    @torch.inference_mode(False)
    def __call__(
        self,
        images: Tensor,
        targets: Tensor | list[int],
        noise: Tensor | None = None,
        *,
        keep_steps: bool = False,
    ) -> Information:
        """The information that the class ``targets`` needs, for each image.

        Parameters
        ----------
        images
            B×3×H×W, as the network expects them.
        targets
            B class numbers, or B×classes bool for a set of classes each: logsumexp of their logits.
        noise
            steps×samples×C×h×w standard normal, to replay a given draw for every image. Without
            it noise is drawn from ``seed``; the last row of the trace has a draw of its own (the
            last one once more, where they are given).
        keep_steps
            Keep α at every step in ``history``.

        Raises
        ------
        ValueError
            Images, targets, noise or statistics do not fit (:func:`riba.network.check_images`,
            :func:`riba.network.check_targets`).
        """
        check_images(self.model, images)
        self.stats.check(self.model, self.layer)  # the weights may have changed since
        given, logits = self._open(images)
        given = replace(given, targets=check_targets(targets, logits))
        self.stats.check_features(given.r)
        draws = self._draws(given.r, noise)
        alpha = torch.full_like(given.r, self.initial_alpha)
        adam = torch.optim.Adam([alpha], lr=self.lr)
        rows, history = [], []
        with progress.counter("bottleneck", (self.steps + 1) * len(images)) as bar:
            for _ in range(self.steps):
                alpha.grad, *row = self._over_chunks(self._gradient, given, alpha, next(draws), bar)
                rows.append(row)
                before = alpha.clone()
                if keep_steps:
                    history.append(before)
                adam.step()
            rows.append(self._over_chunks(self._evaluation, given, alpha, next(draws), bar))
        return self._information(given, logits, before, alpha, rows, history)

    def measure(self, r: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """λ and capacity in nats (each B×C×h×w) for features ``r`` under parameters ``alpha``."""
        return measure(r, alpha, self.stats, self.sigma)

    # what follows is one step, from the whole batch inwards

    @torch.no_grad()
    def _open(self, images: Tensor) -> tuple[_Given, Tensor]:
        """Features of all images, and the logits without a bottleneck (B×classes)."""
        head, tail = explicit(self.model, [self.layer], images).parts

        def run(part: slice) -> tuple[Tensor, ...]:
            features = head(images[part])
            return *tail(*features), *features

        logits, r, *others = self._chunked(run, len(images))
        return _Given(tail, r, tuple(others)), logits

    def _draws(self, r: Tensor, noise: Tensor | None) -> Iterator[Tensor]:
        shape = (self.samples, *r.shape[1:])
        if noise is None:
            return _drawn(self.seed, shape, r)
        if noise.shape != (self.steps, *shape):
            raise ValueError(
                "noise must be steps×samples×C×h×w, "
                f"{'×'.join(map(str, (self.steps, *shape)))}, got "
                f"{'×'.join(map(str, noise.shape))}"
            )
        return (draw.to(r) for draw in itertools.chain(noise, noise[-1:]))

    def _over_chunks(
        self, work: Callable, given: _Given, alpha: Tensor, noise: Tensor, bar: progress.Counter
    ) -> tuple[Tensor, ...]:
        def run(part: slice) -> tuple[Tensor, ...]:
            rows = work(given.of(part), alpha[part], noise)
            bar.update(len(rows[0]))
            return rows

        return self._chunked(run, len(alpha))

    def _chunked(
        self, work: Callable[[slice], tuple[Tensor, ...]], count: int
    ) -> tuple[Tensor, ...]:
        results, self.chunk = in_chunks(work, count, self.chunk)
        return results

    def _gradient(self, given: _Given, alpha: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """Gradient of the loss (B×C×h×w), then what :meth:`_losses` returns.

        The losses are summed over images: none depends on another's α, so each keeps its own
        gradient. The gradient stops at α; none is computed for the network's weights.
        """
        with torch.enable_grad():
            alpha = alpha.detach().requires_grad_()
            rows = self._losses(given, alpha, noise)
            (gradient,) = torch.autograd.grad(rows[0].sum(), alpha)
        return gradient, *(row.detach() for row in rows)

    @torch.no_grad()
    def _evaluation(self, given: _Given, alpha: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return self._losses(given, alpha, noise)

    def _losses(self, given: _Given, alpha: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """Per image (B each): loss, cross-entropy, total nats, probability of the class."""
        stats = self.stats
        lambda_, nats = self.measure(given.r, alpha)
        std = stats.std.clamp(min=MIN_STD)
        z = restrict(given.r, lambda_, noise, stats.mean, std, stats.active).flatten(0, 1)
        copies = given.copies(self.samples)
        with mixed(z, self.precision):
            (logits,) = given.tail(z, *copies.others)
        log_p = log_probability(logits.to(z), copies.targets)
        log_p = log_p.unflatten(0, (-1, self.samples))
        cross_entropy = -log_p.mean(1)
        loss = cross_entropy + self.beta * nats.mean((1, 2, 3))
        return loss, cross_entropy, nats.sum((1, 2, 3)), log_p.exp().mean(1)

    def _information(
        self,
        given: _Given,
        logits: Tensor,
        before: Tensor,
        alpha: Tensor,
        rows: list[tuple[Tensor, ...]],
        history: list[Tensor],
    ) -> Information:
        lambda_, nats = self.measure(given.r, alpha)
        _, published = self.measure(given.r, before)
        loss, cross_entropy, information, probability = map(torch.stack, zip(*rows, strict=True))
        return Information(
            nats=nats.clamp(min=0),  # rounding may leave −1e-7
            alpha=alpha,
            lambda_=lambda_,
            features=given.r,
            published_nats=published.clamp(min=0),
            probability=probability[-1],
            open_probability=log_probability(logits, given.targets).exp(),
            trace=Trace(loss, cross_entropy, information),
            history=torch.stack([*history, alpha]) if history else None,
        )


@dataclass(frozen=True)
class _Given:
    """What stays the same during the optimisation of a batch."""

    tail: Part
    r: Tensor
    others: tuple[Tensor, ...]
    targets: Tensor | None = None

    def of(self, part: slice) -> _Given:
        others = tuple(other[part] for other in self.others)
        return _Given(self.tail, self.r[part], others, self.targets[part])

    def copies(self, samples: int) -> _Given:
        others = tuple(other.repeat_interleave(samples, 0) for other in self.others)
        return replace(self, others=others, targets=self.targets.repeat_interleave(samples, 0))


def in_chunks(
    work: Callable[[slice], tuple[Tensor, ...]], count: int, size: int
) -> tuple[tuple[Tensor, ...], int]:
    """Results of ``work`` over ``count`` images, ``size`` at a time; fewer where memory runs out.

    Returns
    -------
    The tensors of all chunks, joined, and the size that fitted.
    """
    done, results = 0, []
    while done < count:
        part = slice(done, min(done + size, count))
        try:
            results.append(work(part))
        except torch.OutOfMemoryError:
            if part.stop - done == 1:
                raise
            size = (part.stop - done) // 2
            continue
        done = part.stop
    return tuple(torch.cat(rows) for rows in zip(*results, strict=True)), size


def mixed(like: Tensor, precision: torch.dtype | None) -> AbstractContextManager:
    """Within this context the network runs in ``precision`` on the device of ``like``."""
    return torch.autocast(like.device.type, precision, enabled=precision is not None)


def _drawn(seed: int, shape: tuple[int, ...], like: Tensor) -> Iterator[Tensor]:
    """Draws without end; on the CPU, so that a GPU gets the same."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(shape, generator=generator).to(like)


def log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """ln of the probability of the class, or of a set of classes, per image (B)."""
    return class_logit(logits, targets) - logits.logsumexp(dim=1)


def check_statistics(*statistics: FeatureStatistics | None) -> None:
    """Refuse to go on without statistics.

    Raises
    ------
    ValueError
        One is None: says how to get them.
    """
    if any(stats is None for stats in statistics):
        raise ValueError(
            "no statistics: fit them first, FeatureStatistics.fit(model, layer, images)"
        )


def check_settings(
    beta: float,
    steps: int,
    samples: int,
    lr: float,
    sigma: float,
    initial_alpha: float,
    chunk: int | None,
) -> None:
    """Refuse settings of a bottleneck that are out of their range.

    Raises
    ------
    ValueError
        Names the setting, its range and what was given.
    """
    _check_range("beta", beta, beta >= 0, "0 or more")
    _check_range("steps", steps, steps >= 1, "1 or more")
    _check_range("samples", samples, samples >= 1, "1 or more")
    _check_range("lr", lr, lr > 0, "above 0")
    _check_range("sigma", sigma, sigma >= 0, "0 or more")
    _check_range("initial_alpha", initial_alpha, math.isfinite(initial_alpha), "finite")
    _check_range("chunk", chunk, chunk is None or chunk >= 1, "1 or more")


def _check_range(name: str, value: float | None, fits: bool, range_: str) -> None:
    if not fits:
        raise ValueError(f"{name} must be {range_}, got {value}")
