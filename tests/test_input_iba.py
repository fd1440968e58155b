"""InputIBA: its information is the KL of two Gaussians; its priors agree; a batch is its images."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import riba
from riba.method import input_iba
from riba.method.input_iba import InputIBA, input_capacity
from riba.testbed import datasets
from tools import wgan

pytestmark = pytest.mark.filterwarnings("ignore:feature statistics from")


@pytest.fixture(scope="module")
def wb(home):
    with pytest.MonkeyPatch.context() as patch:  # a small part of the fit: the same code, sooner
        for name, value in {"EPOCHS": 1, "EPOCH": 3, "BATCH": 4}.items():
            patch.setattr(wgan, name, value)
        patch.setattr(input_iba, "COPIES", 4)
        patch.setattr(input_iba, "GENERATOR_STEPS", 8)
        yield riba.load()


@pytest.fixture(scope="module")
def batch(wb):
    return datasets.stack([wb.validation[index] for index in range(3)])


# --- the formula ---------------------------------------------------------------------------------


def gaussians(x, mean, std, lambda_, m):
    """The two distributions of the formula, and torch's closed form of their divergence."""
    passed = Normal(lambda_ * x + (1 - lambda_) * mean, (1 - lambda_) * std)
    share = lambda_ * m
    return kl_divergence(passed, Normal(share * x + (1 - share) * mean, (1 - share) * std))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.3, 2.5)])
def test_the_information_is_the_divergence_of_two_gaussians(dtype, mean, std):
    generator = torch.Generator().manual_seed(0)
    x, lambda_, m = (torch.rand(3, 40, 40, generator=generator, dtype=dtype) for _ in range(3))
    x, lambda_ = 4 * x - 2, 0.99 * lambda_
    expected = gaussians(x.double(), mean, std, lambda_.double(), m.double())
    got = input_capacity(x, mean, std, lambda_, m).double()
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert (got > -1e-5).all()


def test_it_counts_nothing_that_the_prior_expects():
    x, lambda_ = torch.randn(5, 5), 0.9 * torch.rand(5, 5)
    assert input_capacity(x, 0, 1, lambda_, torch.ones(5, 5)).abs().max() < 1e-6
    assert input_capacity(x, 0, 1, torch.zeros(5, 5), torch.rand(5, 5)).abs().max() < 1e-6


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("m", [0.0, 0.5, 1.0])
def test_its_ends_are_finite_with_their_gradients(lambda_, m):
    alpha = torch.full((3, 4, 4), {0.0: -200.0, 0.5: 0.0, 1.0: 200.0}[lambda_]).requires_grad_()
    rest, open_ = torch.sigmoid(-alpha), torch.sigmoid(alpha)
    prior = torch.full((3, 4, 4), m)
    x = torch.linspace(-2, 2, 48).view(3, 4, 4)
    for known in ({}, {"rest": rest, "rest_m": 1 - prior}):
        nats = input_capacity(x, 0, 1, open_, prior, **known)
        assert torch.isfinite(nats).all()
        assert torch.isfinite(torch.autograd.grad(nats.sum(), alpha, retain_graph=True)[0]).all()
    if m == 1:
        assert nats.abs().max() < 1e-6
    if (lambda_, m) == (1.0, 0.0):
        assert nats.min() > 10  # everything passes, nothing was expected


# --- the method ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(wb, batch):
    return InputIBA(wb.model, wb.layer, wb.statistics, steps=12)(*batch[:2])


def test_what_comes_back(found, batch):
    images = batch[0]
    for name in ("nats", "alpha", "lambda_", "prior"):
        assert getattr(found, name).shape == images.shape
        assert torch.isfinite(getattr(found, name)).all()
    assert (found.nats >= 0).all()
    assert ((found.map >= 0) & (found.map <= 1)).all()
    assert torch.allclose(found.map, torch.sigmoid(found.alpha).mean(1))
    assert found.trace.shape == (13, 3)
    assert torch.allclose(found.trace[-1], found.nats.sum((1, 2, 3)), rtol=1e-3)
    assert found.settled.shape == (3,)
    assert ((found.probability >= 0) & (found.probability <= 1)).all()
    assert (found.trace[-1] < 0.2 * found.trace[0]).all()  # it closed


def test_nats_are_those_of_the_formula(found, batch):
    exact = gaussians(
        batch[0].double(), 0, 1, found.lambda_.double().clamp(max=1 - 1e-6), found.prior.double()
    )
    partly = found.lambda_ < 0.999  # beyond, float32 no longer knows 1 − λ from λ
    assert torch.allclose(found.nats.double()[partly], exact[partly], rtol=1e-3, atol=1e-4)


