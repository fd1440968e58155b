"""InputIBA: a bottleneck at the pixels, with a prior taken from a bottleneck in the features.

Zhang et al., "Fine-Grained Neural Network Explanation by Identifying Input Features with
Predictive Information", NeurIPS 2021. Three steps per image: a feature bottleneck; a prior at the
pixels that agrees with it; a bottleneck at the pixels, whose information is counted against that
prior. Images of a batch are processed one after the other: sixty steps at a learning rate of 1
amplify the rounding differences of a larger batch until maps differ visibly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from riba import progress
from riba.method.bottleneck import (
    AUTO,
    MIN_STD,
    Information,
    InformationBottleneck,
    Settings,
    drawn,
    log_probability,
    openness,
    restricted_moments,
    settled,
)
from riba.method.explicit import Explicit
from riba.method.network import check_targets
from riba.method.statistics import FeatureStatistics

# --- the prior -----------------------------------------------------------------------------------

GENERATOR_STEPS = 40
"""As published: two updates in each of 20 epochs."""
COPIES = 8
"""Noised images per step, from which :func:`moments` estimates mean and spread."""


@dataclass(frozen=True)
class PriorTask:
    """What the prior of one image is fitted to: the distribution of its restricted features z.

    The generator m ⊙ x + (1 − m) ⊙ (eps · ξ + mean), with m = sigmoid(M) per pixel and Gaussian ξ,
    is fitted so that its features are distributed as z (Zhang et al. 2021, section 3.2); m then is
    the share of every pixel that is taken for granted, and the bottleneck at the pixels counts
    what exceeds it. M starts at the map of bits per pixel, as published: m is ½ or more everywhere.

    Attributes
    ----------
    head
        Images (B×3×H×W) to the features of the bottleneck layer.
    image
        3×H×W.
    bits
        H×W: bits per pixel in the feature bottleneck.
    mean, std
        C×h×w: of z.
    scale
        C×h×w: standard deviation of the layer's features, floored.
    seed
        Of the noise.
    """

    head: Callable[[Tensor], Tensor]
    image: Tensor
    bits: Tensor
    mean: Tensor
    std: Tensor
    scale: Tensor
    seed: int

    def noise(self, draw: torch.Generator, copies: int) -> Tensor:
        """ξ, copies×3×H×W."""
        return torch.randn(copies, *self.image.shape, generator=draw).to(self.image)


class Generator(nn.Module):
    """Noised copies of one image: m ⊙ x + (1 − m) ⊙ (eps · ξ + mean), S×3×H×W."""

    def __init__(self, task: PriorTask) -> None:
        super().__init__()
        self.image = task.image
        self.mask = nn.Parameter(untouched(task))
        self.mean = nn.Parameter(task.image.new_zeros(len(task.image), 1, 1))
        self.eps = nn.Parameter(task.image.new_ones(len(task.image), 1, 1))

    def forward(self, noise: Tensor) -> Tensor:
        """Noise (S×3×H×W) to noised images."""
        m = torch.sigmoid(self.mask)
        return m * self.image + (1 - m) * (self.eps * noise + self.mean)

    def optimiser(self) -> torch.optim.Optimizer:
        """RMSprop at the published rates."""
        rates = ((self.mean, 0.1), (self.eps, 0.05), (self.mask, 0.003))
        return torch.optim.RMSprop([{"params": [p], "lr": rate} for p, rate in rates])


def untouched(task: PriorTask) -> Tensor:
    """M as it starts (3×H×W): a control without any fit."""
    return task.bits.expand_as(task.image).clone()


def moments(task: PriorTask) -> Tensor:
    """M (3×H×W) that matches mean and standard deviation of every feature with those of z.

    The published number of generator steps at the published rates, but no critic: the distribution
    of z is known in closed form and need not be learned from samples.
    """
    generator = Generator(task)
    optimiser = generator.optimiser()
    draw = torch.Generator().manual_seed(task.seed)
    for _ in progress.track(range(GENERATOR_STEPS), "prior of InputIBA"):
        features = task.head(generator(task.noise(draw, COPIES)))
        mean_error = (features.mean(0) - task.mean) / task.scale
        std_error = (features.std(0) - task.std) / task.scale
        update(optimiser, (mean_error.square() + std_error.square()).mean())
    return generator.mask.detach()


def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step on the optimiser's parameters; no gradient reaches the network's weights."""
    optimiser.zero_grad()
    loss.backward(inputs=[p for group in optimiser.param_groups for p in group["params"]])
    optimiser.step()


