"""Localisation metrics against examples worked by hand and brute force over all tie-breakings."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from riba.compare import metrics
from riba.compare.metrics import (
    LOCALISATION,
    allocation_area,
    allocation_curve,
    auroc,
    average_precision,
    best_at_stride,
    border_band,
    bounding_box_ratio,
    boxes,
    effective_heat_ratio,
    energy_pointing_game,
    iou_at_k,
    mass_accuracy,
    pointing_game,
    rank_accuracy,
    rank_skill,
    two_object_contrast,
)

FRACTIONS = [0.05, 0.2, 1 / 3, 0.5, 0.77, 1.0]
BOX = {"energy_pointing_game", "bounding_box_ratio"}


def curve(maps, masks, void=None):
    return allocation_curve(maps, masks, FRACTIONS, void)


def contrast(maps, masks, void=None):
    """Against everything that is not the object: a second object without another argument."""
    return two_object_contrast(maps, masks, ~masks, void)


RANKED = {
    "allocation_area": allocation_area,
    "allocation_curve": curve,
    "rank_accuracy": rank_accuracy,
    "rank_skill": rank_skill,
    "iou_at_k": iou_at_k,
    "pointing_game": pointing_game,
    "auroc": auroc,
    "average_precision": average_precision,
    "bounding_box_ratio": bounding_box_ratio,
}
EVERY = {**LOCALISATION, "allocation_curve": curve, "two_object_contrast": contrast}
every = pytest.mark.parametrize("name", EVERY)
with_and_without_void = pytest.mark.parametrize("hole", [False, True], ids=["whole", "void"])


def one(rows, dtype=torch.float64):
    return torch.tensor([rows], dtype=dtype)


def close(got, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def drawn(batch, side, seed, hole=False, low=0, high=4):
    """Maps full of ties, masks that neither cover nor miss everything, and void or None."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(low, high, (batch, side, side), generator=generator)
    masks = torch.rand(batch, side, side, generator=generator) > 0.6
    void = torch.rand(batch, side, side, generator=generator) > 0.75
    masks[:, 0, 0], masks[:, 1, 1] = True, False
    void[:, 0, 0] = void[:, 1, 1] = False
    return maps.double(), masks, void if hole else None


# --- slow twins ----------------------------------------------------------------------------------


def pixels(maps, masks, void):
    """Per image, the pixels that count: their values and whether they lie in the mask."""
    keep = torch.ones_like(masks) if void is None else ~void
    for values, inside, kept in zip(maps, masks, keep, strict=True):
        yield values[kept].tolist(), inside[kept].tolist()


def rankings(values, inside):
    """Hits down the ranking, for every equally likely way of breaking the ties."""
    groups = []
    for value in sorted(set(values), reverse=True):
        equals = [hit for v, hit in zip(values, inside, strict=True) if v == value]
        places = itertools.combinations(range(len(equals)), sum(equals))
        groups.append([[i in chosen for i in range(len(equals))] for chosen in places])
    return [list(itertools.chain(*parts)) for parts in itertools.product(*groups)]


def slow_area(hits):
    return sum(sum(hits[:j]) / j for j in range(1, sum(hits) + 1)) / sum(hits)


def slow_curve(hits):
    budgets = [max(1, p * len(hits)) for p in FRACTIONS]
    found = np.interp(budgets, range(len(hits) + 1), np.cumsum([0, *hits]))
    return list(found / budgets)


def slow_rank(hits):
    return sum(hits[: sum(hits)]) / sum(hits)


def slow_skill(hits):
    chance = sum(hits) / len(hits)
    return (slow_rank(hits) - chance) / (1 - chance)


def slow_pointing(hits):
    return float(hits[0])


def slow_auroc(hits):
    places = range(len(hits))
    pairs = [(a, b) for a in places for b in places if hits[a] and not hits[b]]
    return sum(a < b for a, b in pairs) / len(pairs)


def slow_precision(hits):
    return sum(sum(hits[: r + 1]) / (r + 1) for r, hit in enumerate(hits) if hit) / sum(hits)


SLOW = {
    "allocation_area": slow_area,
    "allocation_curve": slow_curve,
    "rank_accuracy": slow_rank,
    "rank_skill": slow_skill,
    "pointing_game": slow_pointing,
    "auroc": slow_auroc,
    "average_precision": slow_precision,
}


def expected(score, maps, masks, void=None):
    """``score`` of a ranking, per image the mean over every way of breaking the ties."""
    every_image = pixels(maps, masks, void)
    return [np.mean([score(h) for h in rankings(*image)], axis=0) for image in every_image]


