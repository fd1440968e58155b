"""The readout bottleneck: a small network that predicts what the per-sample bottleneck optimises.

Schulz et al., ICLR 2020, section 3.4. Trained once over a data set, it reads the features of
several layers from a noise-free pass and says how open the bottleneck should be at every element;
a map then costs one forward pass. It is not told which class to explain: it explains what the
network sees.

``make readout`` trains the one in ``data/`` from nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from riba.method.bottleneck import MIN_STD, check_statistics, measure, restricted_moments
from riba.method.explicit import explicit
from riba.method.network import check_images, device_of, errors_in_words, watched
from riba.method.statistics import FeatureStatistics
from riba.storage import DATA
from riba.testbed import datasets
from riba.testbed.networks import SCENENET_LAYER, load_weights

READOUT_WEIGHTS = DATA / "readout.safetensors"
SCENENET_LAYERS = ("features.6", "features.11", "features.14", "features.16", "features.18")
"""What the bundled readout reads, strides 2, 4 and 8 and both convolutions above the bottleneck."""

LIMIT = 5.0
"""α stays within ±5, as published: λ between 0.7 and 99.3 %."""


class Readout(nn.Module):
    """Three 1×1 convolutions from the features of several layers to α (B×C×h×w).

    Hidden widths in → in/2 → 2C → C. The last bias is 5 and the last weights are small, so that an
    untrained readout lets everything through.

    Parameters
    ----------
    inputs
        Channels of all layers read, together.
    channels
        C, channels of the bottleneck layer.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("std", torch.ones(inputs))
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs, inputs // 2, 1),
            nn.ReLU(),
            nn.Conv2d(inputs // 2, 2 * channels, 1),
            nn.ReLU(),
            nn.Conv2d(2 * channels, channels, 1),
        )
        last = self.convolutions[-1]
        with torch.no_grad():
            last.weight.mul_(1e-3)
            last.bias.fill_(LIMIT)

    def forward(self, features: Tensor) -> Tensor:
        """α for stacked features (B×inputs×h×w)."""
        normal = (features - self.mean[:, None, None]) / self.std[:, None, None]
        return self.convolutions(normal).clamp(-LIMIT, LIMIT)

    @torch.no_grad()
    def fit_scale(self, features: Tensor) -> None:
        """Take mean and spread of every input channel from a batch (B×inputs×h×w)."""
        self.mean.copy_(features.mean((0, 2, 3)))
        self.std.copy_(features.std((0, 2, 3)).clamp(min=MIN_STD))


class ReadoutBottleneck:
    """A trained readout in front of one layer of a network.

    Parameters
    ----------
    model
        Images (B×3×H×W) to logits, in evaluation mode.
    layer
        Name of the module behind which the bottleneck sits.
    stats
        Its feature statistics.
    readout
        The trained network.
    layers
        Names of the modules it reads, in the order of training.
    sigma
        Width of the Gaussian that smooths λ, in elements.

    Raises
    ------
    ValueError
        Statistics of another layer or network, or a layer that does not exist.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        stats: FeatureStatistics,
        readout: Readout,
        layers: Sequence[str] = SCENENET_LAYERS,
        sigma: float = 1.0,
    ) -> None:
        stats.check(model, layer)
        self.model, self.layer, self.stats = model, layer, stats
        self.readout, self.layers, self.sigma = readout, tuple(layers), sigma

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Nats that pass at every element, B×C×h×w, never negative."""
        check_images(self.model, images)
        r, read = record(self.model, self.layer, self.layers, images)
        self.stats.check_features(r)
        return measure(r, self.readout(read), self.stats, self.sigma)[1].clamp(min=0)


def record(
    model: nn.Module, layer: str, layers: Sequence[str], images: Tensor
) -> tuple[Tensor, Tensor]:
    """Features r of ``layer`` (B×C×h×w) and those of ``layers``, resized to h×w and stacked."""
    with watched(model, dict.fromkeys((layer, *layers))) as kept, errors_in_words(images):
        model(images)
    size = kept[layer].shape[-2:]
    resized = [_resized(kept[name], size) for name in layers]
    return kept[layer], torch.cat(resized, dim=1)


