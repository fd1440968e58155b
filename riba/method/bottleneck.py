"""The per-sample information bottleneck: how many nats of each feature the class needs.

Schulz, Sixt, Tombari and Landgraf, "Restricting the Flow: Information Bottlenecks for
Attribution", ICLR 2020. Noise replaces part of the features of one layer, as much as the prediction
allows; the information that still passes, in nats, is the attribution.

Bottlenecks at several layers may be optimised together, in the spirit of CoIBA (Hong et al., CVPR
2025). A shallow bottleneck alone keeps features that later layers ignore; optimising all layers
together penalises those. One optimisation serves all layers, and costs about as much as the
shallowest bottleneck alone.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riba import progress
from riba.method.explicit import Explicit, Part, explicit, rounded
from riba.method.network import check_images, check_logits, check_targets, class_logit, state_of
from riba.method.statistics import FeatureStatistics, check_statistics

MIN_STD = 0.01
"""Floor under the standard deviation of a feature, as published."""

COPIES = 80
"""Noisy copies that pass through the network together: more is not faster, and takes memory."""

AUTO, KEPT = "auto", 0.9
"""In place of a number for β: for each image the largest that keeps this share of p(class)."""
BETAS, HALVINGS = (0.1, 100.0), 7
"""Between which it is looked for, and how often the interval of its logarithm is halved."""

HALVES = (None, torch.bfloat16, torch.float16)
"""What passes through the layers above can be rounded to; None: not at all."""

SETTLED = 0.05
"""Relative change of the total nats in the last update below which a map counts as settled."""


# --- the formulae --------------------------------------------------------------------------------


def smooth(x: Tensor, sigma: float) -> Tensor:
    """Blur maps (…×h×w) with a Gaussian of side 2·round(2·sigma) + 1, reflecting at the border.

    Schulz et al. 2020, section 3.3: neighbouring features share their fate, or the map would
    pick up the grid of the strided layers above. A kernel of one pixel (``sigma`` up to 0.25)
    returns ``x``. Maps smaller than the kernel are reflected as often as it takes.
    """
    if round(2 * sigma) == 0:
        return x
    x = x * 1.0  # whole numbers would round the kernel to nothing
    rows, columns = (_blur_matrix(side, float(sigma)).to(x) for side in x.shape[-2:])
    return rows @ x @ columns.T


@lru_cache(maxsize=64)
def _blur_matrix(side: int, sigma: float) -> Tensor:
    """The blur along one axis as a side×side matrix: exact, and faster than a convolution."""
    reach = round(2 * sigma)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-offsets.to(torch.float64).square() / (2 * sigma**2))
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
    r
        B×C×h×w, or B×S×C×h×w where every copy has features of its own.
    lambda_
        B×C×h×w.
    noise
        S×C×h×w standard normal, the same for every image.
    mean, std, active
        C×h×w; where an element is not active, z is zero.

    Returns
    -------
    B×S×C×h×w: S noisy copies of each image's features.
    """
    # the layers above run fastest on channels last
    last = partial(torch.Tensor.contiguous, memory_format=torch.channels_last)
    closed = last((active * torch.addcmul(mean, std, noise)).to(lambda_))
    copies = r if r.ndim > lambda_.ndim else last(r)[:, None]
    return torch.lerp(closed, copies.to(closed), last(active * lambda_)[:, None])


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

    Summed over channels, divided by ln 2, enlarged bilinearly to ``size`` (no smaller than h×w)
    and rescaled per image, because interpolation alone keeps the total only roughly. In float32 or
    better: half precision would neither hold the total nor keep it.
    """
    nats = nats.sum(1, keepdim=True, dtype=torch.promote_types(nats.dtype, torch.float32))
    large = F.interpolate(nats, size, mode="bilinear", align_corners=False)
    ratio = nats.sum((2, 3), keepdim=True) / large.sum((2, 3), keepdim=True)
    return (large * ratio.nan_to_num(0.0, 0.0, 0.0))[:, 0] / math.log(2)


def capacity_product(nats: Iterable[Tensor], size: int | tuple[int, int]) -> Tensor:
    """Maps of several depths (each B×C×h×w nats), enlarged to ``size`` and multiplied: B×H×W.

    Each is divided by its mean first, so that the product of many depths stays in range; 1 where
    every depth has its average. No unit.
    """
    maps = [to_bits(depth, size) for depth in nats]
    means = [m.mean((1, 2), keepdim=True).clamp(min=torch.finfo(m.dtype).tiny) for m in maps]
    return torch.stack([m / mean for m, mean in zip(maps, means, strict=True)]).prod(0)


# --- settings and results ------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """Settings of the optimisation; the defaults are those of the publication but for the copies.

    As published: ``samples=10, antithetic=False``.

    Attributes
    ----------
    beta
        Weight of the mean information per element against the cross-entropy. ``"auto"``: for each
        image the largest between 0.1 and 100 at which it keeps nine tenths of its class
        probability, found by bisection; takes eight times as long. Warns of images that lose their
        class at 0.1.
    steps, lr
        Updates of Adam, and its learning rate.
    samples
        Noisy copies per image and step.
    antithetic
        Copies come in pairs of opposite noise, ε and −ε, which averages much of it out: six such
        copies give as good a map as ten independent ones (``benchmarks/fidelity.csv``). Of an odd
        number one has no partner.
    sigma
        Width of the Gaussian that smooths λ, in elements of the feature map; 0: none.
    initial_alpha
        Where α starts; 5 lets 99.3 % through.
    seed
        Of the noise: the same for every image, whatever the batch around it.
    chunk
        Images that pass through the network together, ``samples`` copies of each; halved when
        GPU memory runs out. None: as many as make 80 copies.
    precision
        Of the passes through the layers above during the optimisation, as ``torch.bfloat16``
        (autocast); information and loss stay in that of the weights. None: all of it does.

    Raises
    ------
    ValueError
        A setting is out of its range: names it, its range and its value.
    """

    beta: float | str = 10.0
    steps: int = 10
    samples: int = 6
    antithetic: bool = True
    lr: float = 1.0
    sigma: float = 1.0
    initial_alpha: float = 5.0
    seed: int = 0
    chunk: int | None = None
    precision: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name, fits, range_ in (
            ("beta", self.beta == AUTO or _finite(self.beta, 0), f"0 or more, or {AUTO!r}"),
            ("steps", _whole(self.steps), "1 or more"),
            ("samples", _whole(self.samples), "1 or more"),
            ("lr", _finite(self.lr, 0) and self.lr > 0, "above 0"),
            ("sigma", _finite(self.sigma, 0), "0 or more"),
            ("initial_alpha", _finite(self.initial_alpha), "finite"),
            ("chunk", self.chunk is None or _whole(self.chunk), "1 or more"),
            ("precision", self.precision in HALVES, "torch.bfloat16 or torch.float16"),
        ):
            if not fits:
                raise ValueError(f"{name} must be {range_}, got {getattr(self, name)!r}")


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and value >= 1


def _finite(value: object, least: float = -math.inf) -> bool:
    return isinstance(value, Real) and math.isfinite(value) and value >= least


SEVERAL = Settings(beta=2.0, samples=4)
"""Defaults for several layers: each has its own penalty, and the layers average the noise. Eight
copies in pairs would be as close to the limit as ten independent ones, at twice the cost of these
four (``benchmarks/fidelity.csv``)."""


@dataclass(frozen=True)
class Trace:
    """The course of the optimisation: each (steps + 1)×B, the last row after the last update.

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
    """What passed the bottleneck at one layer, for each of B images.

    Attributes
    ----------
    layer
        Name of the layer.
    nats
        B×C×h×w: capacity per element, after the last update; never negative.
    alpha, lambda_
        B×C×h×w: the parameter, and the share of the feature that passes (0–1, smoothed).
    features
        B×C×h×w: r, the output of the layer.
    published_nats
        B×C×h×w: capacity at the last forward pass, one update earlier, as the published code
        reports it.
    logits
        B×classes, without the bottleneck.
    beta
        B: the weight of the information.
    probability, open_probability
        B: probability of the class with the bottleneck (mean over the noisy copies) and without.
        Far apart: β is too large for this image.
    trace
        Loss, cross-entropy and information at every step.
    history
        (steps + 1)×B×C×h×w: α at every step, where ``keep_steps`` was set.
    """

    layer: str
    nats: Tensor
    alpha: Tensor
    lambda_: Tensor
    features: Tensor
    published_nats: Tensor
    logits: Tensor
    beta: Tensor
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

    def __repr__(self) -> str:
        return f"Information({self.layer!r}, nats {'×'.join(map(str, self.nats.shape))})"


