"""The per-sample bottleneck against published results, a slow second way, and bad input."""

import copy
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal, kl_divergence
from torchvision.models import resnet18

import riba
from riba import progress
from riba.method.bottleneck import (
    MIN_STD,
    InformationBottleneck,
    capacity,
    measure,
    openness,
    restrict,
    restricted_moments,
    smooth,
    to_bits,
)
from riba.method.explicit import explicit
from riba.method.network import fingerprint, run_until
from riba.method.statistics import FeatureStatistics

explicit_module = sys.modules["riba.method.explicit"]

pytestmark = pytest.mark.filterwarnings("ignore:feature statistics from")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small run faster on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


GOLDEN = sorted((Path(__file__).parent / "golden" / "iba").glob("*.npz"))


def golden(path):
    """A published result: its arrays, the network, and the statistics of its layer."""
    data = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    ).eval()
    model.load_state_dict({name[2:]: data[name] for name in data if name.startswith("w.")})
    layer = str(int(data["layer"]))
    stats = FeatureStatistics(
        data["mean"], data["std"], data["active"], layer, fingerprint(model), len(data["images"])
    )
    return data, model, layer, stats


@pytest.fixture(scope="module")
def trained():
    data, model, layer, stats = golden(next(p for p in GOLDEN if p.stem == "trained"))
    with torch.no_grad():
        targets = model(data["images"]).argmax(1)
    return model, layer, stats, data["images"], targets