def positive(values):
    """Positive relevance, or a constant where there is none."""
    found = [max(v, 0) for v in values]
    return found if any(found) else [1.0] * len(values)


def slow_mass(values, inside):
    heat = positive(values)
    return sum(h for h, i in zip(heat, inside, strict=True) if i) / sum(heat)


def slow_heat_ratio(values, inside):
    heat, inside = np.array(positive(values)), np.array(inside)
    heat = heat / heat.max()
    ratios = []
    for decile in range(11):
        # the authors' code lets no threshold rise above 0.99 of the maximum
        above = heat >= min(np.quantile(heat[heat >= 0.1], decile / 10), 0.99)
        ratios.append(heat[above & inside].sum() / above.sum())
    return sum((a + b) / 2 * 0.1 for a, b in itertools.pairwise(ratios))


def slow_box(mask):
    rows = [y for y, row in enumerate(mask.tolist()) if any(row)]
    columns = [x for x, column in enumerate(mask.T.tolist()) if any(column)]
    box = torch.zeros_like(mask)
    for y in range(rows[0], rows[-1] + 1):
        for x in range(columns[0], columns[-1] + 1):
            box[y, x] = True
    return box


def slow_band(mask, reach):
    band = torch.zeros_like(mask)
    height, width = mask.shape
    for y, x in itertools.product(range(height), range(width)):
        for v, u in itertools.product(range(height), range(width)):
            near = max(abs(y - v), abs(x - u)) <= reach
            band[y, x] |= near and bool(mask[v, u] != mask[y, x])
    return band


# --- by hand -------------------------------------------------------------------------------------

MASK = one([[1, 1, 0], [0, 0, 0]], torch.bool)

PERFECT = [[9, 8, 1], [0, 0, 0]]
SECOND = [[9, 1, 8], [0, 0, 0]]  # the object's other pixel comes third
WORST = [[-1, -2, 3], [4, 0, 0]]
LATE_TIE = [[5, 3, 3], [3, 0, 0]]  # one of three equals finds room
EARLY_TIE = [[3, 0, 3], [0, 0, 0]]
NOTHING = [[0, 0, 0], [0, 0, 0]]
NEGATIVE = [[-3, -3, -3], [-3, -3, -3]]


@pytest.mark.parametrize(
    ("metric", "values", "score"),
    [
        (rank_accuracy, PERFECT, 1),
        (rank_accuracy, SECOND, 1 / 2),
        (rank_accuracy, WORST, 0),
        (rank_accuracy, LATE_TIE, (1 + 1 / 3) / 2),
        (rank_accuracy, NOTHING, 1 / 3),
        (rank_accuracy, NEGATIVE, 1 / 3),
        (rank_skill, PERFECT, 1),
        (rank_skill, SECOND, (1 / 2 - 1 / 3) / (2 / 3)),
        (rank_skill, WORST, -1 / 2),
        (rank_skill, LATE_TIE, 1 / 2),
        (iou_at_k, PERFECT, 1),
        (iou_at_k, SECOND, 1 / 3),  # one pixel of both, three of either
        (iou_at_k, WORST, 0),
        (iou_at_k, LATE_TIE, (4 / 3) / (4 - 4 / 3)),
        (iou_at_k, NOTHING, (1 / 3) / (2 - 1 / 3)),
        (pointing_game, PERFECT, 1),
        (pointing_game, WORST, 0),
        (pointing_game, EARLY_TIE, 1 / 2),
        (allocation_area, PERFECT, 1),
        (allocation_area, SECOND, (1 + 1 / 2) / 2),
        (allocation_area, WORST, 0),
        (allocation_area, LATE_TIE, (1 + (1 + 1 / 3) / 2) / 2),
        (allocation_area, EARLY_TIE, (1 / 2 + 1 / 2) / 2),
        (auroc, PERFECT, 1),
        (auroc, SECOND, (4 + 3) / 8),
        (auroc, WORST, 0),
        (auroc, LATE_TIE, (4 + 2 + 2 / 2) / 8),
        (auroc, EARLY_TIE, (3 + 1 / 2 + 3 / 2) / 8),
        (average_precision, PERFECT, 1),
        (average_precision, SECOND, (1 + 2 / 3) / 2),
        (average_precision, WORST, (1 / 5 + 2 / 6) / 2),  # behind 4, 3, 0 and 0
        (average_precision, LATE_TIE, (1 + (1 + 2 / 3 + 2 / 4) / 3) / 2),
        (average_precision, EARLY_TIE, ((1 + 1 / 2) / 2 + (2 / 3 + 2 / 4 + 2 / 5 + 2 / 6) / 4) / 2),
        (mass_accuracy, PERFECT, 17 / 18),
        (mass_accuracy, SECOND, 10 / 18),
        (mass_accuracy, WORST, 0),  # negative relevance counts as none
        (mass_accuracy, [[4, -9, 1], [-2, 3, 0]], 4 / 8),
        (mass_accuracy, LATE_TIE, 8 / 14),
        (mass_accuracy, NOTHING, 1 / 3),
        (mass_accuracy, NEGATIVE, 1 / 3),
        # the deciles of 1/9, 8/9, 9/9 let three pixels through at 0, two up to 0.5, then one
        (
            effective_heat_ratio,
            PERFECT,
            0.1 * (17 / 9 / 3 / 2 + 5 * 17 / 9 / 2 + 4 + 1 / 2),
        ),
        (effective_heat_ratio, WORST, 0),
        # 0.09 is too cold to shift the deciles, which are all 1
        (effective_heat_ratio, [[1, 0.09, 1], [0.09, 0, 0]], 1 / 2),
    ],
)
def test_by_hand(metric, values, score):
    assert metric(one(values), MASK).item() == pytest.approx(score, abs=1e-12)


