"""The notebooks as committed: executed, small, readable, and their teaching code still true."""

import ast
import itertools
import json
import re
from pathlib import Path

import nbformat
import pytest
import torch
from nbconvert import HTMLExporter, SlidesExporter
from torch import nn
from zennit.rules import AlphaBeta, Epsilon, ZPlus

import riba
from riba.compare import metrics
from riba.method import bottleneck, rules

FOLDER = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
APPENDIX = ["10_what_was_tried"]
"""Has no exercises."""
EVERY = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
LECTURED = pytest.mark.parametrize("path", PATHS[:8], ids=lambda path: path.stem)
"""Those of which ``make slides`` makes slides."""


def cells(path, kind):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def functions(name):
    """The functions that a notebook defines, without running the notebook."""
    (path,) = FOLDER.glob(f"{name}_*.ipynb")
    found = {"torch": torch}
    for cell in cells(path, "code"):
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.FunctionDef):
                exec(compile(ast.Module([node], []), path.name, "exec"), found)
    return found


@EVERY
def test_notebook_is_valid_and_executed(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    counts = [cell.execution_count for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1))
    assert any("image/png" in o.get("data", {}) for c in cells(path, "code") for o in c.outputs)


@EVERY
def test_notebook_leaves_still_outputs_only(path):
    assert path.stat().st_size <= 2_000_000
    for cell in cells(path, "code"):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


@EVERY
def test_as_a_web_page_every_panel_is_a_picture(path):
    page, _ = HTMLExporter().from_filename(path)
    assert "model not found" not in page
    assert "widget-view" not in page
    for cell in cells(path, "code"):
        if cell.source.startswith("panels."):
            (output,) = cell.outputs
            assert output.data["image/png"][:60] in page


def test_notebooks_are_small_together():
    assert sum(path.stat().st_size for path in PATHS) <= 12_000_000


@EVERY
def test_a_cell_fits_a_screen(path):
    for cell in cells(path, "code"):
        assert len(cell.source.splitlines()) <= 25, cell.source[:80]


@EVERY
def test_a_notebook_opens_and_closes_as_all_do(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    for part in ("**You will learn**", "**You need**", "**Run time**", "glossary.md"):
        assert part in cells(path, "markdown")[0].source, part
    exercises = ("## Exercises",) * (path.stem not in APPENDIX)
    for part in (*exercises, "## What to distrust", "## References", "redict"):
        assert part in text, part


@EVERY
def test_links_lead_somewhere(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert target.startswith("http") or (FOLDER / target).exists(), target


def defined_in(everything):
    """What a notebook imports and defines, without running the rest of its cells."""
    names = {}
    for cell in everything:
        if cell.cell_type == "code" and "riba.checks." not in cell.source:
            body = ast.parse(cell.source).body
            kept = [n for n in body if isinstance(n, ast.Import | ast.ImportFrom | ast.FunctionDef)]
            exec(compile(ast.Module(kept, []), "cell", "exec"), names)
    return names


@EVERY
def test_solutions_pass_their_checkers(path):
    everything = nbformat.read(path, as_version=4).cells
    solved = 0
    for cell, following in itertools.pairwise(everything):
        call = re.search(r"riba\.checks\.(\w+)\((\w+)\)", cell.source)
        if cell.cell_type != "code" or not call:
            continue
        checker, name = getattr(riba.checks, call[1]), call[2]
        unfinished = {"torch": torch}
        exec(cell.source[: call.start()], unfinished)
        assert not checker(unfinished[name])
        solution = defined_in(everything)
        exec(re.search(r"```python\n(.*?)```", following.source, re.DOTALL)[1], solution)
        verdict = checker(solution[name])
        assert verdict, verdict
        solved += 1
    assert solved >= (path.stem not in APPENDIX)


def test_figures_belong_to_a_notebook_and_carry_their_parameters():
    figures = FOLDER.parent / "figures"
    for path in sorted(figures.glob("*.png")):
        assert list(FOLDER.glob(f"{path.stem[:2]}_*.ipynb"))
        assert path.with_suffix(".svg").exists()
        note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        assert note["caption"].endswith(".")
        assert note["parameters"]
        assert note["versions"]


# --- slides ---------------------------------------------------------------------------------------


def pictured(cell):
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def caption(cells, index):
    """The cell that says what a figure shows: below it, or, for some panels, above; or none."""
    below = next(cell for cell in cells[index:] if cell.cell_type == "markdown")
    if below.source.startswith(("**Figure", "**Panel")):
        return below
    above = cells[index - 1]
    return above if above.source.split("\n\n")[-1].startswith("**Panel") else None


@LECTURED
def test_slides_show_figures_with_captions_and_no_solution(path):
    cells = nbformat.read(path, as_version=4).cells
    untyped = [cell.id for cell in cells if "slide_type" not in cell.metadata.get("slideshow", {})]
    assert not untyped
    site = FOLDER.parent / "site"
    exporter = SlidesExporter(template_name="slides", extra_template_basedirs=[str(site)])
    page, _ = exporter.from_filename(path)
    assert "<details" not in page
    slides = [part for part in re.split(r"</?section[^>]*>", page)[1:-1] if part.strip()]
    assert len(slides) >= 6
    ids = [re.findall(r'id="cell-id=(cell-\d+)"', slide) for slide in slides]
    number = {cell: index for index, found in enumerate(ids) for cell in found}
    for index, cell in enumerate(cells):
        if pictured(cell):
            assert cell.id in number
            words = caption(cells, index) or cell
            shared = pictured(cells[index + 1])  # two figures, one caption: the first goes before
            assert number[words.id] - number[cell.id] in range(1 + shared), cell.id


# --- the maths on the page is the maths of the package --------------------------------------------


def test_01_rank_accuracy():
    by_hand = functions("01")["rank_accuracy"]
    generator = torch.Generator().manual_seed(0)
    for levels in (3, 1000):
        values = torch.randint(0, levels, (9, 9), generator=generator).double()
        mask = torch.rand(9, 9, generator=generator) > 0.6
        expected = metrics.rank_accuracy(values[None], mask[None])[0]
        assert by_hand(values, mask).item() == pytest.approx(expected.item())


def test_02_capacity():
    by_hand = functions("02")["kl"]
    r, mean = torch.randn(2, 3, 4, 4), torch.randn(3, 4, 4)
    std, lambda_ = torch.rand(3, 4, 4) + 0.1, torch.rand(2, 3, 4, 4) * 0.99
    expected = bottleneck.capacity(r, mean, std, lambda_)
    torch.testing.assert_close(by_hand((r - mean) / std, lambda_), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("z_plus", ZPlus()),
        ("epsilon", Epsilon(0.25)),
        ("gamma", rules.Gamma(0.25)),
        ("alpha_beta", AlphaBeta(2, 1)),
    ],
)
def test_04_rules(name, rule):
    torch.manual_seed(0)
    layer, x, above = nn.Linear(7, 3, bias=False), torch.rand(7), torch.rand(3)
    by_hand = functions("04")[name](x[:, None] * layer.weight.detach().T, above)
    theirs = rules.hand_down(rule, layer, x[None], above[None])[0]
    torch.testing.assert_close(by_hand, theirs, rtol=1e-3, atol=1e-4)
