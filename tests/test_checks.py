"""Every checker accepts a right answer and nothing else that a learner is likely to write.

The right answers are written here with loops and NumPy, apart from how the checkers get theirs.
"""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from riba import checks


def total_bits(nats):
    return sum(math.log2(math.exp(n)) for n in nats.flatten().tolist())


def mass_accuracy(values, mask):
    positive = np.maximum(values.numpy(), 0)
    return positive[mask.numpy()].sum() / positive.sum()


def chance(mask):
    pixels = mask.flatten().tolist()
    return pixels.count(True) / len(pixels)


def capacity_at_mean(lambda_):
    values = [
        0.5 * ((1 - x) ** 2 - 1) - math.log(1 - x) for x in lambda_.double().flatten().tolist()
    ]
    return torch.tensor(values).reshape(lambda_.shape)


def enlarge(bits, size):
    large = F.interpolate(bits[None, None], (size, size), mode="bilinear")[0, 0]
    return large * bits.sum() / large.sum()


def z_plus(x, w, relevance):
    below = torch.zeros_like(x)
    for row, r in zip(w, relevance, strict=True):
        parts = (row * x).clamp(min=0)
        below += parts / parts.sum() * r
    return below


def lost_to_biases(x, w, bias, relevance):
    lost = 0.0
    for row, b, r in zip(w.tolist(), bias.tolist(), relevance.tolist(), strict=True):
        helped = sum(max(w_i * x_i, 0) for w_i, x_i in zip(row, x.tolist(), strict=True))
        lost += r * max(b, 0) / (helped + max(b, 0))
    return lost / relevance.sum().item()


def active_share(nats, features):
    pairs = zip(nats.flatten().tolist(), features.flatten().tolist(), strict=True)
    return sum(n for n, r in pairs if r > 0) / nats.sum().item()


def spread(nats, features):
    out = torch.zeros_like(nats)
    for b, _, i, j in np.ndindex(*nats.shape):
        r = features[b, :, i, j].clamp(min=0)
        out[b, :, i, j] = nats[b, :, i, j].sum() * r / r.sum()
    return out