def test_the_curve_by_hand_and_between_whole_pixels():
    budgets = [j / 6 for j in (0.3, 1, 1.5, 2, 2.25, 3, 4, 5, 6)]
    found = [1, 1, 1, 1, 1.25, 2, 2, 2, 2]  # in the order in, out, in, out …; a pixel at least
    shares = [h / max(1, 6 * p) for h, p in zip(found, budgets, strict=True)]
    close(allocation_curve(one(SECOND), MASK, budgets), [shares])


def test_two_objects_by_hand():
    first, second = MASK, one([[0, 0, 1], [1, 1, 0]], torch.bool)
    values = one([[4, 2, 1], [-5, 0.5, 100]])
    close(two_object_contrast(values, first, second), [3 / (3 + 0.5)])
    close(two_object_contrast(values, second, first), [0.5 / (3 + 0.5)])
    close(two_object_contrast(-values, first, second), [0])
    close(two_object_contrast(one(PERFECT), second, first), [(1 / 3) / (1 / 3 + 17 / 2)])
    for constant in (0, 7, -3):
        close(two_object_contrast(torch.full_like(values, constant), first, second), [0.5])
    beside_both = one([[0, 0, 0], [0, 0, 100]])
    close(two_object_contrast(beside_both, first, second), [0.5])
    void = one([[0, 1, 1], [0, 0, 0]], torch.bool)
    close(two_object_contrast(values, first, second, void), [4 / (4 + 0.25)])


def test_objects_that_meet_only_in_the_void_do_not_overlap():
    other, void = one([[0, 1, 1], [0, 0, 0]], torch.bool), one([[0, 1, 0], [0, 0, 0]], torch.bool)
    close(two_object_contrast(one([[3, 8, 1], [0, 0, 0]]), MASK, other, void), [3 / 4])


