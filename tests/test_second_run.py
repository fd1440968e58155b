"""Many small pictures: none is read twice without need, and the memory does not grow with them."""

import gc
import itertools
import os
import sys
import tracemalloc
import weakref
from dataclasses import replace
from functools import wraps

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from PIL import Image
from torch import nn

import riba
from riba.compare import evaluation
from riba.compare.evaluation import blocks, summarise
from riba.compare.evaluation.samples import SEEN
from riba.testbed import datasets, segmentation
from riba.testbed.datasets import Preparation

PREPARE = Preparation(16, 16, (0.5,) * 3, (0.25,) * 3)
COUNT = 20


@pytest.fixture(scope="module")
def wb():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(4, 5)).eval()
    return riba.Workbench(net, "0", None, [], [], [], tuple("abcde"), ("0",), "0", prepare=PREPARE)


def picture(folder, number, seed):
    """One picture of noise with a square for a mask."""
    draw = np.random.default_rng(seed)
    Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{number}.png")
    mask = np.zeros((16, 16), np.uint8)
    y, x = draw.integers(1, 9, 2)
    mask[y : y + 5, x : x + 5] = 255
    (folder / "masks").mkdir(exist_ok=True)
    Image.fromarray(mask).save(folder / "masks" / f"{number}.png")


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(COUNT):
        picture(folder, number, number)
    return folder


def photos(place, **labels):
    """The pictures of the folder, as another process would find them."""
    known = {str(number): number % 5 for number in range(COUNT)} | labels
    return segmentation.folder(place, place / "masks", PREPARE, known, tuple("abcde"))


@pytest.fixture
def reads(monkeypatch):
    """Names of the pictures that are read."""
    names, plain = [], datasets.read_photo

    @wraps(plain)
    def read(path, *options):
        names.append(path.stem)
        return plain(path, *options)

    monkeypatch.setattr(datasets, "read_photo", read)
    return names


def test_a_second_run_reads_no_picture(wb, place, tmp_path, reads):
    def run(samples, metrics=("mass_accuracy",), **options):
        reads.clear()
        return riba.evaluate(wb, ["gradient"], samples, metrics, **options)

    expected, out = run(photos(place)), {"out": tmp_path / "out"}
    first = run(photos(place), **out)
    assert len(reads) == 2 * COUNT  # to be known, and to be explained
    assert_frame_equal(first, expected)
    assert_frame_equal(run(photos(place), **out), expected)
    assert reads == []
    some = datasets.Chosen([(photos(place), number) for number in range(5)])
    assert_frame_equal(run(some[1:3], **out), run(some[1:3]))
    run(some[1:3], **out)
    assert reads == []
    more = run(photos(place), ("mass_accuracy", "rank_accuracy"), **out)
    assert len(reads) == COUNT
    assert_frame_equal(more, run(photos(place), ("mass_accuracy", "rank_accuracy")))
    (tmp_path / "out" / SEEN).write_bytes(b"[damaged")
    assert_frame_equal(run(photos(place), **out), expected)
    assert len(reads) == COUNT
    run(photos(place), **out)
    assert reads == []


def test_what_has_changed_is_read_and_measured_again(wb, place, tmp_path, reads):
    def run(samples, out=None):
        reads.clear()
        return riba.evaluate(wb, ["gradient"], samples, ["mass_accuracy"], out=out)

    out = tmp_path / "out"
    before = run(photos(place), out)
    picture(tmp_path, "new", 99)
    old = (place / "3.png").stat()
    (place / "3.png").write_bytes((tmp_path / "new.png").read_bytes())
    assert (place / "3.png").stat().st_size == old.st_size
    if sys.platform != "win32":  # which keeps no time of change beside
        os.utime(place / "3.png", ns=(old.st_atime_ns, old.st_mtime_ns))
    os.replace(tmp_path / "masks" / "new.png", place / "masks" / "4.png")
    after = run(photos(place), out)
    assert sorted(reads) == ["3", "3", "4", "4"]
    assert_frame_equal(after, run(photos(place)))
    changed = {sample.split("-")[0] for sample in differing(before, after)}
    assert changed == {"3", "4"}
    relabelled = run(photos(place, **{"7": 3}), out)
    assert sorted(reads) == ["7", "7"]
    assert set(differing(after, relabelled)) == {"7-d"}

    class Brighter(segmentation.Photos):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return replace(sample, image=sample.image + 1)

    own = Brighter(photos(place).entries, PREPARE, tuple("abcde"), segmentation.silhouette)
    assert_frame_equal(run(own, out), run(own))


def differing(before, after):
    """Samples of the second table whose rows are not all in the first."""
    keys = ["sample", "digest", "mask", "value"]
    both = after.merge(before[keys], how="left", on=keys, indicator=True)
    return both.loc[both["_merge"] == "left_only", "sample"].unique().tolist()


def test_what_was_refused_is_refused_again(wb, place, tmp_path):
    for metrics in (["mass_accuracy"], [evaluation.CONTRAST]) * 2:
        if metrics == [evaluation.CONTRAST]:
            with pytest.raises(ValueError, match="has one object only"):
                riba.evaluate(wb, ["gradient"], photos(place), metrics, out=tmp_path / "out")
        else:
            riba.evaluate(wb, ["gradient"], photos(place), metrics, out=tmp_path / "out")


def test_tables_that_are_stored_do_not_stay_in_memory(wb, place, tmp_path, monkeypatch):
    made, most = [], []
    plain = blocks.write_part

    def write(folder, frame, keys):
        plain(folder, frame, keys)
        made.append(weakref.ref(frame))
        gc.collect()
        most.append(sum(ref() is not None for ref in made))

    monkeypatch.setattr(blocks, "write_part", write)
    ask = {"out": tmp_path / "out", "batch": 2}
    gc.freeze()  # what earlier tests left need not be looked through at every part
    try:
        riba.evaluate(wb, ["gradient"], photos(place), ["mass_accuracy"], **ask)
    finally:
        gc.unfreeze()
    assert len(made) == COUNT / 2
    assert max(most) <= 2


def test_a_summary_of_two_thousand_pictures_is_small():
    names = [f"picture-{number}" for number in range(2000)]
    rows = itertools.product(["gradient"], ["mass_accuracy"], ["banded", "strict"], names)
    table = pd.DataFrame(rows, columns=["method", "metric", "mask", "sample"])
    table["value"] = np.random.default_rng(0).random(len(table))
    tracemalloc.start()
    summary = summarise(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(summary["n"]) == {2000}
    assert peak < 80e6
