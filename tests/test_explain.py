"""From a folder to maps, from a shell."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import wraps

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.models import get_model

import riba
from riba import explain
from riba.compare.methods import METHODS
from riba.method.network import fingerprint
from riba.show import plots
from riba.testbed import networks

pytestmark = pytest.mark.filterwarnings("ignore:feature statistics from")


@pytest.fixture(scope="module")
def wb(home):
    return riba.load()


@pytest.fixture
def photos(wb, tmp_path):
    """Two scenes and a text that calls itself a picture."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for place in range(2):
        Image.fromarray(wb.test.scene(place).image).save(folder / f"scene{place}.png")
    (folder / "text.jpg").write_text("no picture")
    return folder


def command(photos, out, *words):
    explain.main([str(photos), "--out", str(out), *words])


def test_a_folder_becomes_maps_pictures_and_a_table(wb, photos, tmp_path, capsys):
    out = tmp_path / "out"
    command(photos, out, "--method", "relevance-iba")
    said = capsys.readouterr().out
    assert f"2 maps in {out}" in said
    assert "left out: text.jpg: text.jpg is not a picture" in said
    table = pd.read_csv(out / "maps.csv")
    assert list(table["photo"]) == ["scene0.png", "scene1.png"]
    assert set(table["unit"]) == {"nats"}
    for place, row in table.iterrows():
        sample = wb.test[place]
        assert row["class"] == row["predicted"] == wb.class_names[sample.label]
        expected = METHODS["relevance-iba"](wb, sample.image[None], [sample.label])[0]
        with np.load(out / f"{row['photo']}.npz") as kept:
            np.testing.assert_allclose(kept["map"], expected, rtol=1e-4, atol=1e-5)
            assert kept["target"] == sample.label
            assert kept["probability"].argmax() == sample.label
        assert row["sum"] == pytest.approx(expected.sum().item(), rel=1e-3)
        shown = np.asarray(Image.open(out / f"{row['photo']}.png"))
        assert shown.shape[1] > 3 * shown.shape[0]
        assert shown.std() > 10
    assert not list(out.glob(".*"))


def test_a_sheet_names_class_method_unit_and_total(wb):
    rgb = wb.to_rgb(wb.test[0].image).numpy()
    for name, sign, unit, total in (
        ("iba", 1, "bits / pixel", "16384.0 bits in all"),
        ("lrp-epsilon-plus", -1, "logits / pixel", "-16384.0 logits in all"),
        ("edges", 1, "no unit / pixel", "over the photo"),
    ):
        figure = explain.sheet(rgb, sign * torch.ones(128, 128), "fish, p = 0.93", name)
        photo, alone, over, bar = figure.axes
        assert [ax.get_title() for ax in (photo, alone, over)] == ["fish, p = 0.93", name, total]
        assert bar.get_ylabel() == unit
        assert np.array_equal(photo.images[0].get_array(), rgb)
        assert (alone.images[0].get_clim()[0] < 0) == (sign < 0)


def test_what_is_there_is_not_computed_again(photos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr(riba.Method, "version", property(lambda method: "the same"))
    command(photos, out, "--method", "edges")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "scene1.png.npz").unlink()
    made, plain = [], METHODS["edges"]

    @wraps(plain.function)
    def count(query):
        made.append(1)
        return plain.function(query)

    counted = replace(plain, function=count)
    monkeypatch.setitem(METHODS, "edges", counted)
    command(photos, out, "--method", "edges")
    assert len(made) == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(SystemExit):
        command(photos, out, "--method", "edges", "--label", "3")
    words = "holds results of other settings (class None there, 3 here): choose another folder"
    assert words in capsys.readouterr().err


def test_another_photo_of_the_same_name_is_explained_anew(wb, photos, tmp_path):
    out = tmp_path / "out"
    command(photos / "scene0.png", out, "--method", "edges")
    before = np.load(out / "scene0.png.npz")["map"]
    Image.fromarray(wb.test.scene(5).image).save(photos / "scene0.png")
    command(photos / "scene0.png", out, "--method", "edges")
    after = np.load(out / "scene0.png.npz")["map"]
    assert not np.allclose(before, after)
    expected = METHODS["edges"](wb, wb.test[5].image[None], [0])[0]
    np.testing.assert_allclose(after, expected, rtol=1e-5)
    (out / "scene0.png.npz").write_bytes(b"damaged")
    command(photos / "scene0.png", out, "--method", "edges")
    np.testing.assert_array_equal(np.load(out / "scene0.png.npz")["map"], after)


def test_another_seed_is_another_folder(photos, tmp_path, capsys):
    out = tmp_path / "out"
    command(photos / "scene0.png", out, "--method", "random")
    with pytest.raises(SystemExit):
        command(photos / "scene0.png", out, "--method", "random", "--seed", "1")
    assert "holds results of other settings (seed 0 there, 1 here)" in capsys.readouterr().err