class Residual(nn.Module):
    """A skip connection leads past ``inner``, so that its features alone do not decide."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.rest(x, self.inner(x))

    def rest(self, x, inner):
        return self.head((3 * self.relu(inner) + x).mean((2, 3)))


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(3)
    model, images = Residual().eval(), torch.randn(40, 3, 9, 7)
    return model, FeatureStatistics.fit(model, "inner", images), images


def slow_iba(tail, r, target, stats, noise, *, beta, lr):
    """One image, λ smoothed by a convolution, the information from torch.distributions."""
    channels = r.shape[0]
    line = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / 2)
    kernel = (line[:, None] * line / line.sum() ** 2).expand(channels, 1, 5, 5)
    std = stats.std.clamp(min=MIN_STD)
    alpha = torch.full_like(r, 5.0).requires_grad_()
    adam = torch.optim.Adam([alpha], lr=lr)

    def information():
        padded = F.pad(alpha.sigmoid()[None], (2, 2, 2, 2), mode="reflect")
        lam = F.conv2d(padded, kernel, groups=channels)[0]
        signal = Normal(lam * r + (1 - lam) * stats.mean, (1 - lam) * std)
        return lam, kl_divergence(signal, Normal(stats.mean, std)) * stats.active

    for draw in noise:
        lam, nats = information()
        z = (lam * r + (1 - lam) * (stats.mean + std * draw)) * stats.active
        log_p = tail(z).log_softmax(1)[:, target].logsumexp(1)
        loss = -log_p.mean() + beta * nats.mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return alpha.detach(), information()[1].detach()


# --- the published implementation ------------------------------------------------------------


def test_all_golden_cases_are_here():
    assert len(GOLDEN) == 5


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_parity_with_the_published_implementation(path):
    data, model, layer, stats = golden(path)
    iba = InformationBottleneck(
        *(model, layer, stats),
        beta=data["beta"].item(),
        steps=data["steps"].item(),
        samples=data["batch"].item(),
        lr=data["lr"].item(),
        sigma=data["sigma"].item(),
    )
    info = iba(data["x"], [data["target"].item()], data["noise"])
    close = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(info.alpha[0], data["alpha"], **close)
    torch.testing.assert_close(info.nats[0], data["capacity_nats"], **close)
    torch.testing.assert_close(info.published_nats[0], data["capacity_nats_last_forward"], **close)
    trace = info.trace
    torch.testing.assert_close(trace.cross_entropy[:-1, 0].double(), data["model_loss"], **close)
    torch.testing.assert_close(trace.loss[:-1, 0].double(), data["loss"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_statistics_as_published(path):
    data, model, layer, stats = golden(path)
    fitted = FeatureStatistics.fit(model, layer, data["images"])
    torch.testing.assert_close(fitted.mean, stats.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fitted.std, stats.std, rtol=1e-5, atol=1e-6)
    assert torch.equal(fitted.active, stats.active)


# --- the formulae ----------------------------------------------------------------------------


def test_capacity_is_the_divergence_of_two_gaussians():
    torch.manual_seed(0)
    r, mean = torch.randn(2, 1000)
    std, lam = torch.rand(2, 1000) * 0.98 + 0.01
    signal = Normal(lam * r + (1 - lam) * mean, (1 - lam) * std)
    expected = kl_divergence(signal, Normal(mean, std))
    torch.testing.assert_close(capacity(r, mean, std, lam), expected, rtol=1e-5, atol=1e-5)


def test_capacity_of_an_open_bottleneck_is_finite():
    one = torch.ones(1)
    assert torch.isfinite(capacity(one, one, one, one)).all()


@pytest.mark.parametrize("alpha", [-40.0, -3.0, 5.0, 20.0, 60.0, 200.0])
def test_openness_keeps_the_digits_of_what_stays_shut(alpha):
    lam, rest = openness(torch.full((1, 6, 6), alpha, requires_grad=True), 1.0)
    exact = torch.tensor(alpha, dtype=torch.float64)
    torch.testing.assert_close(lam.double(), exact.sigmoid().expand(1, 6, 6), rtol=1e-5, atol=1e-30)
    expected = (-exact).sigmoid().clamp(min=1.2e-38).expand(1, 6, 6)
    torch.testing.assert_close(rest.double(), expected, rtol=1e-5, atol=1e-37)
    assert torch.isfinite(rest.log()).all()


@pytest.mark.parametrize(("sigma", "height", "width"), [(1, 8, 5), (0.5, 6, 6), (2.0, 5, 12)])
def test_smooth_is_a_reflecting_convolution(sigma, height, width):
    x = torch.randn(2, 3, height, width)
    reach = round(2 * sigma)
    line = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    kernel = (line[:, None] * line / line.sum() ** 2).expand(3, 1, -1, -1)
    expected = F.conv2d(F.pad(x, [reach] * 4, mode="reflect"), kernel, groups=3)
    torch.testing.assert_close(smooth(x, sigma), expected, rtol=1e-5, atol=1e-6)


def test_smooth_works_on_maps_smaller_than_its_reach():
    """NumPy reflects as often as needed; torch's padding refuses."""
    x = torch.randn(2, 3, dtype=torch.float64)
    line = np.exp(-(np.arange(-4, 5) ** 2) / 8)
    padded = np.pad(x.numpy(), 4, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (9, 9))
    expected = (windows * np.outer(line, line) / line.sum() ** 2).sum((2, 3))
    np.testing.assert_allclose(smooth(x, 2.0), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(smooth(torch.ones(1, 1), 1.0), torch.ones(1, 1))


def test_smooth_with_sigma_zero_is_the_identity():
    x = torch.randn(3, 4, 4)
    assert smooth(x, 0) is x


def test_restrict_mixes_and_masks():
    r, lam = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    noise, mean, std = torch.randn(5, 3, 4, 4), torch.randn(3, 4, 4), torch.rand(3, 4, 4)
    active = torch.rand(3, 4, 4) > 0.3
    z = restrict(r, lam, noise, mean, std, active)
    one = (lam[1] * r[1] + (1 - lam[1]) * (mean + std * noise[4])) * active
    assert z.shape == (2, 5, 3, 4, 4)
    torch.testing.assert_close(z[1, 4], one)
    centre, spread = restricted_moments(r, lam, mean, std, active)
    torch.testing.assert_close(z[1, 4], centre[1] + spread[1] * noise[4])
    double = restrict(r.double(), lam.double(), noise, mean, std, active)  # statistics are float32
    torch.testing.assert_close(double.float(), z)


@pytest.mark.parametrize("size", [32, (24, 31), 8])
def test_bits_keep_their_total(size):
    nats = torch.rand(3, 5, 8, 8) ** 6
    nats[1] = 0
    bits = to_bits(nats, size)
    assert bits.shape == (3, *((size, size) if isinstance(size, int) else size))
    torch.testing.assert_close(bits.sum((1, 2)), nats.sum((1, 2, 3)) / np.log(2))
    assert (bits >= 0).all()
    assert not bits[1].any()


# --- what it gives ---------------------------------------------------------------------------


def test_information_fits_together(trained):
    model, layer, stats, images, targets = trained
    iba = InformationBottleneck(model, layer, stats, beta=1.0)
    info = iba(images[:4], targets[:4], keep_steps=True)
    shape = (4, *stats.mean.shape)
    for part in (info.nats, info.alpha, info.lambda_, info.features, info.published_nats):
        assert part.shape == shape
        assert not part.requires_grad
    assert (info.nats >= 0).all()
    assert info.history.shape == (11, *shape)
    for row, alpha in zip(info.trace.information, info.history, strict=True):
        _, nats = measure(info.features, alpha, stats, 1.0)
        torch.testing.assert_close(row, nats.sum((1, 2, 3)))
    _, nats = measure(info.features, info.alpha, stats, 1.0)
    torch.testing.assert_close(info.nats, nats.clamp(min=0))
    torch.testing.assert_close(info.features, run_until(model, layer, images[:4]).detach())
    loss = info.trace.cross_entropy + info.trace.information / stats.mean.numel()
    torch.testing.assert_close(info.trace.loss, loss)
    p = model(images[:4]).softmax(1).detach()[range(4), targets[:4]]
    torch.testing.assert_close(info.open_probability, p)
    assert ((info.probability > 0) & (info.probability < 1)).all()
    torch.testing.assert_close(info.bits(24), to_bits(info.nats, 24))


def test_history_is_kept_only_when_asked_for(trained):
    model, layer, stats, images, targets = trained
    info = InformationBottleneck(model, layer, stats, steps=1)(images[:1], targets[:1])
    assert info.history is None


def test_settled_compares_the_last_two_totals(trained):
    model, layer, stats, images, targets = trained
    short = InformationBottleneck(model, layer, stats, steps=2)(images[:2], targets[:2])
    still = InformationBottleneck(model, layer, stats, steps=2, lr=1e-4)(images[:2], targets[:2])
    assert not short.settled.any()
    assert still.settled.all()


def test_finite_after_500_steps(trained):
    model, layer, stats, images, targets = trained
    iba = InformationBottleneck(
        model, layer, stats, beta=0, steps=500, samples=1, initial_alpha=20.0
    )
    info = iba(images[:1], targets[:1])
    assert (info.lambda_ == 1).any()  # where ln (1 − λ) would be infinite
    for part in (info.nats, info.alpha, info.lambda_, info.published_nats, info.trace.loss):
        assert torch.isfinite(part).all()


def test_a_saturated_start_closes_again(trained):
    model, layer, stats, images, targets = trained
    iba = InformationBottleneck(model, layer, stats, steps=20, initial_alpha=30.0)
    info = iba(images[:1], targets[:1])
    assert info.trace.information[-1] < 0.6 * info.trace.information[0]


def test_more_beta_fewer_nats(trained):
    model, layer, stats, images, targets = trained
    totals = [
        InformationBottleneck(model, layer, stats, beta=beta)(images[:8], targets[:8])
        .nats.sum((1, 2, 3))
        .mean()
        for beta in (0.1, 1.0, 10.0, 100.0)
    ]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] > 10 * totals[-1]