def test_bounding_boxes_by_hand():
    mask = one([[0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], torch.bool)
    box = one([[0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], torch.bool)
    assert torch.equal(boxes(mask), box)
    values = one([[9, 1, 3, 0], [0, 2, 0, 0], [-7, 0, 0, 5], [0, 0, 0, 0]])
    close(energy_pointing_game(values, mask), [6 / 20])
    assert bounding_box_ratio(values, mask).isnan()  # six of 16 pixels
    assert bounding_box_ratio(one(PERFECT), MASK).isnan()  # a third
    third = torch.zeros(1, 5, 20, dtype=torch.bool)
    third[:, :3, :11] = True
    close(bounding_box_ratio(third.double(), third), [1])  # 33 % and no more
    small = mask.clone()
    small[0, 0, 2] = False
    small[0, 1, 2] = True
    # four of 16: 9 and 5 lie beside the box, 3 above it, and 2 in it
    close(bounding_box_ratio(values, small), [1 / 4])
    close(energy_pointing_game(values, small), [2 / 20])


def test_void_pixels_leave_the_mask_the_size_and_the_ranking():
    values, void = one([[9, 1, 8], [2, 0, 0]]), one([[1, 0, 1], [0, 0, 0]], torch.bool)
    scores = {name: metric(values, MASK, void) for name, metric in EVERY.items()}
    # K = 1 of n = 4, and 2 beats 1
    close(scores["rank_accuracy"], [0])
    close(scores["rank_skill"], [-1 / 3])
    close(scores["auroc"], [2 / 3])
    close(scores["average_precision"], [1 / 2])
    close(scores["mass_accuracy"], [1 / 3])
    close(scores["energy_pointing_game"], [1 / 3])
    close(scores["two_object_contrast"], [1 / (1 + 2 / 3)])
    nothing = torch.zeros_like(values)
    for name in ("rank_accuracy", "mass_accuracy", "pointing_game", "effective_heat_ratio"):
        close(EVERY[name](nothing, MASK, void), [1 / 4])


@every
def test_what_lies_in_the_void_does_not_matter(name):
    maps, masks, void = drawn(20, 5, 3, hole=True)
    other = torch.where(void, torch.randint_like(maps, -50, 50), maps)
    close(EVERY[name](other, masks, void), EVERY[name](maps, masks, void))
    if name not in BOX:  # a box is drawn around the object before the void is cut out
        close(EVERY[name](maps, masks & ~void, void), EVERY[name](maps, masks, void))


def test_a_void_of_nothing_is_no_void():
    maps, masks, _ = drawn(20, 5, 4)
    for metric in EVERY.values():
        close(metric(maps, masks, torch.zeros_like(masks)), metric(maps, masks))


# --- brute force ---------------------------------------------------------------------------------


@with_and_without_void
@pytest.mark.parametrize("name", SLOW)
def test_ties_count_as_the_mean_over_every_way_of_breaking_them(name, hole):
    sample = drawn(40, 3, 0, hole)
    close(EVERY[name](*sample), np.array(expected(SLOW[name], *sample)))


@with_and_without_void
def test_iou_is_that_of_the_expected_intersection(hole):
    sample = drawn(40, 3, 1, hole)
    sizes = [sum(inside) for _, inside in pixels(*sample)]
    both = [a * k for a, k in zip(expected(slow_rank, *sample), sizes, strict=True)]
    close(iou_at_k(*sample), [b / (2 * k - b) for b, k in zip(both, sizes, strict=True)])


@with_and_without_void
@pytest.mark.parametrize("low", [-2, 0])
def test_mass_against_a_slow_twin(low, hole):
    sample = drawn(60, 4, 5, hole, low)
    sample[0][0] *= -1
    close(mass_accuracy(*sample), [slow_mass(*image) for image in pixels(*sample)])


@with_and_without_void
@pytest.mark.parametrize("low", [-2, 0])
def test_heat_ratio_of_ties_against_a_slow_twin(low, hole):
    sample = drawn(200, 4, 5, hole, low)
    sample[0][0] *= -1
    slow = [slow_heat_ratio(*image) for image in pixels(*sample)]
    close(effective_heat_ratio(*sample), slow)


@with_and_without_void
def test_heat_ratio_of_smooth_maps_against_a_slow_twin(hole):
    _, masks, void = drawn(30, 9, 6, hole)
    maps = torch.randn(30, 9, 9, generator=torch.Generator().manual_seed(6)).double()
    maps[10:20] = maps[10:20].exp()  # most of it below 0.1 of the maximum
    maps[20:] = maps[20:].sigmoid() ** 0.01  # all of it close to the maximum
    slow = [slow_heat_ratio(*image) for image in pixels(maps, masks, void)]
    close(effective_heat_ratio(maps, masks, void), slow)


@with_and_without_void
def test_two_objects_against_a_slow_twin(hole):
    maps, masks, void = drawn(60, 4, 7, hole, -3, 3)
    others = ~masks & (torch.rand(masks.shape, generator=torch.Generator().manual_seed(8)) > 0.4)
    others[:, 1, 1] = True
    scores = []
    mine, theirs = pixels(maps, masks, void), pixels(maps, others, void)
    for (values, inside), (_, beside) in zip(mine, theirs, strict=True):
        a = np.mean([max(v, 0) for v, hit in zip(values, inside, strict=True) if hit])
        b = np.mean([max(v, 0) for v, hit in zip(values, beside, strict=True) if hit])
        scores.append(a / (a + b) if a + b else 0.5)
    assert 0.5 in scores
    close(two_object_contrast(maps, masks, others, void), scores)


def sparse(batch, side, seed):
    """Masks of a few pixels each, so that their boxes differ in size and place."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(batch, side, side, generator=generator) > 0.85
    masks[range(batch), torch.randint(side, (batch,), generator=generator), 2] = True
    return masks


def test_boxes_against_a_slow_twin():
    masks = sparse(60, 5, 9)
    assert torch.equal(boxes(masks), torch.stack([slow_box(mask) for mask in masks]))
    assert not boxes(torch.zeros(1, 4, 4, dtype=torch.bool)).any()


@with_and_without_void
def test_box_metrics_are_those_of_the_box(hole):
    maps, _, void = drawn(60, 5, 10, hole, -2, 4)
    masks = sparse(60, 5, 10)
    if hole:
        void &= ~masks
    box = torch.stack([slow_box(mask) for mask in masks])
    small = box.sum((1, 2)) <= 8  # 33 % of 25 pixels
    assert 0 < small.sum() < 60
    energy = [slow_mass(*image) for image in pixels(maps, box, void)]
    close(energy_pointing_game(maps, masks, void), energy)
    void = void if void is None else void[small]
    ranked = expected(slow_rank, maps[small], box[small], void)
    close(bounding_box_ratio(maps[small], masks[small], void), np.array(ranked))
    assert bounding_box_ratio(maps[~small], masks[~small]).isnan().all()


@pytest.mark.parametrize(("share", "reach"), [(0.01, 1), (0.15, 1), (0.2, 2), (0.375, 3)])
def test_border_band_against_a_slow_twin(share, reach):
    masks = torch.rand(6, 6, 8, generator=torch.Generator().manual_seed(11)) > 0.8
    masks[0], masks[1], masks[2] = False, True, False
    masks[2, :, :3] = True
    band = border_band(masks, share)
    assert torch.equal(band, torch.stack([slow_band(mask, reach) for mask in masks]))
    # the image's own edge is no contour, and a contour counts on both of its sides
    assert not band[:2].any()
    assert band[2, 0].tolist() == [3 - reach <= x < 3 + reach for x in range(8)]
    assert torch.equal(border_band(~masks, share), band)


def test_the_band_widens_with_the_image():
    for width, reach in [(8, 1), (149, 1), (160, 2), (224, 2), (500, 5)]:
        masks = torch.zeros(1, 4, width, dtype=torch.bool)
        masks[:, :, width // 2 :] = True
        assert border_band(masks).sum() == 4 * 2 * reach


# --- oracle and chance ---------------------------------------------------------------------------


def rectangles():
    """Objects that are their own boxes, small enough for either box metric."""
    masks = torch.zeros(3, 10, 12, dtype=torch.bool)
    masks[0, 2:6, 3:9] = masks[1, :, :2] = masks[2, 9, 11] = True
    return masks


@pytest.mark.parametrize("name", [*LOCALISATION, "two_object_contrast"])
def test_the_oracle_scores_one(name):
    masks = rectangles()
    for maps in (masks.double(), 5 * masks.double(), masks.float(), masks.long()):
        close(EVERY[name](maps, masks), [1, 1, 1])
    close(EVERY[name](masks.double(), masks, border_band(masks) & ~masks), [1, 1, 1])


@pytest.mark.parametrize("name", ["rank_accuracy", "auroc", "average_precision", "allocation_area"])
def test_every_ranking_with_the_object_on_top_is_an_oracle(name):
    masks = rectangles()
    noise = torch.rand(masks.shape, generator=torch.Generator().manual_seed(12))
    close(EVERY[name](masks + noise, masks), [1, 1, 1])
    close(EVERY[name](-(1 + noise) * ~masks, masks), [1, 1, 1])


def test_an_inverted_oracle_scores_worst():
    masks = rectangles()
    share = masks.double().mean((1, 2))
    late = [[False] * (120 - k) + [True] * k for k in masks.sum((1, 2)).tolist()]
    worst = {name: [0, 0, 0] for name in EVERY}
    worst["rank_skill"] = -share / (1 - share)
    worst["average_precision"] = [slow_precision(hits) for hits in late]
    worst["allocation_curve"] = np.array([slow_curve(hits) for hits in late])
    for name, metric in EVERY.items():
        close(metric(~masks * 1.0, masks), worst[name])


def constants(name, masks, void=None):
    """The exact chance of every metric."""
    keep = torch.ones_like(masks) if void is None else ~void
    inside, n = masks & keep, keep.sum((1, 2)).double()
    if name in BOX:
        inside = boxes(masks) & keep
    share = inside.sum((1, 2)) / n
    if name == "allocation_curve":
        return share[:, None].expand(-1, len(FRACTIONS))
    if name in ("auroc", "two_object_contrast"):
        return torch.full_like(share, 0.5)
    if name == "iou_at_k":
        return share / (2 - share)
    if name == "rank_skill":
        return torch.zeros_like(share)
    if name == "average_precision":
        sizes = zip(inside.sum((1, 2)), n, strict=True)
        return torch.stack([random_precision(int(k), int(m)) for k, m in sizes])
    if name == "bounding_box_ratio":
        return share.where(boxes(masks).double().mean((1, 2)) <= 0.33, torch.nan)
    return share


def random_precision(k, n):
    """Mean average precision over all rankings: each rank a hit, and those above by the rest."""
    others = (k - 1) / (n - 1)
    ranks = (1 + (r - 1) * others for r in range(1, n + 1))
    return torch.tensor(sum(hits / r for r, hits in enumerate(ranks, 1)) / n, dtype=torch.float64)


def test_the_chance_of_average_precision_is_the_mean_over_all_rankings():
    for k, n in [(1, 4), (2, 6), (4, 8), (7, 9)]:
        scores = [slow_precision(h) for h in rankings([0] * n, [True] * k + [False] * (n - k))]
        assert len(scores) == math.comb(n, k)
        assert random_precision(k, n).item() == pytest.approx(np.mean(scores))
        mask = (torch.arange(n) < k).reshape(1, 1, n)
        close(average_precision(torch.zeros(1, 1, n), mask), [np.mean(scores)])


@with_and_without_void
@pytest.mark.parametrize("constant", [0.0, 1.0, 0.3, -3.0])
@every
def test_a_constant_map_scores_exactly_chance(name, constant, hole):
    _, masks, void = drawn(8, 16, 13, hole)
    masks[:4] = False
    masks[:4, 2:7, 3:9] = True
    score = EVERY[name](torch.full(masks.shape, constant), masks, void)
    close(score, constants(name, masks, void))


def test_the_curve_of_an_oracle_and_its_end():
    masks = rectangles()
    share = masks.double().mean((1, 2))
    budgets = [0.001, 0.02, 0.1, 0.2, 0.7, 1.0]
    # a budget below one pixel counts one
    least = torch.tensor(budgets, dtype=torch.float64).clamp(min=1 / 120)
    best = (share[:, None] / least).clamp(max=1)
    close(allocation_curve(masks.double(), masks, budgets), best)
    noise = torch.rand(masks.shape, generator=torch.Generator().manual_seed(14))
    close(allocation_curve(noise, masks, [1.0])[:, 0], share)


def test_the_curve_is_linear_in_hits_between_whole_pixels():
    maps, masks, _ = drawn(20, 4, 15)
    low, middle, high = 5 / 16, 5.3 / 16, 6 / 16
    a = allocation_curve(maps, masks, [low, middle, high]) * torch.tensor([5, 5.3, 6]).double()
    torch.testing.assert_close(a[:, 1], 0.7 * a[:, 0] + 0.3 * a[:, 2], rtol=1e-6, atol=0)


def test_the_curve_at_the_objects_own_share_is_rank_accuracy_and_its_start_the_pointing_game():
    maps, masks, _ = drawn(20, 4, 16)
    for row in range(20):
        sample = maps[row : row + 1], masks[row : row + 1]
        share = masks[row].double().mean().item()
        found = allocation_curve(*sample, [1 / 16, share])[0]
        close(found, torch.cat([pointing_game(*sample), rank_accuracy(*sample)]))


# --- properties ----------------------------------------------------------------------------------


@with_and_without_void
@pytest.mark.parametrize("name", RANKED)
def test_rank_metrics_ignore_monotone_rescaling(name, hole):
    maps, masks, void = drawn(20, 6, 17, hole, -3, 4)
    masks[10:] = False
    masks[10:, :2, 1:4] = True  # small enough for a box
    if hole:
        void[:, 0] = False
    score = RANKED[name](maps, masks, void)
    assert not score[10:].isnan().any()
    for rescaled in (maps.exp(), maps**3, 3 * maps - 100, 1e-12 * maps, maps.float()):
        torch.testing.assert_close(
            RANKED[name](rescaled, masks, void), score, rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize(
    "metric", [mass_accuracy, effective_heat_ratio, energy_pointing_game, contrast]
)
def test_relevance_metrics_ignore_its_unit(metric):
    maps, masks, _ = drawn(20, 6, 18, low=-3)
    torch.testing.assert_close(metric(1e-9 * maps, masks), metric(maps, masks))


@with_and_without_void
@every
def test_a_score_does_not_depend_on_the_batch_around_it(name, hole):
    maps, masks, void = drawn(12, 6, 19, hole, -1, 4)
    masks[6:] = False
    masks[6:, :2, 1:4] = True
    if hole:
        void[:, 0] = False
    rows = [
        EVERY[name](maps[i : i + 1], masks[i : i + 1], None if void is None else void[i : i + 1])
        for i in range(12)
    ]
    close(EVERY[name](maps, masks, void), torch.cat(rows))


@with_and_without_void
@every
def test_where_a_pixel_lies_does_not_matter(name, hole):
    maps, masks, void = drawn(12, 6, 20, hole, -1, 4)
    score = EVERY[name](maps, masks, void)

    def moved(how):
        return EVERY[name](how(maps), how(masks), None if void is None else how(void))

    for how in (lambda x: x.flip(1), lambda x: x.flip(2), lambda x: x.mT):
        close(moved(how), score)
    if name not in BOX:  # a box is a matter of place
        shuffle = torch.randperm(36, generator=torch.Generator().manual_seed(20))
        close(moved(lambda x: x.flatten(1)[:, shuffle].view_as(x)), score)


@every
def test_one_double_an_image_whatever_the_maps_are_made_of(name):
    maps, masks, void = drawn(7, 5, 21, True)
    score = EVERY[name](maps, masks, void)
    assert score.shape == ((7, len(FRACTIONS)) if name == "allocation_curve" else (7,))
    assert score.dtype == torch.float64
    before = maps.clone(), masks.clone(), void.clone()
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.uint8):
        close(EVERY[name](maps.to(dtype), masks, void), score)
    sideways = maps.mT.contiguous().mT, masks.mT.contiguous().mT, void
    close(EVERY[name](*sideways), score)
    assert all(torch.equal(a, b) for a, b in zip(before, (maps, masks, void), strict=True))


def test_images_of_any_proportion():
    generator = torch.Generator().manual_seed(22)
    maps = torch.randint(0, 4, (10, 2, 5), generator=generator).double()
    masks = torch.rand(10, 2, 5, generator=generator) > 0.6
    masks[:, 0, 0], masks[:, 1, 1] = True, False
    for name, slow in SLOW.items():
        close(EVERY[name](maps, masks), np.array(expected(slow, maps, masks)))


def test_a_better_map_scores_better():
    masks = rectangles()
    noise = torch.randn(masks.shape, generator=torch.Generator().manual_seed(23))
    good, fair, poor = ((masks * s + noise) for s in (3.0, 1.0, -3.0))
    for name, metric in EVERY.items():
        best, middle, worst = (metric(maps, masks)[0].mean() for maps in (good, fair, poor))
        if name != "pointing_game":
            assert best > middle > worst, name


def test_the_table_of_measures_holds_them_all_by_name():
    plain = {"allocation_curve", "two_object_contrast", "best_at_stride", "border_band", "boxes"}
    public = {name for name, value in vars(metrics).items() if callable(value)}
    assert set(LOCALISATION) == public - set(metrics.FAITHFULNESS) - plain
    assert all(getattr(metrics, name) is metric for name, metric in LOCALISATION.items())


# --- the best that a coarse map can do -----------------------------------------------------------


def test_the_best_coarse_map():
    generator = torch.Generator().manual_seed(24)
    masks = torch.rand(3, 16, 24, generator=generator) > 0.5
    assert torch.equal(best_at_stride(masks, 1), masks.float())
    assert torch.equal(best_at_stride(masks | True, 8), torch.ones(3, 16, 24))
    half = torch.zeros(1, 16, 24, dtype=torch.bool)
    half[:, :, 14:] = True
    best = best_at_stride(half, 8)
    assert best.shape == half.shape
    # cells of 0, 2/8 and 8/8, whose centres lie at 3.5, 11.5 and 19.5
    row = np.interp(range(24), [3.5, 11.5, 19.5], [0, 0.25, 1])
    torch.testing.assert_close(best[0, 5].double(), torch.from_numpy(row))
    assert rank_accuracy(best, half).item() == 1


# --- bad input -----------------------------------------------------------------------------------


@every
def test_bad_input_is_refused_in_words(name):
    metric = EVERY[name]
    maps, masks, void = drawn(2, 4, 25, True)
    with pytest.raises(ValueError, match="resize the map"):
        metric(maps[:, :2], masks)
    with pytest.raises(ValueError, match="resize the map"):
        metric(maps[:1], masks)
    with pytest.raises(ValueError, match="B×H×W"):
        metric(maps[0], masks[0])
    with pytest.raises(ValueError, match="B×H×W"):
        metric(maps[:, None], masks[:, None])
    with pytest.raises(ValueError, match="as large as masks"):
        metric(maps, masks, void[:, :2])
    for bad in (torch.nan, torch.inf, -torch.inf):
        spoilt = maps.clone()
        spoilt[1, 3, 3] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            metric(spoilt, masks)
    gone = masks.clone()
    gone[1] = False
    with pytest.raises(ValueError, match="a mask is empty"):
        metric(maps, gone)
    with pytest.raises(ValueError, match="all void"):
        metric(maps, masks, masks)
    with pytest.raises(ValueError, match="all void"):
        metric(maps, masks, torch.ones_like(masks))


@pytest.mark.parametrize("fractions", [[0], [-0.1, 0.5], [0.5, 1.01], [math.nan], [[0.5]]])
def test_budgets_must_be_shares(fractions):
    maps, masks, _ = drawn(2, 4, 26)
    with pytest.raises(ValueError, match=r"fractions must lie in \(0, 1\]"):
        allocation_curve(maps, masks, fractions)


def test_objects_that_overlap_are_refused():
    maps, masks, _ = drawn(2, 4, 27)
    others = ~masks
    others[1, 0, 0] = True
    with pytest.raises(ValueError, match="overlap: make them disjoint"):
        two_object_contrast(maps, masks, others)
    with pytest.raises(ValueError, match="a mask is empty"):
        two_object_contrast(maps, masks, torch.zeros_like(masks))


def test_auroc_needs_something_beside_the_object():
    maps, masks, _ = drawn(2, 4, 28)
    void = ~masks
    void[0, 1, 1] = False
    with pytest.raises(ValueError, match="covers the whole image"):
        auroc(maps, masks | torch.tensor([False, True])[:, None, None])
    with pytest.raises(ValueError, match="covers the whole image"):
        auroc(maps, masks, void)
    close(auroc(maps[:1], masks[:1], void[:1]), expected(slow_auroc, maps[:1], masks[:1], void[:1]))


# --- others' implementations ---------------------------------------------------------------------


def test_quantus_agrees():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantus = pytest.importorskip("quantus")
    generator = torch.Generator().manual_seed(29)
    shape = 6, 20, 24
    maps = torch.stack([torch.randperm(480, generator=generator) for _ in range(6)])
    maps = (maps.view(shape) / 480).double() ** 3
    masks = torch.rand(shape, generator=generator) > 0.7
    masks[3:] = False
    masks[3, 2:9, 3:12] = masks[4, 5, 6] = masks[5, :, 4:] = True

    def theirs(metric):
        scores = metric(disable_warnings=True, normalise=False)(
            model=None,
            x_batch=np.zeros((6, 3, 20, 24)),
            y_batch=np.zeros(6, dtype=int),
            a_batch=maps[:, None].numpy(),
            s_batch=masks[:, None].numpy(),
            channel_first=True,
        )
        return torch.tensor(np.array(scores, dtype=float))

    close(rank_accuracy(maps, masks), theirs(quantus.RelevanceRankAccuracy))
    close(mass_accuracy(maps, masks), theirs(quantus.RelevanceMassAccuracy))
    close(auroc(maps, masks), theirs(quantus.AUC))
    close(pointing_game(maps, masks), theirs(quantus.PointingGame))


def test_scikit_learn_agrees():
    sklearn = pytest.importorskip("sklearn.metrics")
    maps, masks, _ = drawn(8, 12, 30, high=40)
    generator = torch.Generator().manual_seed(31)
    untied = maps + 0.5 * torch.rand(maps.shape, generator=generator)
    for row in range(8):
        truth = masks[row].flatten()
        close(auroc(maps, masks)[row], sklearn.roc_auc_score(truth, maps[row].flatten()))
        precision = sklearn.average_precision_score(truth, untied[row].flatten())
        close(average_precision(untied, masks)[row], precision)


def test_cells_that_do_not_fit_and_budgets_that_are_none_are_refused():
    masks = torch.ones(1, 12, 12, dtype=torch.bool)
    with pytest.raises(ValueError, match="cannot be cut into cells of 8 pixels"):
        metrics.best_at_stride(masks, 8)
    with pytest.raises(ValueError, match="fractions must lie in"):
        allocation_curve(masks.double(), masks, 0.1)