@dataclass(frozen=True)
class Depths:
    """Information at several layers, ordered from the deepest to the shallowest.

    Iterates over :class:`Information`; ``depths["layer1"]`` is that of one layer.
    """

    informations: tuple[Information, ...]

    def __iter__(self) -> Iterator[Information]:
        return iter(self.informations)

    def __len__(self) -> int:
        return len(self.informations)

    def __getitem__(self, layer: str) -> Information:
        for depth in self.informations:
            if depth.layer == layer:
                return depth
        names = ", ".join(depth.layer for depth in self.informations)
        raise KeyError(f"no information at layer {layer!r}, only at {names}")

    @property
    def shallowest(self) -> Information:
        """Information at the layer closest to the pixels."""
        return self.informations[-1]


# --- the bottleneck ------------------------------------------------------------------------------


class InformationBottleneck:
    """Per-sample bottleneck behind one layer of a network, or behind several at once.

    Minimises, for each image separately and over one α per layer, cross-entropy + β · mean capacity
    (Schulz et al. 2020, eq. 7; the capacities of several layers are added) with Adam. The part of
    the network below the first layer runs once; all images of a batch are optimised together. With
    several layers noise enters at each: a deeper layer receives what the noise below has left, and
    its capacity is that of its clean features, as for one layer alone. The network is not changed.

    Parameters
    ----------
    model
        Images (B×3×H×W) to logits (B×classes), in evaluation mode.
    layer
        Name of the module behind which the bottleneck sits, which returns B×C×h×w; or names of
        several, in any order.
    stats
        Feature statistics of that layer of that network; or of each of the layers.
    settings
        Fields of :class:`Settings`. For several layers ``beta`` is 2 and ``samples`` 4 by default.

    Raises
    ------
    ValueError
        No statistics, or of another layer or network; one layer twice; a setting out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | Sequence[str],
        stats: FeatureStatistics | Sequence[FeatureStatistics],
        **settings: object,
    ) -> None:
        self.single = isinstance(layer, str)
        layers = [layer] if self.single else list(layer)
        statistics = list(stats) if isinstance(stats, Sequence) else [stats]
        check_statistics(*statistics)
        matched = self.single != isinstance(stats, Sequence) and len(layers) == len(statistics)
        if not layers or len({*layers}) < len(layers) or not matched:
            raise ValueError(
                "pass a layer with its statistics, or one or more distinct layers with theirs"
            )
        for name, known in zip(layers, statistics, strict=True):
            known.check(model, name)
        self.model, self.statistics = model, dict(zip(layers, statistics, strict=True))
        self.settings = replace(Settings() if self.single else SEVERAL, **settings)
        self.chunk = self.settings.chunk or max(1, COPIES // self.settings.samples)
        self._form: Explicit | None = None
        self._state = state_of(model)

    @torch.inference_mode(False)
    def __call__(
        self,
        images: Tensor,
        targets: Tensor | list[int],
        noise: Tensor | None = None,
        *,
        keep_steps: bool = False,
    ) -> Information | Depths:
        """The information that the class ``targets`` needs, for each image.

        Parameters
        ----------
        images
            B×3×H×W, as the network expects them.
        targets
            B class numbers, or B×classes bool for a set of classes each: logsumexp of their logits.
        noise
            For one layer: steps×samples×C×h×w standard normal, used in place of noise drawn from
            ``seed``, for every image. The evaluation after the last update has its own draw (the
            last one again, where ``noise`` is given).
        keep_steps
            Keep α at every step in ``history``.

        Returns
        -------
        :class:`Information`, or :class:`Depths` for several layers.

        Raises
        ------
        ValueError
            Images, targets, noise or statistics do not fit (:func:`riba.network.check_images`,
            :func:`riba.network.check_targets`), or a layer does not lie above or below another.
        """
        return self.optimise(self.explicit(images), images, targets, noise, keep_steps=keep_steps)

    def check(self, images: Tensor) -> None:
        """Refuse images that do not fit, and a network that the statistics are no longer of.

        Raises
        ------
        ValueError
            As :func:`riba.network.check_images`; or the weights have changed since the statistics
            were checked.
        """
        check_images(self.model, images)
        state = state_of(self.model)
        if state != self._state:
            for layer, stats in self.statistics.items():
                stats.check(self.model, layer)
            self._state = state

    def explicit(self, images: Tensor) -> Explicit:
        """The network cut behind the layers, for images of this size; refuses as :meth:`check`."""
        self.check(images)
        form = explicit(self.model, self.statistics, images, self._form)
        self._form = form  # other threads may set it, too
        return form

    @torch.inference_mode(False)
    def optimise(
        self,
        net: Explicit,
        images: Tensor,
        targets: Tensor | list[int],
        noise: Tensor | None = None,
        *,
        keep_steps: bool = False,
    ) -> Information | Depths:
        """As a call, on the form that :meth:`explicit` returned for these images."""
        batch = self._open(net, images, targets)
        if self.settings.beta == AUTO:
            batch = replace(batch, beta=self._largest(batch, noise))
        results = self._optimised(batch, noise, keep_steps)
        return results[0] if self.single else Depths(tuple(reversed(results)))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_form": None}

    # --- one optimisation, from the whole batch inwards ---

    def _largest(self, batch: _Batch, noise: Tensor | None) -> Tensor:
        """β of each image (B): the largest that keeps its class."""
        low, high = (torch.full_like(batch.beta, math.log(beta)) for beta in BETAS)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            found, *_ = self._optimised(replace(batch, beta=middle.exp()), noise)
            keeps = found.probability >= KEPT * found.open_probability
            low, high = torch.where(keeps, middle, low), torch.where(keeps, high, middle)
        if lost := int((low == math.log(BETAS[0])).sum()):
            warnings.warn(
                f"{lost} of {len(low)} lose their class even at β {BETAS[0]}: see probability",
                stacklevel=4,
            )
        return low.exp()

    def _optimised(
        self, batch: _Batch, noise: Tensor | None, keep_steps: bool = False
    ) -> list[Information]:
        """Results by layer, the shallowest first."""
        draws = self._draws(batch.features, noise)
        alphas = [torch.full_like(r, self.settings.initial_alpha) for r in batch.features]
        adam = torch.optim.Adam(alphas, lr=self.settings.lr)
        rows, history = [], []
        count = (self.settings.steps + 1) * len(batch.targets)
        with progress.counter("bottleneck", count) as bar:
            for _ in range(self.settings.steps):
                row, gradients = self._step(batch, alphas, next(draws), bar)
                rows.append(row)
                history = [*(history if keep_steps else []), [alpha.clone() for alpha in alphas]]
                for alpha, gradient in zip(alphas, gradients, strict=True):
                    alpha.grad = gradient
                adam.step()
            row, _ = self._step(batch, alphas, next(draws), bar, learn=False)
        return self._results(batch, [*history, alphas], [*rows, row], keep_steps)

    @torch.no_grad()
    def _open(self, net: Explicit, images: Tensor, targets: Tensor | list[int]) -> _Batch:
        """Features of every layer and logits, without a bottleneck."""
        head, *above = net.parts

        def run(part: slice) -> tuple[Tensor, ...]:
            features, *beside = head(images[part])
            # contiguous, as the noise and the statistics are
            outputs, values = [features.contiguous()], (features, *beside)
            for piece in above:
                values = piece(*values)
                outputs.append(values[0].contiguous())
            check_logits(outputs[-1], len(images[part]))
            return *outputs, *beside

        outputs, self.chunk = in_chunks(run, len(images), self.chunk)
        count = len(net.layers)
        features, logits, beside = outputs[:count], outputs[count], outputs[count + 1 :]
        stats = tuple(self.statistics[layer].to(images.device) for layer in net.layers)
        for known, r in zip(stats, features, strict=True):
            known.check_features(r)
        beta = BETAS[0] if self.settings.beta == AUTO else self.settings.beta
        betas = features[0].new_full((len(images),), beta)
        above = tuple(rounded(part, self.settings.precision) for part in net.parts[1:])
        return _Batch(above, stats, features, beside, check_targets(targets, logits), logits, betas)

    def _draws(self, features: Sequence[Tensor], noise: Tensor | None) -> Iterator[list[Tensor]]:
        """Noise of every layer, step after step."""
        shapes = [(self.settings.samples, *r.shape[1:]) for r in features]
        if noise is None:
            return drawn(self.settings, shapes, features[0])
        expected = (self.settings.steps, *shapes[0])
        if not self.single or noise.shape != expected:
            raise ValueError(
                "noise must be steps×samples×C×h×w of one layer, "
                f"{'×'.join(map(str, expected))}, got {'×'.join(map(str, noise.shape))}"
            )
        return ([draw.to(features[0])] for draw in itertools.chain(noise, noise[-1:]))

    def _step(
        self,
        batch: _Batch,
        alphas: Sequence[Tensor],
        noise: Sequence[Tensor],
        bar: progress.Counter,
        learn: bool = True,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What :meth:`_losses` returns, for all images; and to learn, the gradient of every α.

        The losses are summed over images: none depends on another's α, so each keeps its own
        gradient. The gradient stops at α; none is computed for the network's weights.
        """

        def run(part: slice) -> tuple[Tensor, ...]:
            with torch.set_grad_enabled(learn):
                variables = [alpha[part].detach().requires_grad_(learn) for alpha in alphas]
                losses = self._losses(batch.part(part), variables, noise)
                gradients = torch.autograd.grad(losses[0].sum(), variables) if learn else ()
            bar.update(len(losses[0]))
            return *(loss.detach() for loss in losses), *gradients

        results, self.chunk = in_chunks(run, len(batch.targets), self.chunk)
        count = len(results) - len(alphas) * learn
        return results[:count], results[count:]

    def _losses(
        self, batch: _Batch, alphas: Sequence[Tensor], noise: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Per image (B each): loss, cross-entropy, probability, and total nats of every layer."""
        measured = [
            measure(r, alpha, stats, self.settings.sigma)
            for stats, r, alpha in zip(batch.stats, batch.features, alphas, strict=True)
        ]
        logits = self._logits(batch, [lambda_ for lambda_, _ in measured], noise)
        targets = batch.targets.repeat_interleave(self.settings.samples, 0)
        log_p = log_probability(logits, targets).unflatten(0, (-1, self.settings.samples))
        cross_entropy = -log_p.mean(1)
        penalty = sum(nats.mean((1, 2, 3)) for _, nats in measured)
        loss = cross_entropy + batch.beta * penalty
        totals = [nats.sum((1, 2, 3)) for _, nats in measured]
        return loss, cross_entropy, log_p.exp().mean(1), *totals

    def _logits(self, batch: _Batch, lambdas: Sequence[Tensor], noise: Sequence[Tensor]) -> Tensor:
        """Logits of the noisy copies (B·S×classes), with a bottleneck behind every layer."""
        features, samples = batch.features[0], self.settings.samples
        beside = [x.repeat_interleave(samples, 0) for x in batch.beside]
        precision = self.settings.precision
        with torch.autocast(features.device.type, precision, enabled=precision is not None):
            for stats, lambda_, draw, piece in zip(
                batch.stats, lambdas, noise, batch.above, strict=True
            ):
                if len(features) > len(lambda_):  # copies already, from the layer below
                    features = features.unflatten(0, (-1, samples))
                std = stats.std.clamp(min=MIN_STD)
                z = restrict(features, lambda_, draw, stats.mean, std, stats.active)
                features, *beside = piece(z.flatten(0, 1).to(features.dtype), *beside)
        return features.to(batch.features[0])

    def _results(
        self,
        batch: _Batch,
        history: list[list[Tensor]],
        rows: list[tuple[Tensor, ...]],
        keep_steps: bool,
    ) -> list[Information]:
        """Results by layer, the shallowest first; ``history`` holds every α before each update."""
        loss, cross_entropy, probability, *totals = map(torch.stack, zip(*rows, strict=True))
        results = []
        for stats, r, total, *alphas in zip(
            batch.stats, batch.features, totals, *history, strict=True
        ):
            lambda_, nats = measure(r, alphas[-1], stats, self.settings.sigma)
            _, published = measure(r, alphas[-2], stats, self.settings.sigma)
            results.append(
                Information(
                    layer=stats.layer,
                    nats=nats.clamp(min=0),  # rounding may leave −1e-7
                    alpha=alphas[-1],
                    lambda_=lambda_,
                    features=r,
                    published_nats=published.clamp(min=0),
                    logits=batch.logits,
                    beta=batch.beta,
                    probability=probability[-1],
                    open_probability=log_probability(batch.logits, batch.targets).exp(),
                    trace=Trace(loss, cross_entropy, total),
                    history=torch.stack(alphas) if keep_steps else None,
                )
            )
        return results


@dataclass(frozen=True)
class _Batch:
    """What stays the same during the optimisation of a batch.

    Attributes
    ----------
    above
        The network above the first layer, cut behind the others.
    stats
        Of every layer, on the device of the images.
    features
        Of every layer, the shallowest first, each B×C×h×w.
    beside
        What passes the first layer by, such as skip connections.
    targets, logits
        Classes to explain, and B×classes without a bottleneck.
    beta
        Of every image.
    """

    above: tuple[Part, ...]
    stats: tuple[FeatureStatistics, ...]
    features: tuple[Tensor, ...]
    beside: tuple[Tensor, ...]
    targets: Tensor
    logits: Tensor
    beta: Tensor

    def part(self, part: slice) -> _Batch:
        """Some of the images."""
        tensors = (tuple(x[part] for x in group) for group in (self.features, self.beside))
        rest = (x[part] for x in (self.targets, self.logits, self.beta))
        return _Batch(self.above, self.stats, *tensors, *rest)


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


def drawn(
    settings: Settings, shapes: Sequence[tuple[int, ...]], like: Tensor
) -> Iterator[list[Tensor]]:
    """Standard normal noise of ``shapes`` (copies first), step after step without end.

    In antithetic pairs, where the settings say so: the second half is the first with its sign
    turned. Drawn on the CPU, so that a GPU gets the same.
    """
    generator = torch.Generator().manual_seed(settings.seed)

    def one(copies: int, *shape: int) -> Tensor:
        count = (copies + 1) // 2 if settings.antithetic else copies
        noise = torch.randn(count, *shape, generator=generator).to(like)
        return torch.cat([noise, -noise])[:copies] if settings.antithetic else noise

    while True:
        yield [one(*shape) for shape in shapes]


def log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """ln of the probability of the class, or of a set of classes, per image (B)."""
    return class_logit(logits, targets) - logits.logsumexp(dim=1)
