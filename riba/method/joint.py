"""Bottlenecks at several depths, optimised together: what does each depth need of the one below?

Our extension of the per-sample bottleneck (Schulz et al., ICLR 2020), in the spirit of CoIBA
(Hong et al., CVPR 2025). Alone, a bottleneck at a shallow layer lets pass what the class *might*
be read from; with bottlenecks above it, only what is read on at every depth is worth its nats. One
optimisation serves all depths, and costs about as much as the shallowest bottleneck by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from riba import progress
from riba.method.bottleneck import (
    COPIES,
    MIN_STD,
    Information,
    Trace,
    check_settings,
    check_statistics,
    in_chunks,
    log_probability,
    measure,
    mixed,
    restricted_moments,
)
from riba.method.explicit import Explicit, explicit
from riba.method.network import check_images, check_targets, device_of
from riba.method.statistics import FeatureStatistics


class JointBottlenecks:
    """Per-sample bottlenecks behind several layers of a network at once.

    Minimises, for each image by itself and over one α per layer, cross-entropy + β · Σ mean
    capacity with Adam. Noise enters at every layer; a deeper layer's features are those that the
    noise below has left, its capacity is that of the clean ones, so that each layer's nats mean
    what they mean for a bottleneck alone.

    Parameters
    ----------
    model
        Images (B×3×H×W) to logits (B×classes), in evaluation mode.
    statistics
        Of every layer; they name it.
    beta
        Weight of each layer's information against the cross-entropy.
    steps, samples, lr, sigma, initial_alpha, seed, chunk, precision
        As :class:`riba.InformationBottleneck`. Four copies do: the layers average.

    Raises
    ------
    ValueError
        No statistics, two of one layer, or of another network; a parameter out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        statistics: Sequence[FeatureStatistics],
        beta: float = 2.0,
        steps: int = 10,
        samples: int = 4,
        lr: float = 1.0,
        sigma: float = 1.0,
        initial_alpha: float = 5.0,
        seed: int = 0,
        *,
        chunk: int | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        check_statistics(*statistics)
        self.statistics = {stats.layer: stats.to(device_of(model)) for stats in statistics}
        if not statistics or len(self.statistics) < len(statistics):
            raise ValueError("joint bottlenecks need the statistics of one or more distinct layers")
        for layer, stats in self.statistics.items():
            stats.check(model, layer)
        check_settings(beta, steps, samples, lr, sigma, initial_alpha, chunk)
        self.model, self.beta, self.steps, self.samples = model, beta, steps, samples
        self.precision = precision
        self.lr, self.sigma, self.initial_alpha, self.seed = lr, sigma, initial_alpha, seed
        self.chunk = chunk or max(1, COPIES // samples)

    @torch.inference_mode(False)
    def __call__(self, images: Tensor, targets: Tensor | list[int]) -> dict[str, Information]:
        """The information that the class ``targets`` needs at every layer, the deepest first.

        Parameters
        ----------
        images, targets
            As :class:`riba.InformationBottleneck`.

        Raises
        ------
        ValueError
            Images, targets or statistics do not fit, or a layer is not on the network's one path.
        """
        check_images(self.model, images)
        for layer, stats in self.statistics.items():
            stats.check(self.model, layer)  # the weights may have changed since
        net = explicit(self.model, self.statistics, images)
        open_ = partial(self._open, net, images)
        (logits, *features), _ = in_chunks(open_, len(images), COPIES)
        targets = check_targets(targets, logits)
        r, others = features[: len(net.layers)], features[len(net.layers) :]
        for layer, found in zip(net.layers, r, strict=True):
            self.statistics[layer].check_features(found)
        alphas = [torch.full_like(found, self.initial_alpha) for found in r]
        adam = torch.optim.Adam(alphas, lr=self.lr)
        draws = self._draws(r)
        rows = []
        with progress.counter("joint bottlenecks", (self.steps + 1) * len(images)) as bar:
            for step in range(self.steps + 1):
                last = step == self.steps
                given = (net, r, others, targets, alphas, next(draws))
                work = partial(self._step, given, bar, not last)
                results, self.chunk = in_chunks(work, len(images), self.chunk)
                rows.append(results[: 3 + len(r)])
                if last:
                    break
                for alpha, gradient in zip(alphas, results[3 + len(r) :], strict=True):
                    alpha.grad = gradient
                before = [alpha.clone() for alpha in alphas]
                adam.step()
        opened = log_probability(logits, targets).exp()
        return self._information(net.layers, r, alphas, before, opened, rows)

    @torch.no_grad()
    def _open(self, net: Explicit, images: Tensor, part: slice) -> tuple[Tensor, ...]:
        """Logits and the features of every layer without a bottleneck; what goes past the first."""
        head, *above = net.parts
        values = head(images[part])
        found, others = [values[0]], values[1:]
        for piece in above:
            values = piece(*values)
            found.append(values[0])
        *r, logits = found
        return logits, *r, *others

    def _draws(self, r: list[Tensor]) -> Iterator[list[Tensor]]:
        """Noise without end, for every layer; on the CPU, so that a GPU gets the same."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield [
                torch.randn(self.samples, *found.shape[1:], generator=generator).to(found)
                for found in r
            ]

    def _step(
        self, given: tuple, bar: progress.Counter, learn: bool, part: slice
    ) -> tuple[Tensor, ...]:
        """Loss, cross-entropy, probability, nats of every layer; and the gradient of every α."""
        net, r, others, targets, alphas, noise = given
        with torch.set_grad_enabled(learn):
            own = [alpha[part].detach().requires_grad_(learn) for alpha in alphas]
            features, beside = ([x[part] for x in values] for values in (r, others))
            rows = self._losses(net, features, beside, targets[part], own, noise)
            gradients = torch.autograd.grad(rows[0].sum(), own) if learn else ()
        bar.update(len(own[0]))
        return *(row.detach() for row in rows), *gradients

    def _losses(
        self,
        net: Explicit,
        r: list[Tensor],
        others: list[Tensor],
        targets: Tensor,
        alphas: list[Tensor],
        noise: list[Tensor],
    ) -> tuple[Tensor, ...]:
        measured = [self._measure(*row) for row in zip(net.layers, r, alphas, strict=True)]
        copies = [x.repeat_interleave(self.samples, 0) for x in (r[0], *others)]
        logits = self._run(net, copies, [lambda_ for lambda_, _ in measured], noise)
        nats = [passed for _, passed in measured]
        log_p = log_probability(logits, targets.repeat_interleave(self.samples, 0))
        log_p = log_p.unflatten(0, (-1, self.samples))
        cross_entropy = -log_p.mean(1)
        loss = cross_entropy + self.beta * sum(passed.mean((1, 2, 3)) for passed in nats)
        totals = [passed.sum((1, 2, 3)) for passed in nats]
        return loss, cross_entropy, log_p.exp().mean(1), *totals

    def _run(
        self, net: Explicit, values: list[Tensor], lambdas: list[Tensor], noise: list[Tensor]
    ) -> Tensor:
        """Logits of the copies, with noise in the features of every layer."""
        kind = values[0]
        with mixed(kind, self.precision):
            for layer, lambda_, draw, piece in zip(
                net.layers, lambdas, noise, net.parts[1:], strict=True
            ):
                features, *others = values
                values = piece(self._restrict(layer, lambda_, draw, features), *others)
        return values[0].to(kind)

    def _restrict(self, layer: str, lambda_: Tensor, noise: Tensor, h: Tensor) -> Tensor:
        """A layer's features (B·S×C×h×w), with noise in the place of λ's rest."""
        stats = self.statistics[layer]
        std = stats.std.clamp(min=MIN_STD)
        copies = h.unflatten(0, (-1, self.samples))
        centre, spread = restricted_moments(copies, lambda_[:, None], stats.mean, std, stats.active)
        return torch.addcmul(centre, spread, noise).flatten(0, 1).to(h.dtype)

    def _measure(self, layer: str, r: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        return measure(r, alpha, self.statistics[layer], self.sigma)

    def _information(
        self,
        layers: Sequence[str],
        r: list[Tensor],
        alphas: list[Tensor],
        before: list[Tensor],
        opened: Tensor,
        rows: list[tuple[Tensor, ...]],
    ) -> dict[str, Information]:
        loss, cross_entropy, probability, *totals = map(torch.stack, zip(*rows, strict=True))
        found = {}
        for layer, features, alpha, earlier, total in zip(
            layers, r, alphas, before, totals, strict=True
        ):
            lambda_, nats = self._measure(layer, features, alpha)
            found[layer] = Information(
                nats=nats.clamp(min=0),
                alpha=alpha,
                lambda_=lambda_,
                features=features,
                published_nats=self._measure(layer, features, earlier)[1].clamp(min=0),
                probability=probability[-1],
                open_probability=opened,
                trace=Trace(loss, cross_entropy, total),
            )
        return dict(reversed(found.items()))