@pytest.mark.parametrize("several", [False, True])
def test_beta_of_each_image_keeps_its_class(several):
    wb = riba.load()
    images = torch.stack([wb.test[i].image for i in (3, 9)])
    targets = [wb.test[i].label for i in (3, 9)]
    layers = wb.depths[:2] if several else wb.layer
    stats = [wb.statistics_at(x) for x in layers] if several else wb.statistics

    def find(beta, part=slice(None)):
        iba = InformationBottleneck(wb.model, layers, stats, beta=beta)
        info = iba(images[part], targets[part])
        return info.shallowest if several else info

    found = find("auto")
    least = 0.9 * found.open_probability
    assert (found.probability >= least).all()
    assert found.beta.unique().numel() > 1
    for i, beta in enumerate(found.beta.tolist()):
        part = slice(i, i + 1)
        assert find("auto", part).beta.item() == pytest.approx(beta, rel=1e-3)
        torch.testing.assert_close(find(beta, part).nats[0], found.nats[i], rtol=1e-2, atol=1e-3)
        assert find(1.2 * beta, part).probability < least[i]  # seven halvings leave 6 %


def test_images_that_lose_their_class_at_any_beta_are_told_of(trained):
    model, layer, stats, images, targets = trained
    shut = InformationBottleneck(model, layer, stats, beta="auto", initial_alpha=-9.0, steps=1)
    with pytest.warns(UserWarning, match="of 8 lose their class even at β 0.1"):
        info = shut(images[:8], targets[:8])
    assert info.beta.min().item() == pytest.approx(0.1)


