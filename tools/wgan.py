"""The published prior of InputIBA: a Wasserstein GAN for every image.

``import tools.wgan`` adds it to :data:`riba.method.input_iba.PRIORS` as ``"wgan"``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from riba import progress
from riba.method.input_iba import PRIORS, Generator, PriorTask, update

EPOCHS, EPOCH, BATCH, CRITIC_UPDATES = 20, 7, 32, 5
"""As published: 20 epochs of 200 samples in batches of 32, one step of the generator on the first
batch of every five."""
CLIP = 0.01


def wgan(task: PriorTask) -> Tensor:
    """M (3×H×W) by the published objective, a Wasserstein GAN with clipped weights.

    Zhang et al., NeurIPS 2021; Arjovsky et al., ICML 2017. A critic sized to the feature map tells
    samples of z from features of noised images; generator and critic are updated in turns, RMSprop
    at the published rates. The published *code* feeds the critic nats in the place of λ and noise
    of other means and spreads than the bottleneck's (it marks the first as open); here z is as the
    paper defines it.
    """
    generator = Generator(task)
    critic = _critic(task.mean.shape, task.seed).to(task.image.device)
    generator_steps = generator.optimiser()
    critic_steps = torch.optim.RMSprop(critic.parameters(), lr=5e-5)
    draw = torch.Generator().manual_seed(task.seed)
    for step in progress.track(range(EPOCHS * EPOCH), "prior of InputIBA"):
        noise = torch.randn(BATCH, *task.mean.shape, generator=draw).to(task.image)
        real = torch.addcmul(task.mean, task.std, noise)
        noise = task.noise(draw, BATCH)
        with torch.no_grad():
            fake = task.head(generator(noise))
        update(critic_steps, critic(fake).mean() - critic(real).mean())
        with torch.no_grad():
            for weights in critic.parameters():
                weights.clamp_(-CLIP, CLIP)
        if step % EPOCH % CRITIC_UPDATES == 0:
            update(generator_steps, -critic(task.head(generator(noise))).mean())
    return generator.mask.detach()


def _critic(shape: torch.Size, seed: int) -> nn.Module:
    """The published critic: three convolutions with batch norm, three dense layers, no sigmoid."""
    channels, height, width = shape

    def block(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=1)
        return [convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]

    elements = channels * (height // 4) * (width // 4)
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


PRIORS["wgan"] = wgan
