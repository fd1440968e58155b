"""The Python of README and recipes runs as it stands there."""

import re

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import riba
from riba.storage import DATA

PAGES = [DATA.parent / "README.md", DATA.parent / "notebooks" / "recipes.md"]
BLOCKS = [
    (path.stem, block)
    for path in PAGES
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos, masks, and what a block takes from the one before it."""
    path = tmp_path_factory.mktemp("recipes")
    draw = np.random.default_rng(0)
    for name in ("photos", "masks", "ordinary_photos"):
        (path / name).mkdir()
        for file in ("rex.png", *(f"{i}.png" for i in range(8 * (name == "ordinary_photos")))):
            pixels = draw.integers(0, 255, (96, 96, 3), dtype=np.uint8)
            mask = np.zeros((96, 96), np.uint8)
            mask[20:60, 20:60] = 255
            Image.fromarray(mask if name == "masks" else pixels).save(path / name / file)
    return path


@pytest.fixture(scope="module")
def names():
    """Names that a block may use: what it defines, those that follow have, too."""
    torch.manual_seed(0)
    return {"riba": riba, "model": torchvision.models.vgg11(weights=None).eval()}


def test_there_are_blocks():
    assert {page for page, _ in BLOCKS} == {"README", "recipes"}
    assert len(BLOCKS) >= 6


@pytest.mark.parametrize(
    "block", [b for _, b in BLOCKS if "data/voc" not in b], ids=lambda b: b[:40]
)
def test_a_block_runs(monkeypatch, folder, names, block):
    if "quantus" in block:
        pytest.importorskip("quantus")
    monkeypatch.chdir(folder)
    exec(block, names)
    riba.METHODS.pop("mine", None)