def test_same_seed_and_batch_give_the_same_bits(trained):
    model, layer, stats, images, targets = trained
    first, again, other = (
        InformationBottleneck(model, layer, stats, seed=seed)(images[:3], targets[:3]).nats
        for seed in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("chunk", [None, 3])
def test_alone_or_anywhere_in_a_batch(trained, chunk):
    model, layer, stats, images, targets = trained
    together = InformationBottleneck(model, layer, stats, chunk=chunk)(images[:16], targets[:16])
    for i in (0, 7, 15):
        alone = InformationBottleneck(model, layer, stats)(images[i : i + 1], targets[i : i + 1])
        a, b = alone.nats[0].flatten(), together.nats[i].flatten()
        torch.testing.assert_close(a.sum(), b.sum(), rtol=1e-3, atol=0)
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] >= 0.999


@pytest.mark.parametrize(("samples", "antithetic"), [(4, False), (4, True), (3, True), (1, True)])
def test_the_seed_draws_the_same_noise_as_replayed(trained, samples, antithetic):
    model, layer, stats, images, targets = trained
    settings = {"steps": 3, "samples": samples, "antithetic": antithetic, "seed": 5}
    iba = InformationBottleneck(model, layer, stats, **settings)
    generator = torch.Generator().manual_seed(5)
    shape = ((samples + 1) // 2 if antithetic else samples, *stats.mean.shape)
    noise = torch.stack([torch.randn(shape, generator=generator) for _ in range(3)])
    if antithetic:  # an odd copy has no partner
        noise = torch.cat([noise, -noise], 1)[:, :samples]
    drawn, replayed = iba(images[:2], targets[:2]), iba(images[:2], targets[:2], noise)
    assert torch.equal(drawn.alpha, replayed.alpha)


def test_antithetic_copies_are_closer_to_the_limit_than_as_many_independent_ones():
    wb = riba.load()
    images = torch.stack([wb.validation[index].image for index in range(4)])
    targets = [wb.validation[index].label for index in range(4)]

    def maps(**settings):
        iba = InformationBottleneck(wb.model, wb.layer, wb.statistics, **settings)
        return iba(images, targets).nats.sum(1).flatten(1)

    limit = maps(samples=60, seed=0)

    def distance(**settings):
        found = [maps(samples=4, seed=seed, **settings) for seed in (1, 2, 3)]
        pairs = [torch.stack([a, b]) for m in found for a, b in zip(m, limit, strict=True)]
        return 1 - sum(torch.corrcoef(pair)[0, 1] for pair in pairs) / len(pairs)

    assert distance(antithetic=True) < 0.6 * distance(antithetic=False)


def test_a_set_of_classes_counts_together(trained):
    model, layer, stats, images, targets = trained
    noise = torch.randn(4, 3, *stats.mean.shape)
    iba = InformationBottleneck(model, layer, stats, steps=4, samples=3, lr=0.5, beta=2.0)
    chosen = torch.zeros(2, 5, dtype=torch.bool)
    chosen[0, [1, 3]] = True
    chosen[1, targets[1]] = True
    info = iba(images[:2], chosen, noise)
    r = run_until(model, layer, images[:2]).detach()
    tail = model[int(layer) + 1 :]
    _, nats = slow_iba(tail, r[0], [1, 3], stats, noise, beta=2.0, lr=0.5)
    torch.testing.assert_close(info.nats[0], nats, rtol=1e-3, atol=1e-3)
    single = iba(images[:2], targets[:2], noise)
    torch.testing.assert_close(info.nats[1], single.nats[1], rtol=1e-3, atol=1e-3)


# --- cutting the network ---------------------------------------------------------------------


def test_a_skip_connection_past_the_bottleneck(residual):
    model, stats, images = residual
    assert not explicit(model, ["inner"], images).reason
    noise = torch.randn(5, 3, *stats.mean.shape)
    iba = InformationBottleneck(model, "inner", stats, steps=5, samples=3, lr=0.5, beta=0.5)
    info = iba(images[:3], [0, 1, 2], noise)
    with torch.no_grad():
        skip = model.stem(images[2:3])
        r = model.inner(skip)[0]
    _, nats = slow_iba(lambda z: model.rest(skip, z), r, [2], stats, noise, beta=0.5, lr=0.5)
    torch.testing.assert_close(info.nats[2], nats, rtol=1e-3, atol=1e-3)


def test_hook_and_traced_paths_agree(trained, monkeypatch):
    model, layer, stats, images, targets = trained
    traced = InformationBottleneck(model, layer, stats)(images[:3], targets[:3])
    monkeypatch.setattr(explicit_module, "_traced", None)
    with pytest.warns(UserWarning, match="cannot be traced"):
        hooked = InformationBottleneck(model, layer, stats)(images[:3], targets[:3])
    torch.testing.assert_close(traced.nats, hooked.nats, rtol=1e-3, atol=1e-3)


def test_a_container_of_a_torchvision_network():
    torch.manual_seed(0)
    model, images = resnet18(weights=None).eval(), torch.randn(4, 3, 64, 64)
    stats = FeatureStatistics.fit(model, "layer2", images)
    info = InformationBottleneck(model, "layer2", stats, steps=2, samples=2)(images[:2], [3, 999])
    assert info.nats.shape == (2, 128, 8, 8)
    assert torch.isfinite(info.nats).all()
    assert info.nats.sum() > 0


def test_in_place_relu_behind_the_layer_spares_the_features():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 3)
    model, images = nn.Sequential(*layers).eval(), torch.randn(20, 3, 8, 8)
    stats = FeatureStatistics.fit(model, "0", images)
    info = InformationBottleneck(model, "0", stats, steps=2)(images[:2], [0, 1])
    torch.testing.assert_close(info.features, model[0](images[:2]).detach())
    assert (info.features < 0).any()


