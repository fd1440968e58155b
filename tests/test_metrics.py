"""Localisation metrics against examples worked by hand and brute force over all tie-breakings."""

import itertools

import pytest
import torch

from riba.metrics import mass_accuracy, rank_accuracy


def one(rows, dtype=torch.float64):
    return torch.tensor([rows], dtype=dtype)


MASK = one([[1, 1, 0], [0, 0, 0]], torch.bool)


@pytest.mark.parametrize(
    ("values", "rank", "mass"),
    [
        ([[9, 8, 1], [0, 0, 0]], 1.0, 17 / 18),
        ([[9, 1, 8], [0, 0, 0]], 0.5, 10 / 18),
        ([[-1, -2, 3], [4, 0, 0]], 0.0, 0.0),  # negative relevance counts as none
        ([[5, 3, 3], [3, 0, 0]], (1 + 1 / 3) / 2, 8 / 14),  # one of three equals finds room
        ([[0, 0, 0], [0, 0, 0]], 2 / 6, 2 / 6),
        ([[-3, -3, -3], [-3, -3, -3]], 2 / 6, 2 / 6),
    ],
)
def test_by_hand(values, rank, mass):
    assert rank_accuracy(one(values), MASK).item() == pytest.approx(rank)
    assert mass_accuracy(one(values), MASK).item() == pytest.approx(mass)


def test_void_pixels_leave_the_mask_the_size_and_the_ranking():
    values, void = one([[9, 1, 8], [2, 0, 0]]), one([[1, 0, 1], [0, 0, 0]], torch.bool)
    assert rank_accuracy(values, MASK, void).item() == 0.0  # K = 1, and 2 beats 1
    assert mass_accuracy(values, MASK, void).item() == pytest.approx(1 / 3)


def test_ties_count_as_the_mean_over_every_way_of_breaking_them():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        values = torch.randint(0, 3, (1, 2, 3), generator=generator)
        mask = torch.rand(1, 2, 3, generator=generator) > 0.5
        mask[0, 0, 0] = True
        size = int(mask.sum())
        flat, hits = values.flatten().tolist(), mask.flatten().tolist()
        orders = itertools.permutations(range(6))
        shares = [
            sum(hits[i] for i in order[:size]) / size
            for order in orders
            if all(flat[a] >= flat[b] for a, b in itertools.pairwise(order))
        ]
        got = rank_accuracy(values, mask).item()
        assert got == pytest.approx(sum(shares) / len(shares))


def test_oracle_scores_one_and_a_constant_map_exactly_chance():
    masks = torch.rand(5, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.8
    chance = masks.double().mean((1, 2))
    for metric in (rank_accuracy, mass_accuracy):
        assert torch.equal(metric(masks.double(), masks), torch.ones(5))
        for constant in (0.0, 0.3):
            scores = metric(torch.full((5, 16, 16), constant), masks)
            torch.testing.assert_close(scores.double(), chance, rtol=1e-6, atol=0)


def test_rank_ignores_monotone_rescaling_and_neighbours_in_the_batch():
    generator = torch.Generator().manual_seed(2)
    maps = torch.randn(4, 12, 12, generator=generator)
    masks = torch.rand(4, 12, 12, generator=generator) > 0.7
    scores = rank_accuracy(maps, masks)
    assert torch.equal(scores, rank_accuracy((3 * maps).exp(), masks))
    assert torch.equal(scores[2:3], rank_accuracy(maps[2:3], masks[2:3]))


@pytest.mark.parametrize("metric", [rank_accuracy, mass_accuracy])
def test_bad_input_is_refused_in_words(metric):
    maps, masks = torch.rand(2, 4, 4), torch.rand(2, 4, 4) > 0.2
    with pytest.raises(ValueError, match="resize the map"):
        metric(maps[:, :2], masks)
    with pytest.raises(ValueError, match="NaN"):
        metric(maps.masked_fill(masks, torch.nan), masks)
    with pytest.raises(ValueError, match="empty"):
        metric(maps, torch.zeros_like(masks))
    with pytest.raises(ValueError, match="empty"):
        metric(maps, masks, masks)
