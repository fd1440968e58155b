"""Photos as they come, and photomontages: exact masks, disjoint splits, fair to the network."""

import io
import subprocess
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import riba
from benchmarks.photos import TABLE as FAIRNESS
from benchmarks.photos import Judge, fairness
from riba.storage import DATA
from riba.testbed import datasets, photos
from tools import photos as get_photos

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


# --- photomontages -------------------------------------------------------------------------------

CLASSES = ("hen", "lion", "tiger", "alp")
TINY = datasets.Preparation(64, 64, (0.5,) * 3, (0.5,) * 3)


def disc(folder, name, colour, height=40, width=30):
    """A cut-out: an ellipse with a soft edge, in the middle of a larger transparent picture."""
    rows, columns = np.mgrid[-1.3 : 1.3 : height * 1j, -1.3 : 1.3 : width * 1j]
    alpha = np.clip((1.1 - np.hypot(rows, columns)) * 8, 0, 1) * 255
    rgba = np.dstack([np.full((height, width, 3), colour, np.uint8), alpha.astype(np.uint8)])
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    return saved(folder, name, rgba)


@pytest.fixture
def folders(tmp_path):
    """Twelve cut-outs of three classes in subfolders, and twelve backgrounds of plain colours."""
    for place in range(4):
        for number, name in enumerate(CLASSES[:3]):
            disc(tmp_path / "cutouts", f"{name}/{place}.png", (250, 80 * number, 60 * place))
    (tmp_path / "backgrounds").mkdir()
    for place in range(12):
        picture = np.full((90, 120, 3), (0, 20 * place, 255), np.uint8)
        saved(tmp_path / "backgrounds", f"{place}.png", picture)
    return tmp_path / "cutouts", tmp_path / "backgrounds"


@pytest.fixture
def collection(folders):
    return photos.collect(*folders, CLASSES)


def montages(collection, split="test", count=20, **settings):
    return photos.Montages(collection, split, count, prepare=TINY, **settings)


def test_splits_share_neither_cutout_nor_background(collection):
    for pictures in (collection.cutouts, collection.backgrounds):
        parts = [{p.file for p in pictures if p.split == split} for split in photos.SPLITS]
        assert [len(part) for part in parts] == [3, 3, 6]
        assert len(set.union(*parts)) == 12
    used = {split: montages(collection, split) for split in photos.SPLITS}
    for split, scenes in used.items():
        assert {picture.split for picture in (*scenes.cutouts, *scenes.places)} == {split}


def test_a_scene_is_the_same_every_time(collection):
    first, again = montages(collection)[7], montages(collection, count=8)[-1]
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.mask, again.mask)
    assert first.name == again.name
    images = [sample.image for sample in montages(collection)]
    assert all(not torch.equal(images[0], image) for image in images[1:])
    with pytest.raises(IndexError):
        montages(collection)[20]


def test_cutouts_take_turns_and_samples_say_which(collection):
    samples = list(montages(collection, count=12))
    groups = [sample.group for sample in samples]
    assert groups[:6] == groups[6:]
    assert len(set(groups)) == 6
    for sample in samples:
        assert sample.group.startswith(collection.label_names[sample.label])
        assert sample.group in sample.name


def test_the_mask_is_where_alpha_is_a_half_and_the_picture_is_blended_by_alpha(collection):
    for index in range(10):
        soft, hard = (montages(collection, hard=edge).scene(index) for edge in (False, True))
        mask = soft.masks[0]
        assert (mask == hard.masks[0]).all()
        assert (soft.background == hard.background).all()
        object_colour = hard.image[mask].astype(int)
        assert np.ptp(object_colour, axis=0).max() <= 4
        assert (hard.image[~mask] == hard.background[~mask]).all()
        colour, behind = object_colour.mean(0), soft.background[0, 0].astype(int)
        alpha = ((soft.image - behind) @ (colour - behind)) / ((colour - behind) ** 2).sum()
        assert alpha[mask].min() > 0.48
        assert alpha[~mask].max() < 0.52
        assert ((alpha > 0.1) & (alpha < 0.9)).sum() > 10
        rows, columns = np.nonzero(mask)
        longer = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 0.45 * 64 - 4 <= longer <= 0.8 * 64