def test_halves_the_chunk_when_memory_runs_out(trained, monkeypatch):
    model, layer, stats, images, targets = trained
    iba = InformationBottleneck(model, layer, stats, steps=2, samples=4)
    expected = iba(images[:7], targets[:7]).nats
    net, seen = iba.explicit(images), []
    head, tail = net.parts

    def small(z):
        seen.append(len(z))
        if len(z) > 8:
            raise torch.OutOfMemoryError("no room")
        return tail(z)

    monkeypatch.setattr(net, "parts", (head, small))
    torch.testing.assert_close(iba(images[:7], targets[:7]).nats, expected, rtol=1e-3, atol=1e-3)
    assert max(seen) > 8
    assert seen[-1] <= 8

    def full(z):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(net, "parts", (head, full))
    with pytest.raises(torch.OutOfMemoryError):
        iba(images[:7], targets[:7])


# --- what it leaves alone --------------------------------------------------------------------


def traces(model, images):
    """Whatever a careless method could leave behind in a network."""
    return (
        copy.deepcopy(model.state_dict()),
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()],
        model(images).detach(),
        torch.get_rng_state(),
    )


def assert_untouched(before, after):
    assert before[1:3] == after[1:3]
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert torch.equal(before[3], after[3])
    assert torch.equal(before[4], after[4])


