"""Photos as they come: upright, in colour, at the network's size, or refused in one sentence."""

import numpy as np
import pytest
from PIL import Image

from riba.testbed import datasets

DRAW = np.random.default_rng(0)
SMALL = datasets.Preparation(32, 32, (0, 0, 0), (1, 1, 1))


def saved(folder, name, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(folder / name, **options)
    return folder / name


def test_a_photo_comes_back_as_it_is(tmp_path):
    picture = DRAW.integers(0, 256, (7, 9, 3), np.uint8)
    assert (datasets.read_photo(saved(tmp_path, "plain.png", picture)) == picture).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_exif_says(tmp_path, orientation):
    ramp = np.zeros((16, 32, 3), np.uint8)
    ramp[:8, :16] = 255  # bright where the scene is bright: top left
    stored = {
        1: ramp,
        2: ramp[:, ::-1],
        3: ramp[::-1, ::-1],
        4: ramp[::-1],
        5: ramp.transpose(1, 0, 2),
        6: np.rot90(ramp),
        7: ramp[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(ramp, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, "turned.jpg", np.ascontiguousarray(stored), exif=exif, quality=95)
    shown = datasets.read_photo(path).astype(int)
    assert shown.shape == ramp.shape
    assert np.abs(shown - ramp).mean() < 6


def test_other_kinds_of_pixels_become_colours(tmp_path):
    grey = DRAW.integers(0, 256, (5, 6), np.uint8)
    for name, mode in (("l.png", None), ("p.png", "P"), ("one.png", "1"), ("la.png", "LA")):
        shown = datasets.read_photo(saved(tmp_path, name, grey, mode))
        assert shown.shape == (5, 6, 3)
        assert shown.dtype == np.uint8
    assert (datasets.read_photo(tmp_path / "l.png") == grey[..., None]).all()
    deep = datasets.read_photo(saved(tmp_path, "deep.png", grey.astype(np.uint16) * 257))
    assert np.abs(deep.astype(int) - grey[..., None]).max() <= 1
    cmyk = datasets.read_photo(saved(tmp_path, "c.jpg", np.full((8, 8, 3), 90, np.uint8), "CMYK"))
    assert np.abs(cmyk.astype(int) - 90).max() < 12


def test_what_is_transparent_becomes_white(tmp_path):
    picture = np.zeros((4, 4, 4), np.uint8)
    picture[..., 3] = [0, 128, 255, 255]
    shown = datasets.read_photo(saved(tmp_path, "clear.png", picture))
    assert shown[0, :, 0].tolist() == [255, 127, 0, 0]


def test_a_file_that_is_no_picture_is_refused(tmp_path):
    path = tmp_path / "holiday.jpg"
    path.write_text("dear diary")
    with pytest.raises(ValueError, match=r"holiday\.jpg is not a picture, whatever its name says"):
        datasets.read_photo(path)
    with pytest.raises(FileNotFoundError, match="no photo at"):
        datasets.read_photo(tmp_path / "gone.jpg")
    with pytest.raises(FileNotFoundError, match="no photo at"):
        datasets.read_photo(tmp_path)


def test_a_truncated_photo_is_refused(tmp_path):
    noise = DRAW.integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("cut.jpg", "cut.png"):
        path = saved(tmp_path, name, noise)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=f"{name} cannot be read, it may be damaged"):
            datasets.read_photo(path)


@pytest.mark.parametrize("size", [(20_000, 10_000), (11_000, 10_000)])
def test_a_bomb_is_refused_before_it_is_opened(tmp_path, size):
    path = tmp_path / "bomb.png"
    Image.new("1", size).save(path)
    with pytest.raises(ValueError, match=r"bomb\.png has .*pixels.*make it smaller first"):
        datasets.read_photo(path)


def test_a_large_jpeg_is_read(tmp_path):
    path = saved(tmp_path, "large.jpg", np.full((3000, 4000, 3), 120, np.uint8))
    shown = datasets.read_photo(path)
    assert shown.shape[1] >= 1000
    assert shown.shape[1] / shown.shape[0] == pytest.approx(4 / 3, rel=0.01)


@pytest.mark.parametrize(("height", "width"), [(40, 100), (100, 40), (64, 64), (1, 1)])
def test_the_middle_square_is_kept(height, width):
    picture = np.full((height, width, 3), 200, np.uint8)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    picture[top : top + side, left : left + side] = 50
    shown = SMALL.square(picture)
    assert shown.shape == (32, 32, 3)
    assert np.abs(shown[4:-4, 4:-4].astype(int) - 50).max() <= 2


def test_a_very_wide_photo_is_square_afterwards():
    assert SMALL.square(np.zeros((1, 500, 3), np.uint8)).shape == (32, 32, 3)