def test_a_batch_is_its_images(wb, found, batch):
    alone = InputIBA(wb.model, wb.layer, wb.statistics, steps=12)(batch[0][1:2], batch[1][1:2])
    assert torch.equal(alone.map[0], found.map[1])
    assert torch.equal(alone.nats[0], found.nats[1])


def test_seeds_differ_and_repeat(wb, found, batch):
    images, targets = batch[0][:1], batch[1][:1]
    other = InputIBA(wb.model, wb.layer, wb.statistics, steps=12, seed=1)(images, targets)
    assert not torch.equal(other.map[0], found.map[0])
    again = InputIBA(wb.model, wb.layer, wb.statistics, steps=12, seed=1)(images, targets)
    assert torch.equal(other.map, again.map)


def test_sets_of_classes_are_explained(wb, batch):
    images, targets = batch[0][:1], batch[1][:1]
    method = InputIBA(wb.model, wb.layer, wb.statistics, steps=3, prior="untouched")
    as_set = torch.nn.functional.one_hot(targets, 10).bool()
    assert torch.equal(method(images, as_set).nats, method(images, targets).nats)


def test_the_network_collects_no_gradients(wb, batch):
    model = riba.networks.scenenet().requires_grad_(True)
    method = InputIBA(model, wb.layer, wb.statistics, steps=2)
    method(batch[0][:1], batch[1][:1])
    assert all(parameter.grad is None for parameter in model.parameters())


# --- the priors ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task(wb, batch):
    """What the prior of the first image is fitted to."""
    method = InputIBA(wb.model, wb.layer, wb.statistics)
    images, targets, _ = batch
    net = method.bottleneck.explicit(images[:1])
    features = method.bottleneck.optimise(net, images[:1], targets[:1])
    return method._prior_tasks(net, images[:1], features)[0]


def test_an_untouched_prior_is_the_bits_map(task):
    m = input_iba.untouched(task)
    assert torch.equal(m, task.bits.expand(3, -1, -1))
    assert torch.sigmoid(m).min() >= 0.5


def distance(task, mask):
    """How far the generator's features are from z in their mean, with fresh noise."""
    noise = torch.randn(32, *task.image.shape, generator=torch.Generator().manual_seed(9))
    m = torch.sigmoid(mask)
    with torch.no_grad():
        features = task.head(m * task.image + (1 - m) * noise)
    return ((features.mean(0) - task.mean) / task.scale).square().mean()


def test_the_moments_are_those_of_the_restricted_features(wb, batch, task):
    features = InputIBA(wb.model, wb.layer, wb.statistics).bottleneck(batch[0][:1], batch[1][:1])
    r, lambda_, stats = features.features[0], features.lambda_[0], wb.statistics
    mean = stats.active * (lambda_ * r + (1 - lambda_) * stats.mean)
    torch.testing.assert_close(task.mean, mean, rtol=1e-4, atol=1e-5)
    std = stats.active * (1 - lambda_) * stats.std.clamp(min=0.01)
    torch.testing.assert_close(task.std, std, rtol=1e-4, atol=1e-5)


def test_matching_moments_brings_the_features_closer(task):
    assert distance(task, input_iba.moments(task)) < distance(task, input_iba.untouched(task))


def test_every_fit_repeats_itself_and_moves_in_small_steps(task):
    for fit in (input_iba.moments, wgan.wgan):
        first, again = (fit(replace(task, seed=3)) for _ in range(2))
        assert torch.equal(first, again)
        moved = (first - input_iba.untouched(task)).abs()
        assert 0 < moved.max() < 0.2
        assert not torch.equal(first, fit(replace(task, seed=4)))


def test_the_critics_weights_stay_clipped(task, monkeypatch):
    critics = []
    build = wgan._critic
    monkeypatch.setattr(wgan, "_critic", lambda *a: critics.append(build(*a)) or critics[-1])
    wgan.wgan(task)
    (critic,) = critics
    assert all(weights.abs().max() <= wgan.CLIP for weights in critic.parameters())
    assert critic(task.mean[None].repeat(2, 1, 1, 1)).shape == (2, 1)


def test_bad_input_is_told_in_a_sentence(wb):
    with pytest.raises(ValueError, match="no prior 'gan': choose one of moments, untouched"):
        InputIBA(wb.model, wb.layer, wb.statistics, prior="gan")
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        InputIBA(wb.model, wb.layer, wb.statistics, steps=0)
    with pytest.raises(ValueError, match="the statistics are of layer"):
        InputIBA(wb.model, "features.11", wb.statistics)
