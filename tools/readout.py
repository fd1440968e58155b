"""Training of the readout bottleneck (:mod:`riba.method.readout`), once over a data set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from riba.method.bottleneck import MIN_STD, measure, restricted_moments
from riba.method.explicit import explicit
from riba.method.readout import Readout, ReadoutBottleneck, new_readout, record
from riba.method.statistics import FeatureStatistics
from riba.testbed import datasets


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
        readout = new_readout(model, layer, layers, stats)
    draw = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(readout.parameters(), lr=lr)
    rows = [torch.randperm(len(images), generator=draw).split(batch) for _ in range(epochs)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, sum(map(len, rows)))
    bottleneck = ReadoutBottleneck(model, layer, stats, readout, layers, sigma)
    fit_scale(readout, record(model, layer, layers, _batch(images, rows[0][0]))[1])
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


@torch.no_grad()
def fit_scale(readout: Readout, features: Tensor) -> None:
    """Give a readout mean and spread of every input channel of a batch (B×inputs×h×w)."""
    readout.mean.copy_(features.mean((0, 2, 3)))
    readout.std.copy_(features.std((0, 2, 3)).clamp(min=MIN_STD))


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
