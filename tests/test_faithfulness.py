"""Faithfulness metrics on networks so small that every number can be told beforehand."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from riba.compare import metrics
from riba.compare.metrics import (
    FAITHFULNESS,
    degradation,
    deletion,
    faithfulness,
    insertion,
    sensitivity_n,
)

HEIGHT, WIDTH = 16, 24
PIXELS = HEIGHT * WIDTH
TARGETS = [0, 2, 1]

every = pytest.mark.parametrize("metric", FAITHFULNESS.values(), ids=FAITHFULNESS)
walks = pytest.mark.parametrize("metric", [insertion, deletion], ids=["insertion", "deletion"])


class Weighted(nn.Module):
    """Logits linear in the pixels, one weight for every class, channel and pixel."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight.double())

    def forward(self, images):
        return torch.einsum("bchw,kchw->bk", images, self.weight)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def linear(classes=3, height=HEIGHT, width=WIDTH):
    return Weighted(normal(classes, 3, height, width, seed=1) / 10).eval()


def convolution():
    torch.manual_seed(0)
    head = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*head, nn.Linear(6, 3)).double().eval()
    model[-1].weight.data *= 8  # or every probability is a third
    return model


networks = pytest.mark.parametrize("build", [linear, convolution])


@pytest.fixture
def images():
    return normal(3, 3, HEIGHT, WIDTH, seed=2)


@pytest.fixture
def maps():
    return normal(3, HEIGHT, WIDTH, seed=3)


