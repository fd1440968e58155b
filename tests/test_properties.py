"""Properties that hold for whatever is thrown at metrics, maps and readers of pictures.

Hypothesis draws shapes, data types, ties, extreme values and masks; each result is held against a
slow twin in plain Python, exact where there are fractions, or against what must not change it.
"""

import io
import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import riba
from riba.compare import metrics
from riba.method.bottleneck import smooth, to_bits
from riba.testbed import datasets, segmentation

SEVERAL = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""The same examples on every machine, whatever the time they take."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.uint8, torch.int16, torch.int64)
DTYPES = (*FLOATS, *WHOLE, torch.bool)


def contrast(maps, masks, void=None):
    """Against everything that is not the object: a second object without another argument."""
    return metrics.two_object_contrast(maps, masks, ~masks, void)


EVERY = {**metrics.LOCALISATION, "contrast": contrast}
RANKED = [name for name in EVERY if name in {"allocation_area", "rank_accuracy", "rank_skill"}]
RANKED += ["iou_at_k", "pointing_game", "auroc", "average_precision", "bounding_box_ratio"]
OF_RELEVANCE = ["mass_accuracy", "energy_pointing_game", "effective_heat_ratio", "contrast"]


# --- what is drawn -------------------------------------------------------------------------------


@st.composite
def tensors(draw, shape, dtypes=DTYPES, low=None, largest=None):
    """A tensor: a few values many times over, or any that its type holds; ``low`` is the least."""
    dtype = draw(st.sampled_from(dtypes))
    if dtype == torch.bool:
        values = st.booleans()
    elif not dtype.is_floating_point:
        values = st.integers(0 if dtype == torch.uint8 or low == 0 else -100, 100)
    else:
        least = draw(st.sampled_from([-3, -1, 0])) if low is None else low
        top = torch.finfo(dtype).max if largest is None else largest
        least_of_all = -top if low is None else low
        any_value, ends = st.floats(least_of_all, top), st.sampled_from([least_of_all, 0, top])
        values = draw(st.sampled_from([st.integers(least, 3), any_value, ends]))
    count = math.prod(shape)
    drawn = draw(st.lists(values, min_size=count, max_size=count))
    return torch.tensor(drawn, dtype=torch.float64).reshape(shape).to(dtype)


@st.composite
def scenes(draw, most=6, dtypes=DTYPES):
    """Maps, masks, and void or None: in every mask a pixel of the object, and one beside it."""
    shape = tuple(draw(st.integers(1, side)) for side in (3, most, most))
    shape = (*shape[:2], max(2, shape[2]))
    chance = random.Random(draw(st.integers(0, 1000)))
    share = draw(st.sampled_from([0.1, 0.5, 0.9]))
    flat = [[chance.random() < share for _ in range(math.prod(shape[1:]))] for _ in range(shape[0])]
    hole = [[chance.random() < 0.2 for _ in row] for row in flat]
    for row, gone in zip(flat, hole, strict=True):
        inside, beside = chance.sample(range(len(row)), 2)
        row[inside], row[beside] = True, False
        gone[inside] = gone[beside] = False
    masks, void = (torch.tensor(rows).reshape(shape) for rows in (flat, hole))
    return draw(tensors(shape, dtypes)), masks, void if draw(st.booleans()) else None


def close(got, expected, tolerance=1e-9):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(
        got.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True
    )


# --- slow twins, in fractions --------------------------------------------------------------------


def pixels(maps, masks, void):
    """Per image, values as exact fractions with whether they lie in the mask, without the void."""
    keep = torch.ones_like(masks) if void is None else ~void
    for values, inside, kept in zip(maps, masks, keep, strict=True):
        exact = [Fraction(value) for value in values[kept].double().tolist()]
        yield list(zip(exact, inside[kept].tolist(), strict=True))


def expected_hits(rows):
    """H(0) … H(n): hits among the j largest; equal values share theirs evenly over their ranks."""
    hits = [Fraction(0)]
    for _, group in itertools.groupby(sorted(rows, reverse=True), key=lambda row: row[0]):
        found = [inside for _, inside in group]
        hits += [hits[-1] + Fraction(sum(found) * (n + 1), len(found)) for n in range(len(found))]
    return hits


def slow_rank(rows):
    size = sum(inside for _, inside in rows)
    return expected_hits(rows)[size] / size


def slow_area(rows):
    size, hits = sum(inside for _, inside in rows), expected_hits(rows)
    return sum(hits[j] / j for j in range(1, size + 1)) / size