def cells_of(mask, stride):
    rows, columns = (side // stride for side in mask.shape)
    out = torch.zeros(rows, columns)
    for i, j in np.ndindex(rows, columns):
        cell = mask[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride]
        out[i, j] = cell.sum() / stride**2
    return out


def coarsest(mask, strides, enough=0.9, best=max):
    fine = []
    for stride in strides:
        cells = cells_of(mask, stride)[None, None]
        ceiling = F.interpolate(cells, mask.shape, mode="bilinear")[0, 0]
        on_top = ceiling.flatten().argsort(descending=True, stable=True)[: int(mask.sum())]
        if mask.flatten()[on_top].double().mean() >= enough:
            fine.append(stride)
    return best(fine)


def allocation_area(values, mask):
    ranked = sorted(zip(values.flatten().tolist(), mask.flatten().tolist(), strict=True))[::-1]
    size, hits, total = int(mask.sum()), 0, 0.0
    for budget in range(1, size + 1):
        hits += ranked[budget - 1][1]
        total += hits / budget
    return total / size


def two_object_contrast(values, own, other):
    a, b = (np.maximum(values.numpy(), 0)[mask.numpy()].mean() for mask in (own, other))
    return a / (a + b)


def middle(picture):
    height, width = picture.shape[:2]
    side = min(height, width)
    return picture[(height - side) // 2 :, (width - side) // 2 :][:side, :side]


# checker: the right answer, and wrong ones of the right shape
TABLE = {
    "coarsest": (
        coarsest,
        lambda mask, strides: coarsest(mask, strides, best=min),
        lambda mask, strides: coarsest(mask, strides, enough=0.97),
        lambda mask, strides: coarsest(mask, strides, enough=0.5),
        lambda mask, strides: max(strides),
    ),
    "grid_pointing": (
        lambda values, cell: (
            values.clamp(min=0)[cell].sum() / values.clamp(min=0).sum()
            if (values > 0).any()
            else cell.double().mean()
        ),
        lambda values, cell: values[cell].sum() / values.sum(),
        lambda values, cell: values.clamp(min=0)[cell].sum(),
        lambda values, cell: values.clamp(min=0)[~cell].sum() / values.clamp(min=0).sum(),
    ),
    "rank_correlation": (
        lambda one, other: np.corrcoef(
            one.flatten().argsort().argsort(), other.flatten().argsort().argsort()
        )[0, 1],
        lambda one, other: np.corrcoef(one.flatten(), other.flatten())[0, 1],
        lambda one, other: np.corrcoef(one.flatten().argsort(), other.flatten().argsort())[0, 1],
    ),
    "allocation_area": (
        allocation_area,
        lambda values, mask: (
            mask.flatten()[values.flatten().topk(int(mask.sum())).indices].double().mean()
        ),
        lambda values, mask: allocation_area(-values, mask),
        lambda values, mask: allocation_area(values, ~mask),
    ),
    "two_object_contrast": (
        two_object_contrast,
        lambda values, own, other: two_object_contrast(values, other, own),
        lambda values, own, other: two_object_contrast(values.abs(), own, other),
        lambda values, own, other: (
            values.clamp(min=0)[own].sum() / values.clamp(min=0)[own | other].sum()
        ),
    ),
    "total_bits": (
        total_bits,
        lambda nats: nats.sum(),
        lambda nats: nats.sum() * math.log(2),
        lambda nats: nats.sum() / math.log(10),
        lambda nats: nats.mean() / math.log(2),
    ),
    "mass_accuracy": (
        mass_accuracy,
        lambda values, mask: values[mask].sum() / values.sum(),
        lambda values, mask: values[mask].abs().sum() / values.abs().sum(),
        lambda values, mask: mask.float().mean(),
        lambda values, mask: torch.tensor(torch.nan),
    ),
    "chance": (
        chance,
        lambda mask: 0.3,
        lambda mask: mask.sum(),
        lambda mask: 1 - mask.float().mean(),
    ),
    "capacity_at_mean": (
        capacity_at_mean,
        lambda lambda_: 0 * lambda_,
        lambda lambda_: -capacity_at_mean(lambda_),
        lambda lambda_: capacity_at_mean(lambda_) / math.log(2),
        lambda lambda_: -torch.log(1 - lambda_),
        lambda lambda_: capacity_at_mean(1 - lambda_.clamp(min=0.01)),
        lambda lambda_: capacity_at_mean(lambda_) + lambda_**2 / 2,
    ),
    "enlarge": (
        enlarge,
        lambda bits, size: F.interpolate(bits[None, None], (size, size), mode="bilinear")[0, 0],
        lambda bits, size: F.interpolate(bits[None, None], (size, size))[0, 0] * 16 / size**2,
        lambda bits, size: bits.sum().expand(size, size) / size**2,
    ),
    "z_plus": (
        z_plus,
        lambda x, w, relevance: x * (w.T @ (relevance / (w @ x))),
        lambda x, w, relevance: x * (w.clamp(min=0).T @ relevance),
        lambda x, w, relevance: z_plus(torch.ones_like(x), w, relevance),
        lambda x, w, relevance: relevance.sum() * x / x.sum(),
    ),
    "lost_to_biases": (
        lost_to_biases,
        lambda x, w, b, above: 1 - lost_to_biases(x, w, b, above),
        lambda x, w, b, above: lost_to_biases(x, w, b.abs(), above),
        lambda x, w, b, above: lost_to_biases(x, w, b, above) * above.sum(),
        lambda x, w, b, above: (b.clamp(min=0) / (b.clamp(min=0) + (w * x).sum(1))).mean(),
    ),
    "active_share": (
        active_share,
        lambda nats, features: (features > 0).float().mean(),
        lambda nats, features: nats[features <= 0].sum() / nats.sum(),
        lambda nats, features: nats[features > 0].sum(),
    ),
    "middle": (
        middle,
        lambda picture: picture[: min(picture.shape[:2]), : min(picture.shape[:2])],
        lambda picture: picture[-min(picture.shape[:2]) :, -min(picture.shape[:2]) :],
    ),
    "set_logit": (
        lambda logits, members: logits[:, members].double().exp().sum(1).log(),
        lambda logits, members: logits[:, members].sum(1),
        lambda logits, members: logits[:, members].amax(1),
        lambda logits, members: logits[:, members].exp().sum(1),
        lambda logits, members: logits.logsumexp(1),
    ),
    "class_numbers": (
        lambda rgb: [[int(r) + 256 * int(g) for r, g, _ in row] for row in rgb.tolist()],
        lambda rgb: rgb[..., 0] + 256 * rgb[..., 1],
        lambda rgb: rgb[..., 1].long() + 256 * rgb[..., 0],
        lambda rgb: rgb.long() @ torch.tensor([1, 256, 65536]),
    ),
    "spread": (
        spread,
        lambda nats, features: nats,
        lambda nats, features: nats.sum(1, keepdim=True) * features,
        lambda nats, features: nats.sum(1, keepdim=True) * features.softmax(1),
        lambda nats, features: nats.mean(1, keepdim=True).expand_as(nats),
        lambda nats, features: nats.sum() * features / features.sum(),
    ),
}
RIGHT = [(name, answers[0]) for name, answers in TABLE.items()]
WRONG = [(name, wrong) for name, answers in TABLE.items() for wrong in answers[1:]]
CHECKERS = sorted(TABLE)


def ranks(values):
    return values.flatten().argsort().argsort()


def pointing(values, cell, of_an_empty_map, is_empty=lambda values: not (values > 0).any()):
    positive = values.clamp(min=0)
    return of_an_empty_map if is_empty(values) else positive[cell].sum() / positive.sum()


def of_positive_pixels(values, own, other):
    a, b = (values[mask & (values > 0)].mean() for mask in (own, other))
    return a / (a + b)


def over_channels(nats, weight):
    return nats.sum(1, keepdim=True) * weight / weight.sum(1, keepdim=True)


def with_corners(bits, size):
    large = F.interpolate(bits[None, None], (size, size), mode="bilinear", align_corners=True)[0, 0]
    return large * bits.sum() / large.sum()


# checker, wrong answer, and the case whose name the hint has to say
MISTAKES = {
    "bits of exp of the total": (
        "total_bits",
        lambda nats: nats.sum().exp().log2(),
        "many nats",
    ),
    "mass clipped to 0-1": (
        "mass_accuracy",
        lambda values, mask: mass_accuracy(values.clamp(0, 1), mask),
        "values above 1",
    ),
    "chance of a square": (
        "chance",
        lambda mask: mask.sum() / len(mask) ** 2,
        "a mask that is not square",
    ),
    "λ kept from 1": (
        "capacity_at_mean",
        lambda lambda_: capacity_at_mean(lambda_.clamp(max=0.95)),
        "λ near 1",
    ),
    "enlarged by the factor only": (
        "enlarge",
        lambda bits, size: (
            F.interpolate(bits[None, None], (size, size), mode="bilinear")[0, 0]
            * (bits.numel() / size**2)
        ),
        "a size that is no multiple",
    ),
    "enlarged with aligned corners": ("enlarge", with_corners, "a square map"),
    "the last that fits": (
        "coarsest",
        lambda mask, strides: coarsest(mask, strides, best=lambda fine: fine[-1]),
        "another order",
    ),
    "eight in ten pixels right": (
        "coarsest",
        lambda mask, strides: coarsest(mask, strides, enough=0.8),
        "a small disc",
    ),
    "every object as thick as a disc": ("coarsest", lambda mask, strides: 8, "a line"),
    "area by size": (
        "allocation_area",
        lambda values, mask: allocation_area(values.abs(), mask),
        "mostly negative values",
    ),
    "area of the positive part": (
        "allocation_area",
        lambda values, mask: allocation_area(values.clamp(min=0), mask),
        "mostly negative values",
    ),
    "contrast of positive pixels": ("two_object_contrast", of_positive_pixels, "signed values"),
    "contrast clipped to 0-1": (
        "two_object_contrast",
        lambda values, own, other: two_object_contrast(values.clamp(0, 1), own, other),
        "values above 1",
    ),
    "a quarter for an empty map": (
        "grid_pointing",
        lambda values, cell: pointing(values, cell, 0.25),
        "an empty map",
    ),
    "an empty map is nan": (
        "grid_pointing",
        lambda values, cell: pointing(values, cell, torch.nan),
        "an empty map",
    ),
    "empty only where all is zero": (
        "grid_pointing",
        lambda values, cell: pointing(
            values, cell, cell.double().mean(), lambda values: not values.any()
        ),
        "a map of negative values",
    ),
    "ranks of sizes": (
        "rank_correlation",
        lambda one, other: np.corrcoef(ranks(one.abs()), ranks(other.abs()))[0, 1],
        "negative values",
    ),
    "ranks of the positive part": (
        "rank_correlation",
        lambda one, other: np.corrcoef(ranks(one.clamp(min=0)), ranks(other.clamp(min=0)))[0, 1],
        "negative values",
    ),
    "positive weights": (
        "z_plus",
        lambda x, w, above: (
            w.clamp(min=0) * x * (above / (w.clamp(min=0) * x).sum(1))[:, None]
        ).sum(0),
        "negative inputs",
    ),
    "positive weights of positive inputs": (
        "z_plus",
        lambda x, w, above: z_plus(x.clamp(min=0), w.clamp(min=0), above),
        "negative inputs",
    ),
    "biases beside positive weights": (
        "lost_to_biases",
        lambda x, w, b, above: lost_to_biases(x.clamp(min=0), w, b, above),
        "negative inputs",
    ),
    "active where not zero": (
        "active_share",
        lambda nats, features: nats[features != 0].sum() / nats.sum(),
        "negative features",
    ),
    "active by sign": (
        "active_share",
        lambda nats, features: (nats * features.sign()).sum() / nats.sum(),
        "negative features",
    ),
    "spread by r": ("spread", over_channels, "negative features"),
    "spread by the size of r": (
        "spread",
        lambda nats, features: over_channels(nats, features.abs()),
        "negative features",
    ),
    "middle, one pixel off": (
        "middle",
        lambda picture: middle(picture.roll(1, 1)),
        "a wide picture",
    ),
    "log of a sum that overflows": (
        "set_logit",
        lambda logits, members: logits[:, members].exp().sum(1).log(),
        "large logits",
    ),
    "shifted by the largest of all": (
        "set_logit",
        lambda logits, members: (
            (logits[:, members] - logits.amax(1, keepdim=True)).exp().sum(1).log() + logits.amax(1)
        ),
        "a class far above the set",
    ),
    "numbers of 16 bits": (
        "class_numbers",
        lambda rgb: rgb[..., 0].short() + 256 * rgb[..., 1].short(),
        "random bytes",
    ),
    "numbers from 1": (
        "class_numbers",
        lambda rgb: rgb[..., 0].long() + 256 * rgb[..., 1].long() - 1,
        "random bytes",
    ),
}
FORMS = {
    "an array of float32": lambda right: right.numpy().astype(np.float32),
    "an array of float64": lambda right: right.numpy(),
    "an array stored backwards": lambda right: np.flip(np.flip(right.numpy()).copy()),
    "lists": lambda right: right.tolist(),
    "lists of tensors": lambda right: list(right) if right.ndim else right,
    "a tensor of float32": lambda right: right.float(),
    "a tensor of float64": lambda right: right,
    "a tensor with a gradient": lambda right: right.requires_grad_(),
}


def test_every_checker_is_in_the_table():
    public = {
        name
        for name, thing in vars(checks).items()
        if callable(thing) and thing.__module__ == checks.__name__ and name[0] != "_"
    }
    assert public - {"Verdict"} == set(TABLE)


@pytest.mark.parametrize(("checker", "answer"), RIGHT)
def test_a_right_answer_is_accepted_with_praise(checker, answer):
    verdict = getattr(checks, checker)(answer)
    assert verdict, verdict
    assert verdict.right
    assert repr(verdict) == f"✓ {verdict.message}"


@pytest.mark.parametrize(("checker", "answer"), WRONG)
def test_a_wrong_answer_is_rejected_with_how_far_it_is_off(checker, answer):
    verdict = getattr(checks, checker)(answer)
    assert not verdict
    hints = r"off by up to \d|-?\d+(\.\d+)? times what is right|the result is not a number"
    assert re.match(rf"✗ wrong for .+: ({hints})", repr(verdict))


def test_a_wrong_unit_is_named_by_its_factor():
    verdict = checks.capacity_at_mean(lambda share: capacity_at_mean(share) / math.log(2))
    assert repr(verdict) == "✗ wrong for a block of λ: 1.44 times what is right"
    verdict = checks.spread(lambda nats, features: 2 * spread(nats, features))
    assert "2 times what is right" in repr(verdict)


@pytest.mark.parametrize(
    ("checker", "answer"),
    [
        ("total_bits", lambda nats: nats.sum()),  # of one number anything is a multiple
        ("capacity_at_mean", lambda share: 0 * share),
        ("capacity_at_mean", lambda share: 1.001 * capacity_at_mean(share)),
        ("spread", lambda nats, features: 1e-5 * features),
        ("set_logit", lambda logits, members: torch.full((len(logits),), torch.inf)),
    ],
)
def test_a_factor_is_named_only_where_it_says_something(checker, answer):
    assert ": off by up to " in repr(getattr(checks, checker)(answer))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_likely_mistake_is_rejected_in_the_case_that_shows_it(mistake):
    checker, answer, case = MISTAKES[mistake]
    verdict = getattr(checks, checker)(answer)
    assert not verdict
    assert verdict.message.startswith(f"wrong for {case}: ")


def test_every_checker_has_a_mistake():
    assert {checker for checker, _, _ in MISTAKES.values()} == set(TABLE)


@pytest.mark.parametrize("checker", CHECKERS)
@pytest.mark.parametrize("nothing", [None, ...])
def test_an_unfinished_answer_is_told_what_to_do(checker, nothing):
    verdict = getattr(checks, checker)(lambda *given: nothing)
    assert not verdict
    assert "nothing returned yet" in verdict.message


@pytest.mark.parametrize("checker", CHECKERS)
def test_an_answer_that_raises_is_rejected_in_its_own_words(checker):
    def broken(*_given):
        raise KeyError("my own mistake")

    verdict = getattr(checks, checker)(broken)
    assert not verdict
    assert "your function raised KeyError" in verdict.message
    assert "my own mistake" in verdict.message


@pytest.mark.parametrize("checker", CHECKERS)
def test_an_answer_that_takes_other_arguments_is_rejected(checker):
    verdict = getattr(checks, checker)(lambda: 0)
    assert not verdict
    assert "your function raised TypeError" in verdict.message


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize(("checker", "answer"), RIGHT)
def test_right_numbers_in_a_wrong_shape_are_rejected(checker, answer, place):
    verdict = getattr(checks, checker)(
        lambda *given: torch.as_tensor(answer(*given)).unsqueeze(place)
    )
    assert not verdict
    assert re.search(r"the result has shape \(.*1.*\), expected \(", verdict.message)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("checker", "answer"), RIGHT)
def test_right_numbers_are_accepted_in_any_form(checker, answer, form):
    verdict = getattr(checks, checker)(
        lambda *given: FORMS[form](torch.as_tensor(answer(*given)).double())
    )
    assert verdict, verdict


@pytest.mark.parametrize("thing", ["0.5", {}, [None], [[1], [1, 2]], lambda: 0])
def test_what_is_no_number_is_rejected(thing):
    verdict = checks.chance(lambda mask: thing)
    assert verdict.message.endswith(f"the result is a {type(thing).__name__}, not numbers")


def test_a_verdict_is_the_same_every_time():
    wrong = TABLE["chance"][1]
    assert checks.chance(wrong) == checks.chance(wrong)