@pytest.mark.parametrize("layer", ["stem", "inner"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_the_network_stays_untouched(residual, layer, interrupted):
    original, _, images = residual
    model = copy.deepcopy(original)
    model.stem.bias.requires_grad_(False)
    stats = FeatureStatistics.fit(model, layer, images)
    iba = InformationBottleneck(model, layer, stats, steps=4)
    calls = 0

    def interrupt(*_):
        nonlocal calls
        calls += 1
        if interrupted and calls == 4:
            raise KeyboardInterrupt

    before = traces(model, images[:2])
    if interrupted:
        with pytest.raises(KeyboardInterrupt), progress.watched(interrupt):
            iba(images[:2], [0, 1])
        assert calls == 4
    else:
        iba(images[:2], [0, 1])
    assert_untouched(before, traces(model, images[:2]))


def test_works_inside_no_grad(trained):
    model, layer, stats, images, targets = trained
    iba = InformationBottleneck(model, layer, stats, steps=2)
    expected = iba(images[:1], targets[:1]).nats
    with torch.no_grad():
        assert torch.equal(iba(images[:1], targets[:1]).nats, expected)


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"beta": -1},
        {"beta": float("nan")},
        {"beta": "automatic"},
        {"steps": 0},
        {"samples": 0},
        {"lr": 0},
        {"lr": -1.0},
        {"sigma": -0.5},
        {"initial_alpha": float("inf")},
        {"chunk": 0},
        {"precision": "bf16"},
        {"precision": torch.float64},
    ],
    ids=str,
)
def test_parameters_out_of_range(trained, bad):
    model, layer, stats, *_ = trained
    (name,) = bad
    with pytest.raises(ValueError, match=f"^{name} must be"):
        InformationBottleneck(model, layer, stats, **bad)


def test_statistics_must_be_there_and_fit(trained):
    model, layer, stats, images, targets = trained
    with pytest.raises(ValueError, match="no statistics: fit them first"):
        InformationBottleneck(model, layer, None)
    with pytest.raises(ValueError, match="of layer '4', not of '3'"):
        InformationBottleneck(model, "3", stats)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].bias += 1
    with pytest.raises(ValueError, match="another network"):
        InformationBottleneck(other, layer, stats)
    with pytest.raises(ValueError, match="wrong size for the statistics"):
        InformationBottleneck(model, layer, stats)(images[:1, :, :16, :16], targets[:1])


def test_a_bottleneck_that_has_run_can_be_copied(trained):
    model, layer, stats, images, targets = trained
    iba = InformationBottleneck(model, layer, stats, steps=1, samples=1)
    nats = iba(images[:1], targets[:1]).nats
    for twin in (copy.deepcopy(iba), pickle.loads(pickle.dumps(iba))):
        assert torch.equal(twin(images[:1], targets[:1]).nats, nats)


def test_layers_and_statistics_must_be_of_one_kind(trained):
    model, layer, stats, *_ = trained
    for layers, statistics in (([layer], stats), (layer, [stats])):
        with pytest.raises(ValueError, match="a layer with its statistics, or one or more"):
            InformationBottleneck(model, layers, statistics)


def test_noise_of_another_shape(trained):
    model, layer, stats, images, targets = trained
    iba = InformationBottleneck(model, layer, stats)
    with pytest.raises(ValueError, match="10×6×12×12×12, got 9×6×12×12×12"):
        iba(images[:1], targets[:1], torch.zeros(9, 6, 12, 12, 12))


def test_images_and_targets_are_checked(trained):
    model, layer, stats, images, targets = trained
    iba = InformationBottleneck(model, layer, stats)
    with pytest.raises(ValueError, match="0–255"):
        iba(images[:1] * 100, targets[:1])
    with pytest.raises(ValueError, match="class 5 is out of range"):
        iba(images[:1], [5])
    with pytest.raises(ValueError, match="one target an image"):
        iba(images[:2], targets[:1])
    with pytest.raises(ValueError, match="training mode"):
        InformationBottleneck(copy.deepcopy(model).train(), layer, stats)(images[:1], targets[:1])