def spot(logit, y, x, side=12):
    """Two classes; the first has ``logit`` times red at one pixel, the second nothing."""
    weight = torch.zeros(2, 3, side, side)
    weight[0, 0, y, x] = logit
    return Weighted(weight).eval()


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class Watched(nn.Module):
    """Keeps the batches that a network was shown, and what it said."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen, self.said = model.eval(), [], []
        self.eval()

    def forward(self, images):
        logits = self.model(images)
        self.seen.append(images.clone())
        self.said.append(logits)
        return logits


# --- slow twins ----------------------------------------------------------------------------------


def places(values):
    """Coordinates of a 2-d map without ties, the largest value first."""
    height, width = values.shape
    grid = itertools.product(range(height), range(width))
    return sorted(grid, key=lambda at: values[at].item(), reverse=True)


def probability(model, image, target):
    with torch.no_grad():
        return model(image[None]).softmax(1)[0, target].item()


def area(scores):
    return (sum(scores) - (scores[0] + scores[-1]) / 2) / (len(scores) - 1)


def slow_walk(model, target, start, end, order, steps):
    """The class probability while the places of ``order`` go from ``start`` to ``end``."""
    scores = []
    for step in range(steps + 1):
        image = start.clone()
        for rank, (y, x) in enumerate(order):
            if rank * steps < step * len(order):
                image[:, y, x] = end[:, y, x]
        scores.append(probability(model, image, target))
    return area(scores)


def slow_insertion(model, image, target, values, steps):
    blurred = gaussian_filter(image.numpy(), (0, 5, 5), mode="mirror", radius=(0, 10, 10))
    return slow_walk(model, target, torch.from_numpy(blurred), image, places(values), steps)


def slow_deletion(model, image, target, values, steps):
    return slow_walk(model, target, image, torch.zeros_like(image), places(values), steps)


def slow_degradation(model, image, target, values, steps, tile):
    tiles = values.unfold(0, tile, tile).unfold(1, tile, tile).mean((2, 3))
    areas = []
    for order in (places(tiles), places(-tiles)):
        scores = []
        for step in range(steps + 1):
            grey = image.clone()
            for rank, (y, x) in enumerate(order):
                if rank * steps < step * len(order):
                    grey[:, y * tile : (y + 1) * tile, x * tile : (x + 1) * tile] = 0
            scores.append(probability(model, grey, target))
        areas.append(area(scores))
    most_first, least_first = areas
    return least_first - most_first


@networks
@pytest.mark.parametrize("steps", [1, 7, 20])
@pytest.mark.parametrize(
    ("metric", "slow"), [(insertion, slow_insertion), (deletion, slow_deletion)]
)
def test_walks_against_a_slow_twin(metric, slow, steps, build, images, maps):
    model = build()
    scores = metric(model, images, TARGETS, maps, steps=steps)
    rows = zip(images, TARGETS, maps, strict=True)
    assert scores.tolist() == pytest.approx([slow(model, *row, steps) for row in rows])


@networks
@pytest.mark.parametrize(("steps", "tile"), [(6, 8), (20, 4), (5, 2), (1, 8)])
def test_degradation_against_a_slow_twin(steps, tile, build, images, maps):
    model = build()
    scores = degradation(model, images, TARGETS, maps, steps=steps, tile=tile)
    rows = zip(images, TARGETS, maps, strict=True)
    slow = [slow_degradation(model, *row, steps, tile) for row in rows]
    assert scores.tolist() == pytest.approx(slow)


@networks
def test_sensitivity_against_what_the_network_was_shown(build, images, maps):
    watched, images = Watched(build()), images.sign()  # no pixel is grey by itself
    shares = [0.001, 0.1, 0.5]  # the first is less than a pixel
    score = sensitivity_n(watched, images, TARGETS, maps, shares=shares, subsets=13)
    whole, *rest = zip(watched.seen, watched.said, strict=True)
    assert torch.equal(whole[0], images)
    assert len(rest) == 3 * 13
    correlations, subsets = [], set()
    for share, start in zip(shares, range(0, 39, 13), strict=True):
        relevance, drops = [], []
        for shown, logits in rest[start : start + 13]:
            holes = (shown == 0).all(1)
            assert torch.equal(shown, images * ~holes[:, None])
            assert (holes == holes[0]).all()
            assert holes[0].sum() == max(1, round(share * PIXELS))
            subsets.add(tuple(holes[0].flatten().tolist()))
            relevance.append((maps * holes).sum((1, 2)).numpy())
            drops.append((whole[1] - logits)[range(3), TARGETS].detach().numpy())
        pairs = zip(np.array(relevance).T, np.array(drops).T, strict=True)
        correlations.append([np.corrcoef(a, b)[0, 1] for a, b in pairs])
    assert len(subsets) == 39
    assert score.tolist() == pytest.approx(np.mean(correlations, axis=0).tolist())


# --- by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1, 30, 143])
def test_one_pixel_matters_by_hand(rank):
    model, image = spot(1, 3, 5), torch.full((1, 3, 12, 12), -1.0, dtype=torch.float64)
    image[0, 0, 3, 5] = 2
    values = normal(1, 12, 12, seed=4)
    there = places(values[0])[rank]
    values[0, 3, 5], values[0][there] = values[0][there].clone(), values[0, 3, 5].clone()

    with_it, without = sigmoid(2), 0.5
    scores = [with_it] * (rank + 1) + [without] * (144 - rank)
    got = deletion(model, image, [0], values, steps=144).item()
    assert got == pytest.approx(area(scores))
    assert deletion(model, image, [1], values, steps=144).item() == pytest.approx(1 - got)

    # the blur leaves −1 + 3 · (the middle of the Gaussian, and what the edges at 3 and 5 mirror)
    kernel = [math.exp(-((i / 5) ** 2) / 2) for i in range(-10, 11)]
    total = sum(kernel)
    weight_y = (kernel[10] + kernel[10 + 6]) / total  # row 3 again at −3, six away
    weight_x = (kernel[10] + kernel[10 + 10]) / total  # column 5 again at −5, ten away
    blurred = -1 + 3 * weight_y * weight_x
    scores = [sigmoid(blurred)] * (rank + 1) + [with_it] * (144 - rank)
    assert insertion(model, image, [0], values, steps=144).item() == pytest.approx(area(scores))


def test_degradation_by_hand():
    weight = torch.zeros(2, 3, 16, 16)
    for logit, rows, columns in [(3, 0, 0), (2, 0, 8), (1, 8, 0)]:  # and nothing at 8, 8
        weight[0, :, rows : rows + 8, columns : columns + 8] = logit / (3 * 64)
    model, image = Weighted(weight).eval(), torch.ones(1, 3, 16, 16, dtype=torch.float64)
    tiles = torch.kron(torch.tensor([[4.0, 3.0], [2.0, 1.0]]), torch.ones(8, 8))
    best = area([sigmoid(x) for x in (6, 6, 5, 3, 0)]) - area([sigmoid(x) for x in (6, 3, 1, 0, 0)])
    assert degradation(model, image, [0], tiles[None], steps=4).item() == pytest.approx(best)
    assert degradation(model, image, [1], tiles[None], steps=4).item() == pytest.approx(-best)
    # only the mean of a tile counts, not what its pixels hold
    noise = normal(2, 2, 8, 8, seed=5)
    noise -= noise.mean((2, 3), keepdim=True)
    noisy = tiles + 50 * noise.permute(0, 2, 1, 3).reshape(16, 16)
    assert degradation(model, image, [0], noisy[None], steps=4).item() == pytest.approx(best)
    # steps of half a tile: a tile goes grey with the first of its pixels
    halves = area([sigmoid(x) for x in (6, 6, 6, 5, 5, 3, 3, 0, 0)])
    halves -= area([sigmoid(x) for x in (6, 3, 3, 1, 1, 0, 0, 0, 0)])
    assert degradation(model, image, [0], tiles[None], steps=8).item() == pytest.approx(halves)


def test_sensitivity_of_a_linear_network_by_hand(images):
    model = linear()
    exact = (images * model.weight.detach()[TARGETS]).sum(1)
    for scale, score in [(1, 1), (-1, -1), (100, 1), (1e-5, 1)]:
        got = sensitivity_n(model, images, TARGETS, scale * exact)
        assert got.tolist() == pytest.approx([score] * 3)
    # all subsets hold as many pixels: a constant more or less per pixel changes nothing
    assert sensitivity_n(model, images, TARGETS, exact + 7).tolist() == pytest.approx([1] * 3)


@pytest.mark.parametrize("constant", [0.0, 1.0, -0.1, 1e3])
def test_sensitivity_of_a_constant_map_is_none(constant, images):
    maps = torch.full((3, HEIGHT, WIDTH), constant)
    assert sensitivity_n(linear(), images, TARGETS, maps).tolist() == [0, 0, 0]


def test_sensitivity_of_a_network_that_does_not_look_is_none(images, maps):
    blind = Weighted(torch.zeros(3, 3, HEIGHT, WIDTH)).eval()
    assert sensitivity_n(blind, images, TARGETS, maps).tolist() == [0, 0, 0]


def test_sensitivity_ignores_the_unit_of_the_map(images):
    model = linear()
    exact = (images * model.weight.detach()[TARGETS]).sum(1)
    assert sensitivity_n(model, images, TARGETS, 1e-13 * exact).tolist() == pytest.approx([1] * 3)
    huge = torch.full((3, HEIGHT, WIDTH), 1e9 / 3, dtype=torch.float64)
    assert sensitivity_n(model, images, TARGETS, huge).tolist() == [0, 0, 0]


# --- good and bad maps ---------------------------------------------------------------------------


def rivals(images):
    """Random maps of every image, to be beaten."""
    return [normal(len(images), *images.shape[2:], seed=seed) for seed in range(10, 15)]


def test_no_order_beats_the_exact_one(images):
    model = linear(classes=2)
    prefers = (model.weight[0] - model.weight[1]).detach()
    blurred = torch.from_numpy(
        gaussian_filter(images.numpy(), (0, 0, 5, 5), mode="mirror", radius=(0, 0, 10, 10))
    )
    gain, loss = ((images - blurred) * prefers).sum(1), (images * prefers).sum(1)
    first = [0, 0, 0]
    for other in rivals(images):
        # the most of the logit that any so many pixels can bring or take, at every step
        assert (
            insertion(model, images, first, gain) > insertion(model, images, first, other)
        ).all()
        assert (
            insertion(model, images, first, -gain) < insertion(model, images, first, other)
        ).all()
        assert (deletion(model, images, first, loss) < deletion(model, images, first, other)).all()
        assert (deletion(model, images, first, -loss) > deletion(model, images, first, other)).all()
        between = degradation(model, images, first, other, tile=4)
        assert (degradation(model, images, first, loss, tile=4) > between).all()
        assert (degradation(model, images, first, -loss, tile=4) < between).all()
        assert (sensitivity_n(model, images, first, other).abs() < 0.5).all()


def test_degradation_of_the_negated_map_is_its_negative(images, maps):
    for model in (linear(), convolution()):
        score = degradation(model, images, TARGETS, maps)
        assert (score.abs() > 1e-6).all()
        assert torch.equal(degradation(model, images, TARGETS, -maps), -score)


def test_degradation_of_a_constant_map_is_none(images):
    constant = torch.full((3, HEIGHT, WIDTH), 0.3)
    assert degradation(linear(), images, TARGETS, constant).tolist() == [0, 0, 0]


@walks
def test_only_the_order_of_the_pixels_counts(metric, images, maps):
    score = metric(linear(), images, TARGETS, maps)
    for same in (maps.exp(), maps**3, 1e-9 * maps - 1):
        assert torch.equal(metric(linear(), images, TARGETS, same), score)


# --- classes -------------------------------------------------------------------------------------


@every
def test_a_set_of_one_class_is_that_class(metric, images, maps):
    rows = torch.tensor(TARGETS)[:, None] == torch.arange(3)
    score = metric(linear(), images, TARGETS, maps)
    torch.testing.assert_close(metric(linear(), images, rows, maps), score)
    assert torch.equal(metric(linear(), images, torch.tensor(TARGETS), maps), score)


def test_probabilities_of_a_set_add_up_and_of_all_classes_are_one(images, maps):
    model = linear()
    pair = torch.tensor([True, False, True]).expand(3, 3)
    for metric in (insertion, deletion, degradation):
        apart = metric(model, images, [0] * 3, maps) + metric(model, images, [2] * 3, maps)
        torch.testing.assert_close(metric(model, images, pair, maps), apart)
    everything = torch.ones(3, 3, dtype=torch.bool)
    for metric, certain in [(insertion, 1), (deletion, 1), (degradation, 0)]:
        score = metric(model, images, everything, maps)
        assert score.tolist() == pytest.approx([certain] * 3, abs=1e-12)


def test_sensitivity_of_a_set_asks_for_its_logsumexp(images, maps):
    class Both(nn.Module):
        def forward(self, x):
            return linear()(x)[:, [0, 2]].logsumexp(1, keepdim=True)

    pair = torch.tensor([True, False, True]).expand(3, 3)
    expected = sensitivity_n(Both().eval(), images, [0] * 3, maps)
    torch.testing.assert_close(sensitivity_n(linear(), images, pair, maps), expected)


# --- what the network is shown -------------------------------------------------------------------


def changed(watched, images):
    """Per step, which pixels of the first image differ from it."""
    return [(seen[0] != images[0]).any(0) for seen in watched.seen]


def test_the_image_goes_grey_in_equal_parts_from_whole_to_nothing(images, maps):
    watched = Watched(linear())
    deletion(watched, images, TARGETS, maps, steps=20)
    grey = changed(watched, images)
    assert [int(g.sum()) for g in grey] == [math.ceil(PIXELS * k / 20) for k in range(21)]
    assert all((a <= b).all() for a, b in itertools.pairwise(grey))
    assert torch.equal(watched.seen[0], images)
    assert not watched.seen[-1].any()


def test_the_image_appears_out_of_its_blur(images, maps):
    watched = Watched(linear())
    insertion(watched, images, TARGETS, maps, steps=4)
    blurred = gaussian_filter(images.numpy(), (0, 0, 5, 5), mode="mirror", radius=(0, 0, 10, 10))
    torch.testing.assert_close(watched.seen[0], torch.from_numpy(blurred))
    assert torch.equal(watched.seen[-1], images)


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (HEIGHT, WIDTH),
        (12, 20),
    ],
)
def test_degradation_ends_in_grey(height, width):
    images, maps = normal(1, 3, height, width, seed=6), normal(1, height, width, seed=7)
    watched = Watched(linear(height=height, width=width))
    degradation(watched, images, [0], maps, steps=6)
    assert len(watched.seen) == 14
    for seen in (watched.seen[:7], watched.seen[7:]):
        assert torch.equal(seen[0], images)
        assert not seen[-1].any()


def test_a_cut_tile_counts_the_pixels_that_it_has():
    images = torch.ones(1, 3, 8, 12, dtype=torch.float64)
    maps = torch.ones(1, 8, 12)
    maps[:, :, 8:] = 1.5  # half a tile: less than the other in sum, more in the mean
    watched = Watched(linear(height=8, width=12))
    degradation(watched, images, [0], maps, steps=4)
    assert (watched.seen[1][0, 0] == 0).all(0).tolist() == [False] * 8 + [True] * 4


def test_equals_go_in_a_random_order_that_the_seed_fixes(images):
    maps = torch.zeros(3, HEIGHT, WIDTH)
    maps[:, 4:8] = 1  # a quarter of the image
    orders = []
    for seed in (0, 0, 1):
        watched = Watched(linear())
        deletion(watched, images, TARGETS, maps, steps=8, seed=seed)
        grey = changed(watched, images)
        assert torch.equal(grey[2], maps[0] == 1)
        assert not torch.equal(grey[1], grey[2] & (torch.arange(HEIGHT) < 6)[:, None])
        orders.append(torch.stack(grey))
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0][1], orders[2][1])
    assert not torch.equal(orders[0][5], orders[2][5])


@every
def test_the_seed_fixes_the_score_and_another_gives_another(metric, images):
    coarse = torch.zeros(3, HEIGHT, WIDTH)
    coarse[:, :8, :16] = coarse[:, 8:, 8:] = 1  # more tiles than one share either value
    a, b, c = (metric(linear(), images, TARGETS, coarse, seed=s) for s in (0, 0, 5))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(a, metric(linear(), images, TARGETS, coarse))


def test_sensitivity_asks_about_fifty_subsets_of_five_sizes(images, maps):
    watched = Watched(linear())
    sensitivity_n(watched, images, TARGETS, maps)
    assert len(watched.seen) == 1 + 5 * 50


# --- nothing is touched --------------------------------------------------------------------------


@every
@networks
def test_a_score_does_not_depend_on_the_batch_around_it(metric, build, images, maps):
    model = build()
    together = metric(model, images, TARGETS, maps)
    assert together.shape == (3,)
    for i in range(3):
        alone = metric(model, images[i : i + 1], TARGETS[i : i + 1], maps[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1])
    turned = metric(model, images.flip(0), TARGETS[::-1], maps.flip(0))
    torch.testing.assert_close(turned.flip(0), together)


@every
def test_large_batches_go_through_in_parts(metric, images, maps, monkeypatch):
    whole = metric(linear(), images, TARGETS, maps)
    monkeypatch.setattr(faithfulness, "AT_ONCE", 2)
    watched = Watched(linear())
    torch.testing.assert_close(metric(watched, images, TARGETS, maps), whole)
    assert {len(seen) for seen in watched.seen} == {2, 1}


@every
def test_images_maps_and_network_stay_as_they_were(metric, images, maps):
    model = convolution()
    before = images.clone(), maps.clone(), {k: v.clone() for k, v in model.state_dict().items()}
    score = metric(model, images, TARGETS, maps)
    assert torch.equal(images, before[0])
    assert torch.equal(maps, before[1])
    assert all(torch.equal(v, before[2][k]) for k, v in model.state_dict().items())
    assert not score.requires_grad
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@every
def test_doubles_from_single_precision(metric, images, maps):
    score = metric(convolution().float(), images.float(), TARGETS, maps.float())
    assert score.dtype == torch.float64
    expected = metric(convolution(), images, TARGETS, maps)
    torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-4)


@every
def test_the_table_holds_it_by_name(metric):
    assert metrics.FAITHFULNESS[metric.__name__] is getattr(metrics, metric.__name__)


# --- bad input -----------------------------------------------------------------------------------


@every
def test_maps_of_another_shape_are_refused(metric, images, maps):
    for wrong in (maps[:, :8], maps[:2], maps.mT, maps[:, None], maps[0]):
        with pytest.raises(ValueError, match="resize the maps to the images"):
            metric(linear(), images, TARGETS, wrong)


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_maps_that_cannot_be_ranked_are_refused(metric, bad, images, maps):
    maps[1, 3, 4] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        metric(linear(), images, TARGETS, maps)


@every
def test_targets_that_no_class_answers_to_are_refused(metric, images, maps):
    with pytest.raises(ValueError, match="out of range"):
        metric(linear(), images, [0, 1, 3], maps)
    with pytest.raises(ValueError, match="one target an image"):
        metric(linear(), images, [0, 1], maps)
    with pytest.raises(ValueError, match="selects no class"):
        metric(linear(), images, torch.zeros(3, 3, dtype=torch.bool), maps)


@pytest.mark.parametrize("metric", [insertion, deletion, degradation])
def test_images_and_networks_that_mislead_are_refused(metric, images, maps):
    with pytest.raises(ValueError, match="training mode"):
        metric(convolution().train(), images, TARGETS, maps)
    with pytest.raises(ValueError, match="looks like 0–255"):
        metric(convolution(), 100 * images, TARGETS, maps)
    with pytest.raises(ValueError, match="does not take images of 1×"):
        metric(convolution(), images[:, :1], TARGETS, maps)


def test_shares_that_leave_nothing_to_compare_are_refused(images, maps):
    for share in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="shares must lie between 0 and 1"):
            sensitivity_n(linear(), images, TARGETS, maps, shares=[share])