def test_a_null_paste_is_another_background_in_the_same_outline(collection):
    for index in range(10):
        null, single = (montages(collection, kind=k).scene(index) for k in ("null", "single"))
        mask = null.masks[0]
        assert (mask == single.masks[0]).all()
        assert (null.background == single.background).all()
        assert null.labels == (None,)
        assert null.image[mask][:, 0].max() <= 1  # no red, as in no background
        inside = np.unique(null.image[mask & (null.image[..., 0] == 0)], axis=0)
        assert not (inside == null.background[0, 0]).all(1).any()
    assert montages(collection, kind="null")[0].label is None


def test_pairs_have_two_classes_and_masks_apart(collection):
    one, two = (montages(collection, kind="pair", target=target) for target in (0, 1))
    for index in range(20):
        a, b = one[index], two[index]
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.mask, b.other)
        assert torch.equal(a.other, b.mask)
        assert not (a.mask & b.mask).any()
        assert a.mask.any()
        assert b.mask.any()
        assert a.label != b.label
        assert a.name == b.name
        assert a.group == b.group


def test_montages_of_any_folder_make_a_workbench(collection, home):
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    model = nn.Sequential(*layers).eval()
    test, train = montages(collection), montages(collection, "train", 12)
    names = {"class_names": CLASSES, "sets": collection.sets}
    with pytest.warns(UserWarning, match="12 images"):
        wb = riba.Workbench.of(model, "1", test, reference=train, **names)
    assert wb.statistics.count == 12
    assert wb.statistics.dataset == train.digest() != montages(collection, "validation").digest()
    assert wb.targets([wb.test[0].label])[0].sum() == 1
    batches = list(train.batches())
    assert [len(batch) for batch in batches] == [10, 2]
    assert torch.equal(batches[1][1], train[11].image)


def tables(tmp_path, cutouts, backgrounds):
    for name, text in (("cutouts", cutouts), ("backgrounds", backgrounds)):
        (tmp_path / f"{name}.csv").write_text(text)
    return {name: tmp_path / f"{name}.csv" for name in ("cutouts", "backgrounds")}


@pytest.fixture
def tabled(folders, tmp_path):
    written = tables(
        tmp_path,
        "file,classes,split\nhen/0.png,hen,test\ntiger/1.png,lion; tiger,test\n",
        "file,split,used,class\n0.png,test,plain,\n1.png,test,scene,alp\n2.png,test,no,hen\n"
        "3.png,train,no,hen\n",
    )
    return photos.collect(*folders, CLASSES, written)


def test_a_table_gives_classes_sets_and_uses(tabled):
    assert [cutout.label for cutout in tabled.cutouts] == [0, 4]
    assert tabled.label_names == (*CLASSES, "lion or tiger")
    assert tabled.sets == ((0,), (1,), (2,), (3,), (1, 2))
    assert [(place.name, place.label) for place in tabled.backgrounds] == [
        ("0", None),
        ("1", 3),
        ("3", None),
    ]


def test_an_object_against_a_scene_has_both_labels(tabled):
    scenes = [montages(tabled, kind="scene", target=target) for target in (0, 1)]
    for thing, scene in zip(*scenes, strict=True):
        assert thing.label in (0, 4)
        assert scene.label == 3
        assert torch.equal(scene.mask, ~thing.mask)
        assert torch.equal(scene.mask, thing.other)
        assert scene.name.endswith("-on-1")
    assert {sample.name.rsplit("-", 1)[1] for sample in montages(tabled)} == {"0"}


