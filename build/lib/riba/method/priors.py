"""The prior of InputIBA: which noised image would look, to the network, like the bottleneck?

Zhang et al., "Fine-Grained Neural Network Explanation by Identifying Input Features with
Predictive Information", NeurIPS 2021, section 3.2. A feature bottleneck says which features may
pass. The generator m ⊙ x + (1 − m) ⊙ (eps · ξ + mean), with m = sigmoid(M) per pixel and Gaussian
ξ, is fitted so that its features are distributed as the restricted features z are; m then is the
share of every pixel that is taken for granted, and the input bottleneck counts what goes beyond.

M starts at the map of bits per pixel, as published, so that m is at least one half everywhere.
Every fit is of one image and takes

head
    Images (B×3×H×W) to the features of the bottleneck layer.
image
    3×H×W.
bits
    H×W: bits per pixel that the feature bottleneck found.
r, lambda_
    C×h×w: features of the image, and the share of each that may pass.
stats
    Feature statistics of the layer.
seed
    Of the noise.

and returns M, 3×H×W.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from riba import progress
from riba.method.bottleneck import MIN_STD, restrict, restricted_moments
from riba.method.statistics import FeatureStatistics

Head = Callable[[Tensor], Tensor]

EPOCHS, EPOCH, BATCH, CRITIC_UPDATES = 20, 7, 32, 5
"""As published: 20 epochs of 200 samples in batches of 32, one step of the generator on the first
batch of every five."""
GENERATOR_STEPS = EPOCHS * len(range(0, EPOCH, CRITIC_UPDATES))
CLIP = 0.01
COPIES = 8
"""Noised images per step, from which :func:`moments` takes mean and spread."""


def untouched(
    head: Head,
    image: Tensor,
    bits: Tensor,
    r: Tensor,
    lambda_: Tensor,
    stats: FeatureStatistics,
    seed: int = 0,
) -> Tensor:
    """M as it starts: a control without any fit."""
    return bits.repeat(3, 1, 1)


def moments(
    head: Head,
    image: Tensor,
    bits: Tensor,
    r: Tensor,
    lambda_: Tensor,
    stats: FeatureStatistics,
    seed: int = 0,
) -> Tensor:
    """Match mean and standard deviation of every feature, which z has in closed form.

    The published number of generator steps at the published rates, but no critic: what z's
    distribution is need not be learned from samples.
    """
    stats = stats.to(image.device)
    std = stats.std.clamp(min=MIN_STD)
    centre, spread = restricted_moments(r, lambda_, stats.mean, std, stats.active)
    generator = _Generator(image, bits)
    optimiser = generator.optimiser()
    draw = torch.Generator().manual_seed(seed)
    for _ in progress.track(range(GENERATOR_STEPS), "prior of InputIBA"):
        features = head(generator(torch.randn(COPIES, *image.shape, generator=draw).to(image)))
        off_centre = (features.mean(0) - centre) / std
        off_spread = (features.std(0) - spread) / std
        _update(optimiser, (off_centre.square() + off_spread.square()).mean())
    return generator.mask.detach()


def wgan(
    head: Head,
    image: Tensor,
    bits: Tensor,
    r: Tensor,
    lambda_: Tensor,
    stats: FeatureStatistics,
    seed: int = 0,
) -> Tensor:
    """The published objective: a Wasserstein GAN with clipped weights, one for every image.

    Arjovsky et al., ICML 2017. A critic sized to the feature map tells samples of z from features
    of noised images; generator and critic are updated in turns, RMSprop at the published rates.
    The published *code* feeds the critic nats in the place of λ and noise of other means and
    spreads than the bottleneck's (it marks the first as open); here z is what the paper says.
    """
    stats = stats.to(image.device)
    std = stats.std.clamp(min=MIN_STD)
    generator = _Generator(image, bits)
    critic = _critic(r.shape[0], r.shape[1:], seed).to(image.device)
    explorer, judge = generator.optimiser(), torch.optim.RMSprop(critic.parameters(), lr=5e-5)
    draw = torch.Generator().manual_seed(seed)
    for step in progress.track(range(EPOCHS * EPOCH), "prior of InputIBA"):
        noise = torch.randn(BATCH, *r.shape, generator=draw).to(image)
        real = restrict(r[None], lambda_[None], noise, stats.mean, std, stats.active)[0]
        noise = torch.randn(BATCH, *image.shape, generator=draw).to(image)
        with torch.no_grad():
            fake = head(generator(noise))
        _update(judge, critic(fake).mean() - critic(real).mean())
        with torch.no_grad():
            for weights in critic.parameters():
                weights.clamp_(-CLIP, CLIP)
        if step % EPOCH % CRITIC_UPDATES == 0:
            _update(explorer, -critic(head(generator(noise))).mean())
    return generator.mask.detach()


def _update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step on the optimiser's own parameters; no gradient reaches the network's weights."""
    own = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for parameter, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
        parameter.grad = gradient
    optimiser.step()


class _Generator(nn.Module):
    """Noised copies of one image: m ⊙ x + (1 − m) ⊙ (eps · ξ + mean), S×3×H×W."""

    def __init__(self, image: Tensor, bits: Tensor) -> None:
        super().__init__()
        self.image = image
        self.mask = nn.Parameter(bits.repeat(3, 1, 1))
        self.mean = nn.Parameter(image.new_zeros(3, 1, 1))
        self.eps = nn.Parameter(image.new_ones(3, 1, 1))

    def forward(self, noise: Tensor) -> Tensor:
        m = torch.sigmoid(self.mask)
        return m * self.image + (1 - m) * (self.eps * noise + self.mean)

    def optimiser(self) -> torch.optim.Optimizer:
        rates = ((self.mean, 0.1), (self.eps, 0.05), (self.mask, 0.003))
        return torch.optim.RMSprop([{"params": [p], "lr": rate} for p, rate in rates])


def _critic(channels: int, size: torch.Size, seed: int) -> nn.Module:
    """The published critic: three convolutions with batch norm, three dense layers, no sigmoid."""

    def block(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=1)
        return [convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]

    elements = channels * (size[0] // 4) * (size[1] // 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            *block(channels, 2 * channels, 4, 2),
            *block(2 * channels, 4 * channels, 4, 2),
            *block(4 * channels, channels, 3, 1),
            nn.Flatten(),
            nn.Linear(elements, 512),
            nn.LeakyReLU(0.2),
            nn.Linear(512, 256),
            nn.LeakyReLU(0.2),
            nn.Linear(256, 1),
        )


PRIORS: dict[str, Callable[..., Tensor]] = {
    "moments": moments,
    "wgan": wgan,
    "untouched": untouched,
}
"""Ways of fitting the prior, by name."""