PRIORS: dict[str, Callable[[PriorTask], Tensor]] = {"moments": moments, "untouched": untouched}
"""Ways of fitting the prior, by name. ``tools/wgan.py`` adds the published one."""


# --- the bottleneck at the pixels ----------------------------------------------------------------

AT_PIXELS = Settings(beta=20.0, steps=60)
"""The published settings; ``chunk`` and ``precision`` are not used."""


def input_capacity(
    x: Tensor,
    mean: Tensor | float,
    std: Tensor | float,
    lambda_: Tensor,
    m: Tensor,
    rest: Tensor | None = None,
    rest_m: Tensor | None = None,
) -> Tensor:
    """Nats beyond the prior: KL[N(λx + (1−λ)μ, (1−λ)²σ²) ‖ N(λmx + (1−λm)μ, (1−λm)²σ²)].

    With μ_z = λ(1−m)(x−μ)/((1−mλ)σ) and v = (1−λ)²/(1−mλ)²: KL = −½ (1 + ln v − μ_z² − v)
    (Zhang et al. 2021, eq. 9 ff.).

    Parameters
    ----------
    x, lambda_, m
        …×3×H×W: pixels, their share that passes, and the share that the prior takes for granted.
    mean, std
        Of the noise.
    rest, rest_m
        1 − λ and 1 − m where they are known better than by subtraction.
    """
    smallest = torch.finfo(lambda_.dtype).tiny
    rest = 1 - lambda_ if rest is None else rest
    rest_m = 1 - m if rest_m is None else rest_m
    rest = rest.clamp(min=2**-24 if (lambda_ == 1).any() else smallest)
    beyond = rest + lambda_ * rest_m  # 1 − mλ, without cancelling
    log_v = 2 * (rest.log() - beyond.log())
    mu_z = lambda_ * rest_m * (x - mean) / (beyond * std)
    return -0.5 * (1 + log_v - mu_z.square() - log_v.exp())


@dataclass(frozen=True)
class InputInformation:
    """What the bottleneck at the pixels let through, for each of B images.

    Attributes
    ----------
    nats
        B×3×H×W: information beyond the prior, never negative.
    alpha, lambda_
        B×3×H×W: the parameter, and the share of the pixel that passes (0–1, smoothed).
    prior
        B×3×H×W: m, the share that the prior takes for granted (0–1).
    features
        Result of the feature bottleneck.
    probability
        B: probability of the class through the bottleneck, mean over the noisy copies.
    trace
        (steps + 1)×B: total nats at every step, the last after the last update.
    """

    nats: Tensor
    alpha: Tensor
    lambda_: Tensor
    prior: Tensor
    features: Information
    probability: Tensor
    trace: Tensor

    @property
    def map(self) -> Tensor:
        """B×H×W: the published map, sigmoid(α) averaged over the colours, 0–1."""
        return torch.sigmoid(self.alpha).mean(1)

    @property
    def settled(self) -> Tensor:
        """B bool: the last update changed the total nats by less than 5 %."""
        return settled(self.trace)


