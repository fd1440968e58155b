"""The scenes are exact, repeatable and fair: nothing but the object tells the class."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from riba.testbed import scenes
from riba.testbed.scenes import CLASS_NAMES, SIZE, SPLITS, draw

FIRST_TEST = SPLITS["test"].start


@cache
def sample(count: int = 200) -> list[scenes.Scene]:
    return [draw(FIRST_TEST + index) for index in range(count)]


def outside(*drawn: scenes.Scene) -> np.ndarray:
    """Pixels at least two away from every object of the given scenes."""
    union = np.any([mask for scene in drawn for mask in scene.masks], axis=0)
    return ~ndimage.binary_dilation(union, np.ones((3, 3)), iterations=2)


@pytest.mark.parametrize("variant", [{}, {"evidence": "shape"}, {"others": 2, "shortcut": True}])
def test_same_arguments_give_the_same_scene(variant):
    one, two = draw(7, **variant), draw(7, **variant)
    assert np.array_equal(one.image, two.image)
    assert np.array_equal(one.masks, two.masks)
    assert one.labels == two.labels
    assert not np.array_equal(one.image, draw(8, **variant).image)


def test_splits_are_disjoint():
    ranges = sorted(SPLITS.values(), key=lambda seeds: seeds.start)
    assert all(one.stop <= two.start for one, two in pairwise(ranges))


def test_a_scene_has_the_promised_shapes_and_types():
    scene = draw(3, others=1)
    assert scene.image.shape == scene.background.shape == (SIZE, SIZE, 3)
    assert scene.image.dtype == scene.background.dtype == np.uint8
    assert scene.masks.shape == (2, SIZE, SIZE)
    assert scene.masks.dtype == scene.shortcut.dtype == bool
    assert scene.label == scene.labels[0]


def test_every_class_is_drawn_about_equally_often():
    counts = np.bincount([scene.label for scene in sample()], minlength=len(CLASS_NAMES))
    assert ((counts - 20) ** 2 / 20).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001


@pytest.mark.parametrize("evidence", ["both", "shape", "surface"])
@pytest.mark.parametrize("label", range(len(CLASS_NAMES)))
def test_parts_partition_the_target(label, evidence):
    scene = draw(40 + label, label=label, evidence=evidence)
    cover = np.sum(list(scene.parts.values()), axis=0)
    assert np.array_equal(cover, scene.masks[0])
    assert all(part.any() for part in scene.parts.values())


def test_the_mask_is_where_the_image_differs_from_the_background():
    for scene in sample()[:30]:
        changed = (scene.image != scene.background).any(axis=-1)
        core = ndimage.binary_erosion(scene.masks[0], np.ones((3, 3)))
        assert changed[core].mean() > 0.99
        assert not changed[outside(scene)].any()


def test_the_mask_holds_the_pixels_that_are_at_least_half_covered():
    """Against a raster sixteen times as fine."""
    from riba.testbed.scenes.raster import Sprite, Window, rasterise
    from riba.testbed.scenes.shapes import Part, oval

    disc = [Part("disc", "main", oval(60.3, 50.6, 20.2, 11.7))]
    fine = rasterise(disc, Window(0, 0, SIZE, SIZE), 16) > 0
    share = fine.reshape(SIZE, 16, SIZE, 16).mean(axis=(1, 3))
    clear = np.abs(share - 0.5) > 0.2
    assert np.array_equal(Sprite(disc).mask[clear], (share >= 0.5)[clear])
    assert Sprite(disc).mask.sum() == pytest.approx(np.pi * 20.2 * 11.7, rel=0.02)


def test_objects_are_neither_tiny_nor_huge_nor_cropped():
    masks = np.stack([scene.masks[0] for scene in sample()])
    area = masks.mean(axis=(1, 2))
    assert area.min() >= 0.04
    assert area.max() <= 0.35
    assert not masks[:, [0, -1]].any()
    assert not masks[:, :, [0, -1]].any()


def test_all_classes_have_the_same_distribution_of_area():
    areas = np.array(
        [
            [draw(seed, label=label).masks[0].mean() for label in range(len(CLASS_NAMES))]
            for seed in range(8)
        ]
    )
    assert np.abs(areas.mean(axis=0) / areas.mean() - 1).max() < 0.06


@pytest.mark.parametrize("variant", [{}, {"evidence": "surface"}, {"others": 1}])
def test_the_label_changes_nothing_outside_the_objects(variant):
    for seed in range(8):
        one, two = draw(seed, label=seed, **variant), draw(seed, label=(seed + 3) % 10, **variant)
        same = outside(one, two)
        assert np.array_equal(one.background, two.background)
        assert np.array_equal(one.image[same], two.image[same])


def statistics(image: np.ndarray) -> np.ndarray:
    """Colour, gradients and spectrum of a picture in 60 numbers."""
    grey = image.mean(axis=-1)
    slope = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))
    power = np.log(1 + np.abs(np.fft.rfft2(grey - grey.mean())))
    rings = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)) * SIZE
    spectrum = ndimage.mean(power, np.minimum(rings / 4, 16).astype(int), range(16))
    blocks = image.reshape(4, 32, 4, 32, 3).mean(axis=(1, 3)).ravel()[::2]
    return np.concatenate(
        [
            image.mean(axis=(0, 1)),
            image.std(axis=(0, 1)),
            blocks,
            spectrum,
            np.quantile(slope, np.linspace(0.1, 0.99, 14)),
        ]
    )


def test_the_background_alone_classifies_at_chance():
    """Ridge regression onto the labels: 300 scenes to fit, 200 to test."""
    drawn = [draw(seed) for seed in range(300)] + sample(200)
    x = np.array([statistics(scene.background.astype(float)) for scene in drawn])
    y = np.array([scene.label for scene in drawn])
    x = (x - x[:300].mean(axis=0)) / x[:300].std(axis=0)
    wanted = np.eye(len(CLASS_NAMES))[y[:300]] - 0.1
    weights = np.linalg.solve(x[:300].T @ x[:300] + 30 * np.eye(x.shape[1]), x[:300].T @ wanted)
    accuracy = ((x[300:] @ weights).argmax(axis=1) == y[300:]).mean()
    assert accuracy <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 200)


@pytest.mark.parametrize("weights", [(0.299, 0.587, 0.114), (1 / 3, 1 / 3, 1 / 3)])
def test_edges_find_the_object_at_most_twice_as_well_as_chance(weights):
    hits = []
    for scene in sample():
        grey = scene.image @ np.array(weights)
        edges = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1)).ravel()
        mask = scene.masks[0].ravel()
        hits.append(mask[np.argsort(edges)[-mask.sum() :]].mean())
    assert np.mean(hits) <= 2 * np.mean([scene.masks[0].mean() for scene in sample()])


def test_evidence_shape_keeps_the_outline_and_changes_the_surface():
    both, shape = draw(11, label=2), draw(11, label=2, evidence="shape")
    assert np.array_equal(both.masks, shape.masks)
    assert not np.array_equal(both.image[both.masks[0]], shape.image[both.masks[0]])


def test_evidence_shape_draws_surfaces_without_looking_at_the_label():
    from riba.testbed.scenes.drawing import _field

    for seed in range(5):
        fields = [_field(seed, 0, label, "shape", 0.1) for label in (0, 6)]
        assert np.array_equal(*fields)


def test_evidence_surface_gives_every_class_the_same_blob():
    one, two = draw(5, label=0, evidence="surface"), draw(5, label=9, evidence="surface")
    assert np.array_equal(one.masks, two.masks)
    assert set(one.parts) == {"blob", "patch"}
    assert not np.array_equal(one.image, two.image)


@pytest.mark.parametrize("others", [1, 2])
def test_several_objects_are_distinct_and_apart(others):
    for seed in range(15):
        scene = draw(seed, others=others)
        assert len(set(scene.labels)) == len(scene.masks) == 1 + others
        grown = [ndimage.binary_dilation(mask) for mask in scene.masks]
        assert np.sum(grown, axis=0).max() == 1


def test_target_and_other_are_exchangeable():
    """Neither size nor place tells which of two objects is the target."""
    pairs = np.stack([draw(seed, others=1).masks for seed in range(60)])
    area = pairs.mean(axis=(2, 3))
    centre = (pairs * np.arange(SIZE)).sum(axis=(2, 3)) / pairs.sum(axis=(2, 3))
    for quantity in (area, centre):
        difference = quantity[:, 0] - quantity[:, 1]
        assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(len(difference))


def test_the_corner_mark_depends_on_the_class_alone():
    marks = {}
    for label in range(len(CLASS_NAMES)):
        one, two = (draw(seed, label=label, shortcut=True) for seed in (label, 50 + label))
        assert np.array_equal(one.shortcut, two.shortcut)
        assert np.array_equal(one.image[one.shortcut], two.image[two.shortcut])
        assert not (one.masks.any(axis=0) & one.shortcut).any()
        marks[one.image[one.shortcut].tobytes()] = label
    assert len(marks) == len(CLASS_NAMES)


def test_the_corner_mark_changes_nothing_else():
    with_mark, without = draw(21, shortcut=True), draw(21)
    assert not without.shortcut.any()
    assert np.array_equal(with_mark.background, without.background)
    assert np.array_equal(
        (with_mark.image != without.image).any(axis=-1) & ~with_mark.shortcut,
        np.zeros((SIZE, SIZE), bool),
    )


@pytest.mark.parametrize(
    ("seed", "arguments", "says"),
    [
        (-1, {}, "whole number"),
        (1.5, {}, "whole number"),
        (0, {"label": 10}, "from 0 to 9"),
        (0, {"label": -1}, "from 0 to 9"),
        (0, {"evidence": "texture"}, "both, shape, surface"),
        (0, {"others": 3}, "0 to 2"),
    ],
)
def test_a_wrong_argument_says_what_to_give(seed, arguments, says):
    with pytest.raises(ValueError, match=says):
        draw(seed, **arguments)


def test_a_contact_sheet_lays_scenes_out_row_by_row():
    sheet = scenes.contact_sheet(sample()[:3], columns=2)
    assert sheet.shape == (2 * SIZE, 2 * SIZE, 3)
    assert np.array_equal(sheet[SIZE:, :SIZE], sample()[2].image)
    assert (sheet[SIZE:, SIZE:] == 255).all()
