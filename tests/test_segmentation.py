"""Loaders of photos and masks, each on a small folder in its data set's true layout."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.models import VGG16_Weights

import riba
from riba.compare import metrics
from riba.storage import DATA
from riba.testbed import datasets, segmentation
from riba.testbed.datasets import Preparation

PREPARE = Preparation(64, 56, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
WHOLE = Preparation(32, 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
DRAW = np.random.default_rng(0)


def colours(height, width):
    return DRAW.integers(0, 256, (height, width, 3), np.uint8)


def save_palette(path, codes):
    image = Image.fromarray(codes.astype(np.uint8), "P")
    image.putpalette([value for code in range(256) for value in (code, 255 - code, code // 2)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def boxes(height, width, **objects):
    """Codes with a void border around every object, as VOC draws them."""
    codes = np.zeros((height, width), np.uint8)
    for name, (top, left, bottom, right) in objects.items():
        codes[top - 1 : bottom + 1, left - 1 : right + 1] = 255
        codes[top:bottom, left:right] = int(name.split("_")[1])
    return codes


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    pictures = {
        "2007_000001": boxes(40, 60, a_15=(4, 4, 20, 20), b_12=(22, 30, 36, 56)),
        "2007_000002": boxes(50, 50, a_8=(10, 10, 20, 20), b_8=(30, 30, 44, 44)),
        "2007_000003": np.zeros((30, 30), np.uint8),
    }
    for name, codes in pictures.items():
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours(*codes.shape)).save(root / "JPEGImages" / f"{name}.jpg")
        save_palette(root / "SegmentationClass" / f"{name}.png", codes)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("\n".join(pictures) + "\n")
    return tmp_path


@pytest.fixture
def pets(tmp_path):
    root = tmp_path / "oxford-iiit-pet"
    (root / "annotations" / "trimaps").mkdir(parents=True)
    (root / "images").mkdir()
    for name in ("Abyssinian_201", "american_bulldog_10"):
        Image.fromarray(colours(40, 40)).save(root / "images" / f"{name}.jpg")
        trimap = np.full((40, 40), 2, np.uint8)
        trimap[9:31, 9:31], trimap[10:30, 10:30] = 3, 1
        Image.fromarray(trimap).save(root / "annotations" / "trimaps" / f"{name}.png")
    (root / "annotations" / "test.txt").write_text(
        "# image class species breed\nAbyssinian_201 1 1 1\namerican_bulldog_10 2 2 1\n"
    )
    return tmp_path


@pytest.fixture
def own(tmp_path):
    images, masks = tmp_path / "photos", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    for name in ("dog", "cat"):
        Image.fromarray(colours(40, 50)).save(images / f"{name}.JPG")
        mask = np.zeros((40, 50), np.uint8)
        mask[10:30, 15:35] = 255
        Image.fromarray(mask).save(masks / f"{name}.png")
    return images, masks


@pytest.fixture
def imagenet_s(tmp_path):
    root = tmp_path / "imagenet-s" / "ImageNetS300"
    for wordnet, name, code in (("n01440764", "val_1", 1), ("n13054560", "val_2", 300)):
        for folder in ("validation", "validation-segmentation"):
            (root / folder / wordnet).mkdir(parents=True)
        Image.fromarray(colours(40, 50)).save(root / "validation" / wordnet / f"{name}.JPEG")
        codes = np.zeros((40, 50), int)
        codes[9:31, 9:31], codes[10:30, 10:30], codes[35:, :9] = 1000, code, 255
        save_two_channels(root / "validation-segmentation" / wordnet / f"{name}.png", codes)
    return root.parent


def save_two_channels(path, codes):
    rgb = np.stack([codes % 256, codes // 256, np.zeros_like(codes)], axis=2)
    Image.fromarray(rgb.astype(np.uint8)).save(path)


LOADERS = ["voc", "pet", "folder", "imagenet-s"]


def loaded(request, name, prepare):
    fixtures = {"pet": "pets", "folder": "own", "imagenet-s": "imagenet_s"}
    root = request.getfixturevalue(fixtures.get(name, name))
    if name == "folder":
        return segmentation.folder(*root, prepare, {"dog": 1, "cat": 0})
    return segmentation.DATA_SETS[name][0](root, prepare)


@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_gives_samples(request, name):
    photos = loaded(request, name, PREPARE)
    samples, bad = segmentation.readable(photos)
    assert len(samples) == len(photos) >= 2
    assert not bad
    for sample in samples:
        assert sample.image.shape == (3, 56, 56)
        assert sample.image.dtype == torch.float32
        assert sample.mask.shape == (56, 56)
        assert sample.mask.dtype == torch.bool
        assert 0 < sample.mask.double().mean() < 0.6
        assert photos.class_names[sample.label] in sample.name
        for other in (sample.other, sample.void):
            assert other is None or not (other & sample.mask).any()
    assert len({sample.name for sample in samples}) == len(samples)


def write_mask(name, entry, on):
    """The mask of an entry in its data set's own way: its object where ``on`` says so."""
    if name == "imagenet-s":
        save_two_channels(entry.mask, on * entry.code)
    elif name == "folder":
        Image.fromarray(on.astype(np.uint8) * 255).save(entry.mask)
    elif name == "pet":
        Image.fromarray(np.where(on, 1, 2).astype(np.uint8)).save(entry.mask)
    else:
        save_palette(entry.mask, on * entry.code)


