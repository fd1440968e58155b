"""The readout bottleneck: a small network that predicts what the per-sample bottleneck optimises.

Schulz et al., ICLR 2020, section 3.4. Trained once over a data set, it reads the features of
several layers from a noise-free pass and says how open the bottleneck should be at every element;
a map then costs one forward pass. It does not read the class to explain: it explains what the
network predicts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riba.method.bottleneck import InformationBottleneck, measure
from riba.method.explicit import outputs_of
from riba.method.network import device_of, frozen_copy
from riba.method.statistics import FeatureStatistics

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
        self.convolutions[-1].weight.data.mul_(1e-3)
        nn.init.constant_(self.convolutions[-1].bias, LIMIT)

    def forward(self, features: Tensor) -> Tensor:
        """α for stacked features (B×inputs×h×w)."""
        normal = (features - self.mean[:, None, None]) / self.std[:, None, None]
        return self.convolutions(normal).clamp(-LIMIT, LIMIT)


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
        layers: Sequence[str],
        sigma: float = 1.0,
    ) -> None:
        self._per_sample = InformationBottleneck(model, layer, stats)  # for its checks
        self.model, self.layer, self.stats = model, layer, stats
        self.readout, self.layers, self.sigma = readout, tuple(layers), sigma

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Nats that pass at every element, B×C×h×w, never negative.

        Raises
        ------
        ValueError
            Images do not fit, or the weights have changed since.
        """
        self._per_sample.check(images)
        r, read = record(self.model, self.layer, self.layers, images)
        self.stats.check_features(r)
        return measure(r, self.readout(read), self.stats, self.sigma)[1].clamp(min=0)


def record(
    model: nn.Module, layer: str, layers: Sequence[str], images: Tensor
) -> tuple[Tensor, Tensor]:
    """Features r of ``layer`` (B×C×h×w) and those of ``layers``, resized to h×w and stacked."""
    # of a private copy: other threads may run the network meanwhile
    _, kept = outputs_of(frozen_copy(model, share=True), (layer, *layers), images)
    size = kept[layer].shape[-2:]
    resized = [_resized(kept[name], size) for name in layers]
    return kept[layer], torch.cat(resized, dim=1)


def _resized(features: Tensor, size: torch.Size) -> Tensor:
    """Features (B×C×h×w) resized: averaged to fewer elements, interpolated to more."""
    if features.shape[-1] > size[-1]:
        return F.adaptive_avg_pool2d(features, size)
    return F.interpolate(features, size, mode="bilinear", align_corners=False)


def new_readout(
    model: nn.Module, layer: str, layers: Sequence[str], stats: FeatureStatistics
) -> Readout:
    """An untrained readout from ``layers`` for a bottleneck at ``layer``."""
    example = torch.zeros(1, 3, *stats.size, device=device_of(model))
    with torch.no_grad():
        r, read = record(model, layer, layers, example)
    return Readout(read.shape[1], r.shape[1]).to(example.device)