def test_a_class_can_be_named(wb, photos, tmp_path):
    name = wb.class_names[7]
    for label, out in (("7", tmp_path / "a"), (name, tmp_path / "b")):
        command(photos / "scene0.png", out, "--method", "gradient", "--label", label)
        assert list(pd.read_csv(out / "maps.csv")["class"]) == [name]
    assert (tmp_path / "a" / "scene0.png.npz").read_bytes() == (
        tmp_path / "b" / "scene0.png.npz"
    ).read_bytes()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method", "relevance-ib"], "no method 'relevance-ib'; near matches: relevance-iba"),
        (["--model", "vgg17"], "no workbench called 'vgg17'; near matches: vgg"),
        (["--label", "fisch"], "no class 'fisch'; near matches: fish"),
        (["--label", "10"], "no class '10'"),
        (["--weights", "gone.safetensors"], "no weights at gone.safetensors"),
        (["--device", "nowhere"], "no device 'nowhere' on this machine"),
    ],
)
def test_mistakes_end_in_a_sentence(photos, tmp_path, capsys, words, told):
    with pytest.raises(SystemExit):
        command(photos, tmp_path / "out", *words)
    assert told in capsys.readouterr().err


def test_where_nothing_can_be_read_it_says_so(photos, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command(photos / "text.jpg", tmp_path / "out")
    assert "nothing could be explained: text.jpg" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(photos / "gone.jpg", tmp_path / "out")
    assert "no photo and no folder at" in capsys.readouterr().err


def test_a_network_of_torchvision_needs_photos_for_its_statistics(home, photos, tmp_path, capsys):
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save(get_model("resnet18").state_dict(), path)
    options = ["--model", "resnet18", "--weights", str(path)]
    with pytest.raises(SystemExit):
        command(photos, tmp_path / "none", *options)
    said = capsys.readouterr().err
    assert said.count("no statistics: fit them first") == 1
    assert "pass --reference FOLDER of ordinary photos" in said
    command(photos, tmp_path / "lrp", *options, "--method", "lrp-epsilon-plus")
    with pytest.warns(UserWarning, match=r"left out: text\.jpg"):  # into the folder that failed
        command(photos, tmp_path / "none", *options, "--reference", str(photos))
    settings = json.loads((tmp_path / "none" / "settings.json").read_text())
    assert settings["statistics"][1] == 2
    assert settings["model"] == fingerprint(networks.torchvision_network("resnet18", path))
    with np.load(tmp_path / "none" / "scene0.png.npz") as kept:
        assert kept["map"].shape == (224, 224)
        assert np.isfinite(kept["map"]).all()


def test_signed_maps_diverge():
    values = np.linspace(-1, 1, 100).reshape(10, 10)
    colours = plots.in_colour(values)
    assert colours[0, 0, 2] > colours[0, 0, 0]  # blue below zero
    assert colours[-1, -1, 0] > colours[-1, -1, 2]
    assert plots.in_colour(np.abs(values))[5, 0].max() < 0.1  # black at zero
    grey = plots.overlay(np.full((10, 10, 3), 0.5), np.zeros((10, 10)))
    np.testing.assert_allclose(grey, 0.5)


NETWORK = """
from riba.testbed.datasets import SCENES
from riba.testbed.networks import scenenet

def mine():
    return scenenet(), SCENES

def alone():
    return scenenet()
"""


def test_a_network_of_ones_own_and_several_photos(photos, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    out, model = tmp_path / "out", ["--model", "my_network:mine", "--layer", "features.14"]
    second = tmp_path / "scene0.png"  # of the same name as one in the folder
    Image.open(photos / "scene1.png").save(second)
    ask = [str(photos / "scene0.png"), str(second), "--out", str(out), "--method", "edges"]
    explain.main([*ask, *model])
    table = pd.read_csv(out / "maps.csv")
    assert table["photo"].nunique() == 2
    assert table["class"].str.startswith("class ").all()
    for words, message in (
        (["--model", "my_network:gone"], "--model takes package.module:function"),
        (["--model", "nowhere:mine"], "No module named 'nowhere'"),
        (["--model", "my_network:alone"], "name the bottleneck layer with --layer"),
        ([*model, "--method", "iba"], "pass --reference FOLDER of ordinary photos"),
    ):
        with pytest.raises(SystemExit):
            explain.main([*ask[:2], "--out", str(tmp_path / "other"), *words])
        assert message in capsys.readouterr().err


def test_a_console_of_another_encoding(tmp_path):
    Image.new("RGB", (140, 140), (90, 120, 30)).save(tmp_path / "猫.png")
    command = [sys.executable, "-m", "riba.explain", str(tmp_path), "--method", "edges"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "maps")],
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert rb"\u732b.png" in done.stdout