def odd_picture(kind):
    """H×W×3 with a bright object, where the object is, and how Pillow is to save it."""
    height, width = {"one pixel": (1, 1), "very wide": (20, 3000)}.get(kind, (40, 60))
    on = np.zeros((height, width), bool)
    middle = slice(width // 2 - height // 4, width // 2 + height // 4 + 1)
    on[height // 4 : height // 2 + 1, middle] = True
    picture = np.where(on[..., None], 230, 20).astype(np.uint8).repeat(3, axis=2)
    if kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise when shown
        return np.rot90(picture), on, {"exif": exif}
    return picture, on, {}


@pytest.mark.parametrize("kind", ["grey", "cmyk", "rotated", "one pixel", "very wide"])
@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_reads_odd_pictures(request, name, kind):
    photos = loaded(request, name, PREPARE)
    picture, on, how = odd_picture(kind)
    mode = {"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB")
    Image.fromarray(picture).convert(mode).save(photos.entries[0].image, "JPEG", **how)
    write_mask(name, photos.entries[0], on)
    sample = photos[0]
    assert sample.image.shape == (3, 56, 56)
    assert torch.isfinite(sample.image).all()
    bright = PREPARE.to_rgb(sample.image).mean(2)
    assert bright[sample.mask].mean() > 0.75
    assert kind == "one pixel" or bright[~sample.mask].mean() < 0.25


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("which", ["image", "mask"])
def test_every_loader_names_a_damaged_file_and_goes_on(request, name, which):
    photos = loaded(request, name, PREPARE)
    path = getattr(photos.entries[0], which)
    shared = [place for place, e in enumerate(photos.entries) if getattr(e, which) == path]
    path.write_bytes(path.read_bytes()[:60])
    samples, bad = segmentation.readable(photos)
    assert len(samples) == len(photos) - len(shared) >= 1
    assert list(bad) == shared
    assert all(path.name in words for words in bad.values())
    if which == "mask":  # a loader that reads masks to find objects goes on as well
        assert len(segmentation.readable(loaded(request, name, PREPARE))[0]) == len(samples)


def test_imagenet_s_counts_in_two_bytes(imagenet_s):
    photos = segmentation.imagenet_s(imagenet_s, WHOLE)
    assert [(sample.name, sample.label) for sample in photos] == [
        ("val_1-tench", 0),
        ("val_2-bolete", 997),
    ]
    for sample in photos:  # 1000 is unclear, 255 a class like any other
        assert sample.mask.any()
        assert sample.void.any()
        assert sample.other.any()
    again = segmentation.imagenet_s(imagenet_s / "ImageNetS300", WHOLE)
    assert [sample.name for sample in again] == [sample.name for sample in photos]
    other = imagenet_s / "ImageNetS300" / "validation-segmentation" / "n99999999"
    other.mkdir()
    save_two_channels(other / "val_3.png", np.zeros((5, 5), int))
    with pytest.raises(ValueError, match="ImageNetS300 has no class n99999999"):
        segmentation.imagenet_s(imagenet_s, WHOLE)
    with pytest.raises(FileNotFoundError, match="does not hold ImageNet-S"):
        segmentation.imagenet_s(imagenet_s, WHOLE, split="train-semi")


def test_the_table_of_imagenet_is_torchvisions_and_complete():
    table = pd.read_csv(DATA / "imagenet_classes.csv")
    assert list(table["imagenet"]) == list(range(1000))
    assert list(table["name"]) == VGG16_Weights.IMAGENET1K_V1.meta["categories"]
    assert list(table["wordnet"]) == sorted(set(table["wordnet"]))
    known = {"n01440764": "tench", "n02123597": "Siamese cat", "n13054560": "bolete"}
    assert dict(zip(table["wordnet"], table["name"], strict=True)).items() >= known.items()
    for count in (50, 300, 919):
        codes = table.loc[table[f"s{count}"] > 0, f"s{count}"]
        assert list(codes) == list(range(1, count + 1))
        assert set(table.index[table["s50"] > 0]) <= set(codes.index)


def test_voc_has_a_sample_per_photo_and_class(voc):
    photos = segmentation.voc(voc / "VOCdevkit" / "VOC2012", WHOLE)
    found = [(sample.name, sample.label) for sample in photos]
    assert found == [
        ("2007_000001-dog", 11),
        ("2007_000001-person", 14),
        ("2007_000002-cat", 7),
    ]
    dog, person, cats = photos
    assert dog.mask.equal(person.other)
    assert cats.other is None
    assert dog.void.any()
    assert segmentation.VOC_CLASSES.index("tvmonitor") == 19


def test_the_unclear_border_of_a_trimap_is_void(pets):
    sample = segmentation.pet(pets, Preparation(40, 40, (0, 0, 0), (1, 1, 1)))[0]
    assert (sample.mask.sum(), sample.void.sum()) == (400, 22**2 - 400)
    assert sample.name == "Abyssinian_201-Abyssinian"


def test_image_and_mask_are_cropped_alike(tmp_path):
    for height, width in ((60, 90), (90, 60), (64, 64), (33, 257)):
        picture = np.zeros((height, width, 3), np.uint8)
        mask = np.zeros((height, width), np.uint8)
        half = min(height, width) // 4
        rows = slice(height // 2 - half, height // 2 + half // 2)
        columns = slice(width // 2 - half, width // 2 + half // 3)
        picture[rows, columns], mask[rows, columns] = 255, 7
        bright = WHOLE.image(picture)[0] > 0.5
        assert (bright != torch.from_numpy(WHOLE.square(mask) == 7)).double().mean() < 0.02


def test_a_preparation_is_torchvisions():
    transforms = VGG16_Weights.IMAGENET1K_V1.transforms()
    prepare = Preparation.of(transforms)
    assert (prepare.resize, prepare.crop) == (256, 224)
    ramp = np.linspace(0, 255, 300 * 400 * 3).reshape(300, 400, 3).astype(np.uint8)
    theirs = transforms(Image.fromarray(ramp))
    ours = prepare.image(ramp)
    assert ours.shape == theirs.shape
    assert torch.equal(ours, theirs)


def test_codes_keep_their_numbers():
    codes = DRAW.integers(0, 1000, (50, 70), np.int32)
    assert set(np.unique(PREPARE.square(codes))) <= set(np.unique(codes))
    assert WHOLE.square(np.full((1, 1), 900, np.int32))[0, 0] == 900
    assert WHOLE.square(np.zeros((1, 50_000), np.int32)).shape == (32, 32)  # not via 32×1.6M


def test_photos_without_masks_are_samples_too(own, tmp_path):
    photos = segmentation.unmasked(own[0], WHOLE)
    assert [(s.name, s.mask, s.label) for s in photos] == [
        ("cat.JPG", None, None),
        ("dog.JPG",) + (None,) * 2,
    ]
    alone = segmentation.unmasked(own[0] / "dog.JPG", WHOLE)
    assert torch.equal(alone[0].image, photos[1].image)
    with pytest.raises(FileNotFoundError, match="no photo and no folder at"):
        segmentation.unmasked(tmp_path / "gone", WHOLE)


def test_photos_are_spread_and_slices_are_photos(voc):
    photos = segmentation.voc(voc, WHOLE)
    assert [entry.name for entry in photos.spread(9).entries] == ["2007_000001", "2007_000002"]
    assert len(photos.spread(1)) == 1
    assert [sample.name for sample in photos[1:]] == [photos[1].name, photos[2].name]
    before = photos.digest()
    assert before == segmentation.voc(voc, WHOLE).digest()
    assert before != segmentation.voc(voc, PREPARE).digest()
    photos.entries[0].image.write_bytes(b"another")
    assert before != photos.digest()


def test_batches_leave_out_what_cannot_be_read(own):
    photos = segmentation.unmasked(own[0], WHOLE)
    (batch,) = segmentation.batches(photos)
    assert torch.equal(batch, torch.stack([sample.image for sample in photos]))
    one, two = segmentation.batches(photos, size=1)
    assert torch.equal(torch.cat([one, two]), batch)
    photos.entries[0].image.write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"1 photos were left out: cat\.JPG is not a picture"):
        assert len(next(iter(list(segmentation.batches(photos))))) == 1


def test_splits_say_what_is_missing(voc, tmp_path):
    shown, reference = segmentation.splits("voc", voc, WHOLE)
    assert shown.digest() == reference.digest()  # no train.txt here
    with pytest.raises(ValueError, match=r"no data set 'vocs'; near matches: voc"):
        segmentation.splits("vocs", voc, WHOLE)
    with pytest.raises(ValueError, match="where is voc"):
        segmentation.splits("voc", None, WHOLE)
    with pytest.raises(FileNotFoundError, match="does not hold VOC2012"):
        segmentation.splits("voc", tmp_path / "gone", WHOLE)


def test_bad_files_are_named_and_do_not_stop_a_run(voc):
    root = voc / "VOCdevkit" / "VOC2012"
    photos = segmentation.voc(voc, WHOLE)
    image = root / "JPEGImages" / "2007_000001.jpg"
    image.write_bytes(image.read_bytes()[:200])
    samples, bad = segmentation.readable(photos)
    assert [sample.name for sample in samples] == ["2007_000002-cat"]
    assert set(bad) == {0, 1}
    assert all("2007_000001.jpg cannot be read" in words for words in bad.values())
    image.unlink()
    with pytest.raises(FileNotFoundError, match=r"no photo at .*2007_000001\.jpg"):
        photos[0]


def test_a_mask_of_another_size_is_refused(own):
    images, masks = own
    Image.fromarray(np.zeros((41, 50), np.uint8)).save(masks / "cat.png")
    photos = segmentation.folder(images, masks, WHOLE, {"dog": 1, "cat": 0})
    with pytest.raises(ValueError, match=r"cat\.JPG has 50×40 pixels, its mask 50×41"):
        photos[0]


def test_a_large_photo_fits_its_mask(own):
    images, masks = own
    Image.fromarray(np.full((2400, 3000, 3), 90, np.uint8)).save(images / "cat.JPG")
    mask = np.zeros((2400, 3000), np.uint8)
    mask[1000:1400, 1200:1800] = 255
    Image.fromarray(mask).save(masks / "cat.png")
    photos = segmentation.folder(images, masks, WHOLE, {"dog": 1, "cat": 0})
    assert photos[0].mask.sum() > 20


def test_an_object_that_the_crop_leaves_out_is_reported(own):
    images, masks = own
    mask = np.zeros((40, 50), np.uint8)
    mask[:, :2] = 255
    Image.fromarray(mask).save(masks / "cat.png")
    photos = segmentation.folder(images, masks, PREPARE, {"dog": 1, "cat": 0})
    samples, bad = segmentation.readable(photos)
    assert len(samples) == 1
    assert "cat-class 0: nothing of its object is left" in bad[0]


def test_what_is_missing_is_said_in_words(voc, pets, own, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not hold VOC2012"):
        segmentation.voc(tmp_path / "nowhere", WHOLE)
    with pytest.raises(FileNotFoundError, match="is this split part of the data set"):
        segmentation.voc(voc, WHOLE, split="test")
    with pytest.raises(FileNotFoundError, match="does not hold oxford-iiit-pet"):
        segmentation.pet(own[0], WHOLE)
    with pytest.raises(FileNotFoundError, match="no folder"):
        segmentation.folder(tmp_path / "gone", own[1], WHOLE, {})
    with pytest.raises(ValueError, match="no photos in"):
        segmentation.folder(voc, own[1], WHOLE, {})
    with pytest.warns(UserWarning, match=r"1 photos left out: cat\.JPG has no label that is known"):
        assert len(segmentation.folder(*own, WHOLE, {"dog": 1})) == 1
    (own[1] / "cat.png").unlink()
    with pytest.warns(UserWarning, match=r"1 photos left out: cat\.JPG has no mask"):
        assert len(segmentation.folder(*own, WHOLE, {"dog": 1, "cat": 0})) == 1
    with (
        pytest.warns(UserWarning, match="2 photos left out"),
        pytest.raises(ValueError, match=r"no photo of .* has a mask and a label"),
    ):
        segmentation.folder(*own, WHOLE, {})


def test_labels_may_be_names(own):
    labels, names = {"dog": "hound", "cat": "tabby"}, ("tabby", "tench", "hound")
    photos = segmentation.folder(*own, WHOLE, labels, names)
    assert {entry.name: entry.label for entry in photos.entries} == {"dog": 2, "cat": 0}
    with pytest.raises(ValueError, match="pass class_names="):
        segmentation.folder(*own, WHOLE, labels)
    with pytest.warns(UserWarning, match="has no label that is known"):
        assert len(segmentation.folder(*own, WHOLE, labels, names[:2])) == 1


def test_a_palette_of_greys_in_any_order_is_a_grey_mask(tmp_path):
    mask = Image.fromarray(1 - SQUARE, "P")
    mask.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white
    mask.save(tmp_path / "mask.png")
    assert np.array_equal(segmentation.silhouette(tmp_path / "mask.png"), SQUARE)


SQUARE = np.pad(np.ones((4, 4)), 2).astype(np.uint8)


def paletted():
    mask = Image.fromarray(SQUARE, "P")
    mask.putpalette([0, 0, 0, 128, 0, 0])
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(SQUARE),
        Image.fromarray(SQUARE * 255),
        Image.fromarray(SQUARE.astype(bool)),
        paletted(),
        Image.fromarray(SQUARE.astype(np.uint16) * 65535),
        Image.fromarray(SQUARE.astype(np.float32)),
        Image.fromarray(SQUARE * 255).convert("RGB"),
    ],
    ids=["0-1", "0-255", "boolean", "palette", "16 bits", "float", "RGB"],
)
def test_masks_as_people_have_them(mask, tmp_path):
    mask.save(tmp_path / "mask.tiff")
    assert np.array_equal(segmentation.silhouette(tmp_path / "mask.tiff"), SQUARE)


def test_other_photos_of_the_same_names_and_sizes_have_another_digest(tmp_path):
    digests = set()
    for level in (20, 200):
        folder = tmp_path / str(level)
        folder.mkdir()
        for number in range(3):
            Image.new("RGB", (40, 40), (level,) * 3).save(folder / f"{number}.bmp")
        digests.add(segmentation.unmasked(folder, WHOLE).digest())
    assert len(digests) == 2


def test_subfolders_on_demand(tmp_path):
    (tmp_path / "deep").mkdir()
    for place in ("a.png", "deep/a.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / place)
    assert [e.name for e in segmentation.unmasked(tmp_path, WHOLE).entries] == ["a.png"]
    photos = segmentation.unmasked(tmp_path, WHOLE, subfolders=True)
    assert [entry.name for entry in photos.entries] == ["a.png", "deep-a.png"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert len(segmentation.unmasked("~", WHOLE)) == 1
    assert datasets.read_photo("~/a.png").shape == (8, 8, 3)


def test_a_mask_with_colours_is_refused(voc):
    path = voc / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000002.png"
    Image.open(path).convert("RGB").save(path)
    _, bad = segmentation.readable(segmentation.voc(voc, WHOLE))
    assert "2007_000002.png holds colours, not the numbers of classes (RGB)" in bad[2]


def test_sets_of_imagenet_classes_are_complete_and_true():
    categories = VGG16_Weights.IMAGENET1K_V1.meta["categories"]
    table = pd.read_csv(DATA / "imagenet_sets.csv")
    for row in table.itertuples():
        assert categories[row.imagenet] == row.name
    for data_set in ("voc", "pet"):
        sets = segmentation.imagenet_sets(data_set)
        numbers = [number for found in sets.values() for number in found]
        assert len(numbers) == len(set(numbers))  # no class stands for two
        assert sum(map(len, sets.values())) == (table["data_set"] == data_set).sum()
    voc = segmentation.imagenet_sets("voc")
    assert set(segmentation.VOC_CLASSES) - set(voc) == {"person"}
    assert (len(voc["dog"]), len(voc["cat"]), len(voc["bird"])) == (118, 5, 59)
    with pytest.raises(ValueError, match="there are tables for voc, pet"):
        segmentation.imagenet_sets("coco")


def test_void_pixels_count_in_no_metric(home):
    wb = riba.load()
    sample = wb.test[3]
    void = torch.zeros_like(sample.mask)
    void[:, :80] = True
    marked = riba.datasets.Sample(
        sample.image, sample.label, sample.mask & ~void, name="marked", void=void
    )
    table = riba.evaluate(wb, ["edges"], [sample, marked], ["allocation_area", "mass_accuracy"])
    assert set(table["sample"]) == {sample.name, "marked"}
    maps = riba.METHODS["edges"](wb, sample.image[None], [sample.label])
    rows = table[(table["sample"] == "marked")].set_index(["metric", "mask"])["value"]
    band = metrics.border_band(marked.mask[None])
    for metric, measure in (
        ("allocation_area", metrics.allocation_area),
        ("mass_accuracy", metrics.mass_accuracy),
    ):
        strict = measure(maps, marked.mask[None], void[None]).item()
        banded = measure(maps, marked.mask[None], void[None] | band).item()
        assert rows[metric, "strict"] == pytest.approx(strict)
        assert rows[metric, "banded"] == pytest.approx(banded)
        plain = measure(maps, marked.mask[None]).item()
        assert strict != pytest.approx(plain)