class InputIBA:
    """The bottleneck at the pixels.

    Parameters
    ----------
    model
        Images (B×3×H×W) to logits (B×classes), in evaluation mode.
    layer
        Where the feature bottleneck sits.
    stats
        Statistics of that layer.
    prior
        How the prior is fitted, a key of :data:`PRIORS`: ``"moments"`` (ours, the faster) or
        ``"untouched"``.
    feature_beta
        β of the feature bottleneck, which is not smoothed, as published.
    mean, std
        Of the noise at the pixels, in the space that the network takes.
    settings
        Of the bottleneck at the pixels, fields of :class:`riba.method.bottleneck.Settings`; by
        default :data:`AT_PIXELS`. Copies and seed are those of the feature bottleneck, too.

    Raises
    ------
    ValueError
        Unknown prior, statistics that do not fit, or a setting out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        stats: FeatureStatistics,
        *,
        prior: str = "moments",
        feature_beta: float = 20.0,
        mean: float = 0.0,
        std: float = 1.0,
        **settings: object,
    ) -> None:
        if prior not in PRIORS:
            raise ValueError(
                f"no prior {prior!r}: choose one of {', '.join(PRIORS)}; tools/wgan.py adds the "
                "published one"
            )
        if std <= 0:
            raise ValueError(f"std must be above 0, got {std}")
        if unused := {"chunk", "precision"} & settings.keys():
            raise ValueError(f"InputIBA has no setting {min(unused)!r}: leave it out")
        self.settings = replace(AT_PIXELS, **settings)
        if self.settings.beta == AUTO:
            raise ValueError(f"β at the pixels is a number: use feature_beta={AUTO!r}")
        drawing = {name: getattr(self.settings, name) for name in ("samples", "antithetic", "seed")}
        self.bottleneck = InformationBottleneck(
            model, layer, stats, beta=feature_beta, sigma=0.0, chunk=1, **drawing
        )
        self.model, self.layer, self.stats, self.prior = model, layer, stats, prior
        self.mean, self.std = mean, std

    @torch.inference_mode(False)
    def __call__(self, images: Tensor, targets: Tensor | list[int]) -> InputInformation:
        """Explain ``targets``: B ints, or B×classes bool for a set of classes each.

        Raises
        ------
        ValueError
            Images or targets do not fit.
        """
        net = self.bottleneck.explicit(images)
        features = self.bottleneck.optimise(net, images, targets)
        images = images.to(features.nats)  # half precision would stall the optimisation
        targets = check_targets(targets, features.logits)
        tasks = list(zip(self._prior_tasks(net, images, features), targets, strict=True))
        with torch.enable_grad():
            parts = [self._one(*task) for task in progress.track(tasks, "InputIBA")]
        prior, alpha, probability, trace = map(torch.stack, zip(*parts, strict=True))
        lambda_, nats = self.measure(images, alpha, prior)
        return InputInformation(
            nats=nats.clamp(min=0),
            alpha=alpha,
            lambda_=lambda_,
            prior=torch.sigmoid(prior),
            features=features,
            probability=probability,
            trace=trace.T,
        )

    def measure(self, images: Tensor, alpha: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """λ and nats (…×3×H×W) for parameters α and M."""
        lambda_, rest = openness(alpha, self.settings.sigma)
        m, rest_m = torch.sigmoid(prior), torch.sigmoid(-prior)
        return lambda_, input_capacity(images, self.mean, self.std, lambda_, m, rest, rest_m)

    def _prior_tasks(self, net: Explicit, images: Tensor, features: Information) -> list[PriorTask]:
        """What the prior of each image is fitted to."""
        head, _ = net.parts
        stats = self.stats.to(images.device)
        scale = stats.std.clamp(min=MIN_STD)
        means, stds = restricted_moments(
            features.features, features.lambda_, stats.mean, scale, stats.active
        )
        bits = features.bits(tuple(images.shape[-2:]))
        return [
            PriorTask(lambda x: head(x)[0], *row, scale, self.settings.seed)
            for row in zip(images, bits, means, stds, strict=True)
        ]

    def _one(self, task: PriorTask, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """M and α (3×H×W), probability of the class, and total nats at every step."""
        settings, image = self.settings, task.image
        prior = PRIORS[self.prior](task)
        alpha = torch.full_like(image, settings.initial_alpha).requires_grad_()
        adam = torch.optim.Adam([alpha], lr=settings.lr)
        draws = drawn(settings, [(settings.samples, *image.shape)], image)
        targets = target.expand(settings.samples, *target.shape)
        trace = []
        for step in progress.track(range(settings.steps + 1), "bottleneck at the pixels"):
            (noise,) = next(draws)
            with torch.set_grad_enabled(step < settings.steps):
                lambda_, nats = self.measure(image, alpha, prior)
                z = lambda_ * image + (1 - lambda_) * (self.std * noise + self.mean)
                logits = self.model(z.to(next(self.model.parameters(), z).dtype))
                log_p = log_probability(logits.to(z), targets)
                loss = -log_p.mean() + settings.beta * nats.mean()
            trace.append(nats.detach().sum())
            if step < settings.steps:
                update(adam, loss)
        return prior, alpha.detach(), log_p.exp().mean(), torch.stack(trace)