def slow_mass(rows):
    heat = [(max(value, Fraction(0)), inside) for value, inside in rows]
    if not any(value for value, _ in heat):
        heat = [(Fraction(1), inside) for _, inside in rows]
    return sum(v for v, inside in heat if inside) / sum(v for v, _ in heat)


def slow_contrast(rows):
    sides = [
        [max(v, Fraction(0)) for v, inside in rows if inside is side] for side in (True, False)
    ]
    own, other = (sum(side) / len(side) for side in sides)
    return own / (own + other) if own + other else Fraction(1, 2)


SLOW = {
    "rank_accuracy": slow_rank,
    "allocation_area": slow_area,
    "mass_accuracy": slow_mass,
    "contrast": slow_contrast,
}


@pytest.mark.parametrize("name", SLOW)
@SEVERAL
@given(scene=scenes())
def test_scores_are_those_of_a_slow_twin(name, scene):
    expected = [float(SLOW[name](rows)) for rows in pixels(*scene)]
    close(EVERY[name](*scene), expected)


@SEVERAL
@given(scene=scenes(), seed=st.integers(0, 1000), low=st.booleans())
def test_contrast_where_both_objects_are_small(scene, seed, low):
    maps, masks, void = scene
    chance = torch.rand(masks.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    beside = ~masks if void is None else ~masks & ~void
    first = beside.flatten(1).double().argmax(1)  # a pixel at least
    others = beside & chance
    others.view(len(masks), -1)[range(len(masks)), first] = True
    if low:  # all that is positive lies on neither
        maps = torch.where(masks | others, -1, maps.double())
    score = metrics.two_object_contrast(maps, masks, others, void)
    hidden = ~(masks | others)
    rows = pixels(maps, masks, hidden if void is None else hidden | void)
    close(score, [float(slow_contrast(row)) for row in rows])


# --- metrics -------------------------------------------------------------------------------------


@SEVERAL
@given(scene=scenes())
def test_every_score_is_a_share_of_one(scene):
    for name, metric in EVERY.items():
        scores = metric(*scene)
        assert scores.dtype == torch.float64, name
        assert scores.shape == scene[0].shape[:1], name
        if name == "bounding_box_ratio":  # NaN where the box is too large
            scores = scores.nan_to_num(0)
        least = -math.inf if name == "rank_skill" else 0  # below chance
        assert ((scores >= least) & (scores <= 1 + 1e-9)).all(), name


@SEVERAL
@given(scene=scenes())
def test_ranks_are_all_that_rank_metrics_read(scene):
    maps, masks, void = scene
    ranks = maps.double().unique(return_inverse=True)[1]
    for name in RANKED:
        score = EVERY[name](*scene)
        for rescaled in (ranks, ranks.float() ** 3 - 40, (ranks.double() / 9).exp()):
            close(EVERY[name](rescaled, masks, void), score)


@SEVERAL
@given(scene=scenes(), power=st.integers(-60, 60))
def test_the_unit_does_not_matter(scene, power):
    maps, masks, void = scene
    maps = maps.double()
    scaled = maps * 2.0**power
    if not (scaled / 2.0**power == maps).all():  # out of the range of float64
        return
    for name in OF_RELEVANCE:
        close(EVERY[name](scaled, masks, void), EVERY[name](maps, masks, void))


@SEVERAL
@given(scene=scenes(), seed=st.integers(0, 1000))
def test_where_a_pixel_lies_does_not_matter(scene, seed):
    order = list(range(scene[0][0].numel()))
    random.Random(seed).shuffle(order)

    def shuffled(x):
        return x.flatten(1)[:, order].view_as(x)

    for name, metric in EVERY.items():
        score = metric(*scene)
        moves = [lambda x: x.mT, lambda x: x.flip(1, 2)]
        if name not in ("energy_pointing_game", "bounding_box_ratio"):  # a box is a place
            moves.append(shuffled)
        for move in moves:
            close(metric(*(None if x is None else move(x) for x in scene)), score)


@SEVERAL
@given(values=st.lists(st.integers(-1, 1), min_size=2, max_size=5), data=st.data())
def test_ties_score_the_mean_over_every_order_of_them(values, data):
    inside = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    inside[0], inside[-1] = True, False
    maps, mask = torch.tensor([[values]]), torch.tensor([[inside]])
    orders = torch.tensor(list(itertools.permutations(range(len(values)))))[:, None]
    apart = maps + orders / 100  # every order of what is equal, equally often
    masks = mask.expand_as(apart)
    for name in ("allocation_area", "rank_accuracy", "auroc", "average_precision", "pointing_game"):
        close(EVERY[name](maps, mask)[0], EVERY[name](apart, masks).mean())


@SEVERAL
@given(scene=scenes())
def test_what_one_object_wins_the_other_loses(scene):
    maps, masks, void = scene
    there = contrast(maps, masks, void) + contrast(maps, ~masks, void)
    close(there, torch.ones_like(there))


def refused(call, *arguments):
    """One clear sentence: what is wrong and what to do."""
    with pytest.raises(ValueError) as error:
        call(*arguments)
    text = str(error.value)
    assert "\n" not in text
    assert 20 < len(text) <= 300
    return text


@SEVERAL
@given(
    scene=scenes(dtypes=FLOATS),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    place=st.integers(0, 1000),
)
def test_what_cannot_be_ranked_is_refused(scene, bad, place):
    maps, masks, void = scene
    spoilt = maps.clone()
    spoilt.view(-1)[place % maps.numel()] = bad
    none = masks.clone()
    none[place % len(masks)] = False
    for metric in EVERY.values():
        assert "NaN or infinite" in refused(metric, spoilt, masks, void)
        assert "mask is empty" in refused(metric, maps, none, void)
        assert "resize the map" in refused(metric, maps[:, :, 1:], masks, void)


# --- faithfulness --------------------------------------------------------------------------------


class Mean(nn.Module):
    """The mean colour as two logits."""

    def forward(self, images):
        grey = images.mean((1, 2, 3))
        return torch.stack([grey, -grey], dim=1)


def slow_steps(start, end, values, steps, way):
    """Area under the probability of class 0 while pixels of ``start`` turn into those of ``end``.

    ``way`` breaks ties: of equal pixels the one that comes first in it changes first.
    """
    count = len(values)
    order = sorted(range(count), key=lambda i: (-values[i], way.index(i)))
    areas = []
    for step in range(steps + 1):
        changed = set(order[: math.ceil(np.float32(count * step / steps))])
        mean = sum(end[i] if i in changed else start[i] for i in range(count)) / count
        areas.append(1 / (1 + math.exp(-2 * mean)))
    return sum((a + b) / 2 for a, b in itertools.pairwise(areas)) / steps


@SEVERAL
@given(data=st.data(), height=st.integers(1, 6), width=st.integers(1, 6), steps=st.integers(1, 5))
def test_curves_are_those_of_a_slow_twin(data, height, width, steps):
    maps = data.draw(tensors((1, height, width)))
    picture = data.draw(tensors((1, 1, height, width), [torch.float32], -1, 1))
    images = picture.expand(-1, 3, -1, -1).contiguous()
    count = height * width
    way = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    values, own = maps.flatten().double().tolist(), picture.flatten().tolist()
    blurred = slow_blur(picture[0, 0].double().tolist(), metrics.faithfulness.BLUR)
    blurred = list(itertools.chain(*blurred))
    grey = [0.0] * count
    expected = {
        "deletion": slow_steps(own, grey, values, steps, way),
        "insertion": slow_steps(blurred, own, values, steps, way),
    }
    for name, area in expected.items():
        score = metrics.FAITHFULNESS[name](Mean().eval(), images, [0], maps, steps=steps)
        close(score, [area], 1e-5)


# --- maps that are enlarged and smoothed ---------------------------------------------------------


def mirrored(place, side):
    """The place inside that a place outside mirrors; the border itself is not repeated."""
    while not 0 <= place < side:
        place = -place if place < 0 else 2 * (side - 1) - place
    return place


def slow_blur(rows, sigma):
    """A truncated Gaussian over rows and columns of a list of lists, mirrored at the border."""
    reach = round(2 * sigma)
    offsets = range(-reach, reach + 1)
    weights = [math.exp(-(offset**2) / (2 * sigma**2)) for offset in offsets]

    def along(line):
        places = range(len(line))
        if len(line) == 1:
            return line
        return [
            sum(w * line[mirrored(i + o, len(line))] for w, o in zip(weights, offsets, strict=True))
            / sum(weights)
            for i in places
        ]

    blurred = [along(row) for row in rows]
    return [
        list(row)
        for row in zip(*[along(column) for column in zip(*blurred, strict=True)], strict=True)
    ]


def slow_enlarged(rows, height, width):
    """Bilinear, pixel centres at halves, the border repeated; then scaled to the same total."""

    def along(line, length):
        places = [
            min(max((i + 0.5) * len(line) / length - 0.5, 0), len(line) - 1) for i in range(length)
        ]
        return [
            line[int(p)] * (1 - p % 1) + line[min(int(p) + 1, len(line) - 1)] * (p % 1)
            for p in places
        ]

    wide = [along(row, width) for row in rows]
    large = list(zip(*[along(column, height) for column in zip(*wide, strict=True)], strict=True))
    total, found = sum(map(sum, rows)), sum(map(sum, large))
    return [[value * total / found if found else 0.0 for value in row] for row in large]


def tolerance(dtype):
    """Some rounding steps of this type; whole numbers become float32."""
    return 20 * torch.finfo(dtype if dtype.is_floating_point else torch.float32).eps


@SEVERAL
@given(data=st.data(), height=st.integers(1, 5), width=st.integers(1, 5))
def test_bits_keep_their_total_in_every_type(data, height, width):
    nats = data.draw(tensors((2, 3, height, width), low=0, largest=2e4))
    size = height + data.draw(st.integers(0, 9)), width + data.draw(st.integers(0, 9))
    bits = to_bits(nats, size)
    assert bits.shape == (2, *size)
    assert (bits >= 0).all()
    summed = nats.double().sum(1) / math.log(2)
    near = tolerance(torch.float32)
    close(bits.double().sum((1, 2)), summed.sum((1, 2)), near)
    slow = [slow_enlarged(rows.tolist(), *size) for rows in summed]
    torch.testing.assert_close(
        bits.double(),
        torch.tensor(slow, dtype=torch.float64),
        rtol=1e-4,
        atol=float(near * summed.max() + 1e-6),
    )


@SEVERAL
@given(data=st.data(), bad=st.sampled_from([math.nan, math.inf]), place=st.integers(0, 1000))
def test_bits_of_nonsense_are_nonsense(data, bad, place):
    nats = data.draw(tensors((1, 2, 3, 4), FLOATS, 0, 100.0))
    nats.view(-1)[place % nats.numel()] = bad
    assert not torch.isfinite(to_bits(nats, (6, 7))).all()
    assert not torch.isfinite(smooth(nats, 1.0)).all()


@SEVERAL
@given(
    data=st.data(),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    sigma=st.sampled_from([0.1, 0.3, 1, 1.0, 2.5, 9.0]),
)
def test_smoothing_is_that_of_a_slow_twin(data, height, width, sigma):
    maps = data.draw(tensors((2, height, width), largest=1e4))
    smoothed = smooth(maps, sigma)
    near = tolerance(smoothed.dtype if smoothed.dtype != torch.float64 else torch.float32)
    near *= 1 + maps.double().abs().max().item()
    slow = [slow_blur(rows, sigma) for rows in maps.double().tolist()]
    close(smoothed.double(), slow, near)
    close(smooth(maps.mT, sigma).mT, smoothed, near)
    assert smoothed.max() <= maps.max() + near
    assert smoothed.min() >= maps.min() - near


@SEVERAL
@given(blur=st.one_of(st.floats(max_value=-1e-9), st.sampled_from([math.nan, math.inf])))
def test_a_width_that_is_none_is_refused(blur):
    assert "blur must be 0 pixels or more" in refused(
        lambda: riba.METHODS["edges"].using(blur=blur)
    )


# --- pictures ------------------------------------------------------------------------------------


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def noise(size, top, seed):
    """Whole numbers up to ``top``, with both ends among them."""
    values = np.random.default_rng(seed).integers(0, top + 1, size)
    values.flat[0], values.flat[-1] = 0, top
    return values


def stored(tmp_path, picture, ending="png", **options):
    path = tmp_path / f"picture.{ending}"
    picture.save(path, **options)
    return path


def palette_of(numbers, colours):
    picture = Image.fromarray(numbers.astype(np.uint8), "P")
    picture.putpalette(np.asarray(colours, np.uint8).flatten().tolist())
    return picture


@SEVERAL
@given(size=SIZES, seed=st.integers(0, 99))
def test_greys_of_every_depth_are_read_alike(tmp_path, size, seed):
    grey = noise(size, 255, seed)
    colours = np.random.default_rng(seed).integers(0, 256, (256, 3))
    two = grey > 127
    cases = {
        "8 bits": (Image.fromarray(grey.astype(np.uint8)), "png", grey),
        "16 bits": (Image.fromarray((grey * 257).astype(np.uint16)), "png", grey),
        "16 bits, TIFF": (Image.fromarray((grey * 257).astype(np.uint16)), "tif", grey),
        "32 bits": (Image.fromarray((grey * 257).astype(np.int32)), "tif", grey),
        "32 bits of 8": (Image.fromarray(grey.astype(np.int32)), "tif", grey),
        "floats to 1": (Image.fromarray((grey / 255).astype(np.float32)), "tif", grey),
        "floats to 255": (Image.fromarray(grey.astype(np.float32)), "tif", grey),
        "two values": (Image.fromarray(two), "png", two * 255),
        "palette": (palette_of(grey, colours), "png", colours[grey]),
    }
    for name, (picture, ending, expected) in cases.items():
        shown = datasets.read_photo(stored(tmp_path, picture, ending))
        assert shown.shape == (*size, 3), name
        assert shown.dtype == np.uint8, name
        expected = expected if expected.ndim == 3 else expected[..., None]
        assert np.abs(shown.astype(int) - expected).max() <= 1, name


@SEVERAL
@given(size=SIZES, seed=st.integers(0, 99))
def test_what_is_transparent_is_white(tmp_path, size, seed):
    rgba = noise((*size, 4), 255, seed)
    shown = datasets.read_photo(stored(tmp_path, Image.fromarray(rgba.astype(np.uint8))))
    alpha = rgba[..., 3:] / 255
    assert np.abs(shown - (rgba[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1


@SEVERAL
@given(
    size=SIZES,
    bad=st.sampled_from([math.nan, math.inf, -math.inf, -1, 256, 1e9]),
    place=st.integers(0, 99),
)
def test_values_that_are_no_greys_are_refused(tmp_path, size, bad, place):
    values = noise(size, 1, place).astype(np.float32)
    values.flat[place % values.size] = bad
    path = stored(tmp_path, Image.fromarray(values), "tif")
    for read in (datasets.read_photo, segmentation.silhouette):
        assert "scale them to" in refused(read, path)
    if math.isfinite(bad) and bad != 256:
        path = stored(tmp_path, Image.fromarray(values.astype(np.int32)), "tif")
        assert "scale them to" in refused(datasets.read_photo, path)


@SEVERAL
@given(size=SIZES, seed=st.integers(0, 99))
def test_a_mask_is_the_same_in_every_form(tmp_path, size, seed):
    mask = noise(size, 1, seed)
    byte = mask.astype(np.uint8)
    white = np.full((*size, 3), 255)
    cut_out = np.dstack([noise((*size, 3), 255, seed), mask * 255]).astype(np.uint8)
    cases = {
        "boolean": (Image.fromarray(mask.astype(bool)), "png"),
        "0 and 1": (Image.fromarray(byte), "png"),
        "0 and 255": (Image.fromarray(byte * 255), "png"),
        "above half": (
            Image.fromarray(100 + byte * 80 + noise(size, 20, seed).astype(np.uint8)),
            "png",
        ),
        "16 bits": (Image.fromarray((mask * 65535).astype(np.uint16)), "png"),
        "32 bits": (Image.fromarray((mask * 255).astype(np.int32)), "tif"),
        "floats": (Image.fromarray(mask.astype(np.float32)), "tif"),
        "floats to 255": (Image.fromarray((mask * 255).astype(np.float32)), "tif"),
        "palette": (palette_of(mask, [[0, 0, 0], [128, 0, 0]]), "png"),
        "palette of greys": (palette_of(1 - mask, [[255] * 3, [0] * 3]), "png"),
        "RGB": (Image.fromarray(byte * 255).convert("RGB"), "png"),
        "opaque RGBA": (Image.fromarray(byte * 255).convert("RGBA"), "png"),
        "white where it is not transparent": (
            Image.fromarray(np.dstack([white, mask * 255]).astype(np.uint8)),
            "png",
        ),
        "a cut-out": (Image.fromarray(cut_out), "png"),
        "grey with alpha": (Image.fromarray(cut_out[..., 2:], "LA"), "png"),
    }
    for name, (picture, ending) in cases.items():
        if size == (1, 1) and name != "boolean":  # of one value: what it means is a matter of form
            continue
        read = segmentation.silhouette(stored(tmp_path, picture, ending))
        assert np.array_equal(read, mask), name


@SEVERAL
@given(
    content=st.binary(max_size=200), cut=st.integers(1, 200), ending=st.sampled_from(["png", "tif"])
)
def test_damaged_files_are_refused(tmp_path, content, cut, ending):
    whole = io.BytesIO()
    Image.fromarray(noise((9, 9), 255, 0).astype(np.uint8)).save(
        whole, "PNG" if ending == "png" else "TIFF"
    )
    start = whole.getvalue()
    for data in (content, start[:-cut]):
        path = tmp_path / f"picture.{ending}"
        path.write_bytes(data)
        for read in (datasets.read_photo, segmentation.silhouette, segmentation.palette):
            said = told(read, path)
            assert said is None or (path.name in said and len(said) <= 300)


def told(read, path):
    """What a reader has to say against a file; None where it can be read."""
    try:
        read(path)
    except ValueError as error:
        return str(error)
    return None