def _resized(features: Tensor, size: torch.Size) -> Tensor:
    """Averaged where there are more elements than wanted, bilinear where there are fewer."""
    if features.shape[-1] > size[-1]:
        return F.adaptive_avg_pool2d(features, size)
    return F.interpolate(features, size, mode="bilinear", align_corners=False)


def scenenet_readout(
    model: nn.Module, stats: FeatureStatistics, weights: Path | str = READOUT_WEIGHTS
) -> ReadoutBottleneck:
    """The bundled readout for the bundled network.

    Raises
    ------
    FileNotFoundError, ValueError
        Its weights are missing or unreadable (``make readout`` trains them), or ``stats`` are not
        of the layer that it was trained for.
    """
    check_statistics(stats)
    if stats.layer != SCENENET_LAYER:
        raise ValueError(
            f"the bundled readout was trained for layer {SCENENET_LAYER!r}, not {stats.layer!r}: "
            "use that layer, or train one with riba.readout.train"
        )
    readout = _new(model, SCENENET_LAYER, SCENENET_LAYERS, stats)
    load_weights(readout, weights)
    return ReadoutBottleneck(model, SCENENET_LAYER, stats, readout.eval())


def _new(model: nn.Module, layer: str, layers: Sequence[str], stats: FeatureStatistics) -> Readout:
    example = torch.zeros(1, 3, *stats.size, device=device_of(model))
    with torch.no_grad():
        r, read = record(model, layer, layers, example)
    return Readout(read.shape[1], r.shape[1]).to(example.device)


# --- training ------------------------------------------------------------------------------------


def train(
    model: nn.Module,
    layer: str,
    layers: Sequence[str],
    stats: FeatureStatistics,
    images: Tensor,
    targets: Tensor,
    *,
    beta: float = 10.0,
    epochs: int = 8,
    batch: int = 16,
    lr: float = 1e-3,
    sigma: float = 1.0,
    seed: int = 0,
) -> tuple[ReadoutBottleneck, list[float]]:
    """Train a readout with the loss of the per-sample bottleneck, averaged over a data set.

    Cross-entropy through the bottleneck + β · mean capacity (Schulz et al. 2020, eq. 7), one noise
    draw an image and step, Adam with a cosine decay of its rate.

    Parameters
    ----------
    images, targets
        N×H×W×3 uint8 pictures for the bundled network, and N class numbers.

    Returns
    -------
    The bottleneck, and the mean loss of every epoch.
    """
    model = model.eval().requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        readout = _new(model, layer, layers, stats)
    draw = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(readout.parameters(), lr=lr)
    rows = [torch.randperm(len(images), generator=draw).split(batch) for _ in range(epochs)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, sum(map(len, rows)))
    bottleneck = ReadoutBottleneck(model, layer, stats, readout, layers, sigma)
    readout.fit_scale(record(model, layer, layers, _batch(images, rows[0][0]))[1])
    _, tail = explicit(model, [layer], _batch(images, rows[0][0][:1])).parts
    losses = []
    for epoch, parts in enumerate(rows):
        total = 0.0
        for part in tqdm(parts, f"epoch {epoch + 1}/{epochs}", leave=False, mininterval=2):
            loss = _loss(bottleneck, tail, _batch(images, part), targets[part], beta, draw)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(part)
        losses.append(total / len(images))
        tqdm.write(f"epoch {epoch + 1}/{epochs}: mean loss {losses[-1]:.3f}")
    readout.eval()
    return bottleneck, losses


def _batch(images: Tensor, rows: Tensor) -> Tensor:
    return torch.stack([datasets.SCENES.normalise(images[row].numpy()) for row in rows])


def _loss(
    bottleneck: ReadoutBottleneck,
    tail: nn.Module,
    images: Tensor,
    targets: Tensor,
    beta: float,
    draw: torch.Generator,
) -> Tensor:
    with torch.no_grad():
        r, read = record(bottleneck.model, bottleneck.layer, bottleneck.layers, images)
    alpha, stats = bottleneck.readout(read), bottleneck.stats.to(r.device)
    lambda_, nats = measure(r, alpha, stats, bottleneck.sigma)
    std = stats.std.clamp(min=MIN_STD)
    centre, spread = restricted_moments(r, lambda_, stats.mean, std, stats.active)
    z = centre + spread * torch.randn(r.shape, generator=draw).to(r)
    return F.cross_entropy(tail(z)[0], targets) + beta * nats.mean()
