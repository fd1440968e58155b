"""InputIBA: a bottleneck at the pixels, with a prior taken from a bottleneck in the features.

Zhang et al., "Fine-Grained Neural Network Explanation by Identifying Input Features with
Predictive Information", NeurIPS 2021. Three steps an image: a feature bottleneck; a prior at the
pixels that agrees with it (:mod:`.priors`); a bottleneck at the pixels, whose information is
counted against that prior. One image after the other, in a batch, too: sixty steps at a rate of 1
amplify the rounding that a larger batch brings until maps differ visibly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from riba import progress
from riba.method.bottleneck import Information, InformationBottleneck, openness, settled
from riba.method.explicit import explicit
from riba.method.network import check_targets, class_logit
from riba.method.priors import PRIORS, Head
from riba.method.statistics import FeatureStatistics


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
        What the feature bottleneck of the first step found.
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
        How the prior is fitted, a key of :data:`.priors.PRIORS`: ``"moments"`` (ours, the
        faster), ``"wgan"`` (as published) or ``"untouched"``.
    feature_beta
        β of the feature bottleneck, which is not smoothed, as published.
    beta, steps, samples, lr, sigma, initial_alpha, seed
        Of the bottleneck at the pixels, as for :class:`riba.InformationBottleneck`.
    mean, std
        Of the noise at the pixels, in the space that the network takes.

    Raises
    ------
    ValueError
        Unknown prior, statistics that do not fit, or a parameter out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        stats: FeatureStatistics,
        *,
        prior: str = "moments",
        feature_beta: float = 20.0,
        beta: float = 20.0,
        steps: int = 60,
        samples: int = 10,
        lr: float = 1.0,
        sigma: float = 1.0,
        initial_alpha: float = 5.0,
        seed: int = 0,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        if prior not in PRIORS:
            raise ValueError(f"no prior {prior!r}: choose one of {', '.join(PRIORS)}")
        if steps < 1 or samples < 1 or beta < 0 or lr <= 0 or sigma < 0 or std <= 0:
            raise ValueError(
                "steps and samples must be 1 or more, beta and sigma 0 or more, lr and std above "
                f"0; got {steps=}, {samples=}, {beta=}, {sigma=}, {lr=}, {std=}"
            )
        self.bottleneck = InformationBottleneck(
            model, layer, stats, beta=feature_beta, sigma=0.0, seed=seed, chunk=1
        )
        self.model, self.layer, self.stats, self.prior = model, layer, stats, prior
        self.beta, self.steps, self.samples, self.lr = beta, steps, samples, lr
        self.sigma, self.initial_alpha, self.seed = sigma, initial_alpha, seed
        self.mean, self.std = mean, std

    @torch.inference_mode(False)
    def __call__(self, images: Tensor, targets: Tensor | list[int]) -> InputInformation:
        """Explain ``targets``: B ints, or B×classes bool for a set of classes each.

        Raises
        ------
        ValueError
            Images or targets do not fit.
        """
        features = self.bottleneck(images, targets)
        bits = features.bits(tuple(images.shape[-2:]))
        head, _ = explicit(self.model, [self.layer], images).parts
        with torch.no_grad():
            logits = self.model(images[:1]).expand(len(images), -1)  # how many classes there are
            targets = check_targets(targets, logits)
        rows = zip(images, targets, bits, features.features, features.lambda_, strict=True)
        with torch.enable_grad():
            parts = [
                self._one(lambda noised: head(noised)[0], *row)
                for row in progress.track(rows, "InputIBA", len(images))
            ]
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
        lambda_, rest = openness(alpha, self.sigma)
        m, rest_m = torch.sigmoid(prior), torch.sigmoid(-prior)
        return lambda_, input_capacity(images, self.mean, self.std, lambda_, m, rest, rest_m)

    def _one(
        self,
        head: Head,
        image: Tensor,
        target: Tensor,
        bits: Tensor,
        r: Tensor,
        lambda_: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """M and α (3×H×W), probability of the class, and total nats at every step."""
        prior = PRIORS[self.prior](head, image, bits, r, lambda_, self.stats, self.seed)
        alpha = torch.full_like(image, self.initial_alpha).requires_grad_()
        adam = torch.optim.Adam([alpha], lr=self.lr)
        draw = torch.Generator().manual_seed(self.seed)
        targets = target.expand(self.samples, *target.shape)
        trace = []
        for step in progress.track(range(self.steps + 1), "bottleneck at the pixels"):
            noise = torch.randn(self.samples, *image.shape, generator=draw).to(image)
            with torch.set_grad_enabled(step < self.steps):
                lambda_, nats = self.measure(image, alpha, prior)
                z = lambda_ * image + (1 - lambda_) * (self.std * noise + self.mean)
                logits = self.model(z)
                log_p = class_logit(logits, targets) - logits.logsumexp(1)
                loss = -log_p.mean() + self.beta * nats.mean()
            trace.append(nats.detach().sum())
            if step < self.steps:
                (alpha.grad,) = torch.autograd.grad(loss, alpha)
                adam.step()
        return prior, alpha.detach(), log_p.exp().mean(), torch.stack(trace)