def test_what_cannot_be_used_is_said_in_a_sentence(folders, collection, tmp_path):
    cutouts, backgrounds = folders
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: check the path"):
        photos.collect(tmp_path / "nowhere", backgrounds, CLASSES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no pictures in .*empty"):
        photos.collect(cutouts, tmp_path / "empty", CLASSES)
    with pytest.raises(ValueError, match=r"hen/0\.png is of no class of the network: no 'hen'"):
        photos.collect(cutouts, backgrounds, ("lion", "hem"))
    with pytest.raises(ValueError, match="split"):
        photos.collect(*folders, CLASSES, tables(tmp_path, "file,classes\n", "file\n"))
    for settings in ({"split": "text"}, {"kind": "triple"}):
        with pytest.raises(ValueError, match="choose one of"):
            montages(collection, **settings)
    with pytest.raises(ValueError, match="'single' has no label number 1"):
        montages(collection, target=1)
    with pytest.raises(ValueError, match="too few pictures for test-scene: 6 cut-outs, 0 back"):
        montages(collection, kind="scene")


def test_a_cutout_that_is_none_is_named(tmp_path):
    grey = np.full((8, 8), 90, np.uint8)
    clear = np.zeros((8, 8, 4), np.uint8)
    with pytest.raises(ValueError, match=r"solid\.png has no transparency"):
        photos.read_cutout(saved(tmp_path, "solid.png", grey))
    with pytest.raises(ValueError, match=r"clear\.png is transparent all over"):
        photos.read_cutout(saved(tmp_path, "clear.png", clear))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png is not a picture"):
        photos.read_cutout(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match="no cut-out at"):
        photos.read_cutout(tmp_path / "gone.png")
    piece = photos.read_cutout(disc(tmp_path, "disc.png", (9, 9, 9)))
    assert piece.size < (30, 40)
    assert piece.mode == "RGBA"


def test_a_jpeg_may_be_decoded_smaller_but_not_too_small(tmp_path):
    path = saved(tmp_path, "large.jpg", np.full((600, 900, 3), 120, np.uint8))
    assert datasets.read_photo(path, 200).shape == (300, 450, 3)
    assert datasets.read_photo(path, 400).shape == (600, 900, 3)


# --- the photographs that `make photos` gets -----------------------------------------------------

HERE = all((photos.FETCHED / kind).is_dir() for kind in photos.TABLES)
fetched = pytest.mark.skipif(not HERE, reason="the photographs are not here: run `make photos`")


@pytest.mark.parametrize("kind", photos.TABLES)
def test_the_tables_name_classes_of_imagenet_and_sources(kind):
    table = pd.read_csv(photos.TABLES[kind], dtype=str, keep_default_na=False)
    known = set(pd.read_csv(DATA / "imagenet_classes.csv")["name"])
    column = "classes" if kind == "cutouts" else "class"
    assert {name for classes in table[column] for name in classes.split("; ")} <= known
    assert table["file"].is_unique
    assert (table[["package", "source", "licence", "sha256"]] != "").all(axis=None)
    assert set(table["split"]) == set(photos.SPLITS)
    counts = table["split"].value_counts()
    assert kind != "cutouts" or (counts["test"] >= 45 and counts["validation"] >= 20)


def test_the_readme_counts_what_the_tables_list():
    text = " ".join((DATA / "README.md").read_text().split())
    read = {kind: pd.read_csv(table)["split"] for kind, table in photos.TABLES.items()}
    counts = {split: [(part == split).sum() for part in read.values()] for split in photos.SPLITS}
    totals = [len(part) for part in read.values()]
    for phrase, numbers in {
        "{} cut-outs and {} photographs out of": totals,
        "{} cut-outs on {} backgrounds for testing": counts["test"],
        "{} on {} for validation": counts["validation"],
        "{} on {} for the feature statistics": counts["train"],
    }.items():
        assert phrase.format(*numbers) in text


def test_sure_backgrounds_are_in_no_test_or_validation_scene():
    table = pd.read_csv(photos.TABLES["backgrounds"], keep_default_na=False)
    judged = table[table["split"] != "train"]
    assert (judged["used"] != "no").all()
    assert (judged["note"] == "").all()
    assert (judged["p"][judged["used"] == "plain"] < 0.4).all()


def test_without_photographs_a_sentence_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(photos, "FETCHED", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"run `make photos`, or see data/README\.md"):
        riba.load("efficientnet-lite0", data="photos")


@fetched
def test_the_real_network_comes_with_photographs_and_masks(home):
    with pytest.warns(UserWarning, match="40 images"):
        wb = riba.load("efficientnet-lite0", data="photos")
    groups = [{c.name for c in part.cutouts} for part in (wb.train, wb.validation, wb.test)]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert wb.statistics.dataset.startswith("montages-train-")
    sample = wb.test[0]
    assert sample.image.shape == (3, 224, 224)
    assert sample.mask.shape == (224, 224)
    targets = wb.targets([sample.label])
    assert targets.shape == (1, 1000)
    assert targets[0].nonzero()[:, 0].tolist() == list(wb.classes(sample.label))
    maps = riba.METHODS["grad-cam"](wb, sample.image[None], targets)
    assert maps.shape == (1, 224, 224)


@fetched
def test_montages_are_fair():
    """The bars, on fewer scenes than the table of the benchmark has."""
    measures = fairness(Judge(), 52)
    assert measures["background alone names the object's class"] <= 0.02
    assert measures["object named right"] >= 0.5
    assert 0.05 <= measures["mean area of the object"] <= 0.3
    assert measures["smallest area of the object"] >= 0.01
    assert measures["pairs with both classes in the top five"] >= 0.1
    assert measures["object against scene, both classes in the top five, how many"] >= 5


def test_the_table_of_fairness_keeps_the_bars():
    table = pd.read_csv(FAIRNESS).set_index("measure")["value"]
    assert table["background alone names the object's class"] <= 0.01
    assert table["object named right"] >= 0.5
    assert table["cut-outs named right in a scene"] >= 45
    assert table["pairs with both classes in the top five, how many"] >= 100
    assert table["object against scene, both classes in the top five, how many"] >= 60


# --- how they are got ----------------------------------------------------------------------------


def package(place, files, magic=b"!<arch>\n"):
    """A Debian package of these files, by path."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(f"./{path}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        "data.tar.xz": packed.getvalue(),
    }
    with place.open("wb") as file:
        file.write(magic)
        for name, content in members.items():
            header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
            file.write(header.encode() + content + b"\n" * (len(content) % 2))
    return place


@pytest.fixture
def wanted(tmp_path, monkeypatch):
    """Tables that list one file of each kind; the package that holds both is not there yet."""
    files = {"usr/share/hen.png": b"hen", "usr/share/alp.jpg": b"alp"}
    digests = [get_photos.digest_of(content) for content in files.values()]
    written = tables(
        tmp_path,
        f"file,package,source,sha256\nhen.png,birds,usr/share/hen.png,{digests[0]}\n",
        f"file,package,source,sha256\nalp.jpg,birds,usr/share/alp.jpg,{digests[1]}\n",
    )
    monkeypatch.setattr(get_photos, "TABLES", written)
    monkeypatch.setattr(get_photos.shutil, "which", lambda _name: None)
    return tmp_path, files


def test_pictures_are_taken_out_of_a_package_that_was_put_there(wanted, capsys):
    place, files = wanted
    deb = package(place / "birds_1.0_all.deb", {"usr/share/doc": b"", **files})
    get_photos.main(["--out", str(place)])
    assert (place / "cutouts" / "hen.png").read_bytes() == b"hen"
    assert (place / "backgrounds" / "alp.jpg").read_bytes() == b"alp"
    assert "birds: 2 pictures are in" in capsys.readouterr().out
    deb.unlink()
    get_photos.main(["--out", str(place)])  # nothing is missing
    (place / "cutouts" / "hen.png").write_bytes(b"he")
    with pytest.raises(SystemExit, match=r"birds is not here .*put its \.deb into"):
        get_photos.main(["--out", str(place)])


def test_a_package_is_downloaded_and_what_apt_says_is_passed_on(wanted, monkeypatch):
    place, files = wanted
    commands = []

    def apt(command, *, cwd, **_settings):
        commands.append(command[2])
        if online and "update" in commands:
            package(cwd / "birds_1.0_all.deb", files)
        return subprocess.CompletedProcess(command, 100, "", "W: odd\nE: no package birds\n")

    monkeypatch.setattr(get_photos.shutil, "which", lambda name: name)
    monkeypatch.setattr(get_photos.subprocess, "run", apt)
    online = False
    with pytest.raises(SystemExit, match=r"cannot download birds \(E: no package birds\): try"):
        get_photos.main(["--out", str(place)])
    assert commands == ["download", "update", "download"]
    online = True
    get_photos.main(["--out", str(place)])
    assert (place / "cutouts" / "hen.png").read_bytes() == b"hen"
    assert not list(place.glob("**/*.deb"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"usr/share/hen.png": b"cock"}, "holds another usr/share/hen.png than the tables"),
        ({}, "lacks 2 files"),
    ],
)
def test_a_wrong_package_is_said(wanted, change, sentence):
    place, files = wanted
    package(place / "birds_1.0_all.deb", {**files, **change} if change else {})
    with pytest.raises(SystemExit, match=sentence):
        get_photos.main(["--out", str(place)])


def test_a_damaged_package_is_said(wanted):
    place, files = wanted
    path = package(place / "birds_1.0_all.deb", files)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SystemExit, match=r"birds_1\.0_all\.deb cannot be unpacked"):
        get_photos.main(["--out", str(place)])
    package(path, files, magic=b"no deb!\n")
    with pytest.raises(SystemExit, match="it is not a Debian package"):
        get_photos.main(["--out", str(place)])


@pytest.mark.parametrize(("top", "expected"), [(1.0, 127.5), (255.0, 127.5)])
def test_float_pictures_are_scaled(top, expected, tmp_path):
    grey = np.linspace(0, top, 100, dtype=np.float32).reshape(10, 10)
    Image.fromarray(grey).save(tmp_path / "scan.tif")
    assert datasets.read_photo(tmp_path / "scan.tif").mean() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("values", [(-1, 1), (0, 4000), (np.nan, 1)])
def test_float_pictures_of_another_range_are_refused(values, tmp_path):
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "scan.tif")
    with pytest.raises(ValueError, match=r"scan.tif holds values from .*: scale them"):
        datasets.read_photo(tmp_path / "scan.tif")


def test_grey_preparation():
    prepare = datasets.Preparation(8, 8, (0.5,), (0.25,))
    image = prepare.image(np.full((10, 10, 3), 128, np.uint8))
    assert image.shape == (1, 8, 8)
    assert prepare.to_rgb(image).shape == (8, 8, 3)


def test_the_card_says_what_was_measured():
    card = (DATA / "efficientnet_lite0.md").read_text(encoding="utf-8")
    betas = pd.read_csv(DATA / "betas.csv").query("network == 'efficientnet-lite0'")
    assert set(betas["layers"].str.split().str.len()) == {1, 3}
    for row in betas.itertuples():
        name = "all three together" if " " in row.layers else f"`{row.layers}`"
        (line,) = [line for line in card.splitlines() if line.startswith(f"| {name}")]
        assert f"| {row.beta:g} | {row.kept:.2f} |" in line
    assert f"half of {betas['scenes'].iloc[0]} validation montages" in card
    measured = pd.read_csv(FAIRNESS).set_index("measure")["value"]
    for measure in ("object named right", "background alone names the object's class"):
        assert f"{measured[measure]:.1%}".replace("%", " %") in card
