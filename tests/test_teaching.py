"""The page for lecturers: its solutions are right, and what it points to is there."""

import ast
import inspect
import json
import re
from pathlib import Path

import pytest
import torch

import riba
from riba import checks, panels
from riba.compare import metrics

FOLDER = Path(__file__).parents[1] / "notebooks"
PAGE = (FOLDER / "teaching.md").read_text(encoding="utf-8")
HOMEWORK, EXERCISES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
CHECKERS = {
    name
    for name, thing in vars(checks).items()
    if inspect.isfunction(thing) and thing.__module__ == checks.__name__ and name[0] != "_"
}


def headings(text):
    return re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)


def slug(heading):
    """The anchor that GitHub and the site give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def run(block, names):
    exec(compile(block, "teaching.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def solutions():
    return run(EXERCISES, {})


def test_every_exercise_with_a_checker_has_a_solution():
    assert {f.name for f in ast.parse(EXERCISES).body if isinstance(f, ast.FunctionDef)} == CHECKERS


def test_the_last_line_of_the_solutions_asks_every_checker(solutions):
    last = ast.unparse(ast.parse(EXERCISES).body[-1])
    verdicts = eval(last, solutions)
    assert len(verdicts) == len(CHECKERS)
    assert all(verdicts)


@pytest.mark.parametrize("name", sorted(CHECKERS))
def test_a_checker_accepts_the_solution(solutions, name):
    verdict = getattr(checks, name)(solutions[name])
    assert verdict, verdict


def test_no_solution_asks_the_package():
    functions = [f for f in ast.parse(EXERCISES).body if isinstance(f, ast.FunctionDef)]
    assert not any("riba" in ast.unparse(function) for function in functions)


# --- homework ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def homework(home):
    """All reference solutions, run: their own assertions hold."""
    return run(HOMEWORK, {})


def test_the_largest_beta_that_fits_is_chosen(homework):
    choose = homework["choose_beta"]
    shares = {1.0: [1.0, 1.2, 0.95, 0.9], 5.0: [0.9, 0.95, 0.2, 0.1], 10.0: [0.9, 0.8, 0.2, 0.1]}
    kept = {beta: torch.tensor(values) for beta, values in shares.items()}
    assert choose(kept) == 5.0
    assert choose(kept, least=0.95) == 1.0
    with pytest.raises(ValueError, match="smaller"):
        choose({10.0: kept[10.0]})
    assert choose(homework["kept"]) in homework["kept"]


def test_the_useless_map_conserves_and_knows_only_the_total(homework):
    nats = torch.rand(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    maps = homework["useless"](nats, (16, 24))
    torch.testing.assert_close(maps.sum((1, 2)), nats.sum((1, 2, 3)))
    shapes = maps / maps.sum((1, 2), keepdim=True)
    torch.testing.assert_close(shapes, shapes[:1].expand_as(shapes))
    masks = homework["masks"]
    score = metrics.rank_accuracy(homework["maps"], masks).mean()
    assert score > masks.double().mean()  # as the conclusion says: chance does not catch it


def test_the_second_class_to_read_is_not_in_the_picture(homework):
    sample, wb = homework["sample"], homework["wb"]
    first, second = wb.predict(sample.image[None])[0].topk(2).indices.tolist()
    assert first == sample.label != second == homework["target"]
    assert homework["facts"].keys() == {"p open", "p through", "nats", "share on inactive units"}
    assert homework["facts"]["p through"] > homework["facts"]["p open"]
    assert homework["values"].sum().item() == pytest.approx(homework["facts"]["nats"], rel=1e-4)


@pytest.mark.parametrize("task", [1, 2, 3, 4])
def test_a_rubric_has_ten_points_and_a_conclusion(task):
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| **{task}. "))
    assert sum(int(points) for points in re.findall(r"\((\d)\)", row)) == 10
    assert re.search(rf"^\| {task} \| .{{100}}", PAGE, re.MULTILINE)
    assert f"\n# {task}\ndef " in HOMEWORK


# --- what the page points to ---------------------------------------------------------------------


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)\s]+)\)", PROSE)
    assert {f"{path.name}" for path in FOLDER.glob("0*.ipynb")} <= set(targets)
    anchors = {slug(heading) for heading in headings(PAGE)}
    for target in targets:
        path, _, anchor = target.partition("#")
        assert not path or (FOLDER / path).exists(), target
        assert not anchor or (not path and anchor in anchors), target


def sections():
    """Notebook and section of every mention such as ``02 *Try it*, *Which β?*``."""
    for number, names in re.findall(r"(?<!\d)(\d\d) ((?:\*[^*|]+\*(?:, )?)+)", PROSE):
        for name in re.findall(r"\*([^*]+)\*", names):
            yield number, name


def test_sections_that_are_named_are_in_their_notebook():
    assert len(set(sections())) >= 30
    for number, name in set(sections()):
        (path,) = FOLDER.glob(f"{number}_*.ipynb")
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        assert name in headings(text), f"{number} has no section {name!r}"


def test_names_of_the_package_exist():
    dotted = set(re.findall(r"`((?:riba|panels)\.[\w.]+)", PROSE)) - {"riba.checks.NAME"}
    assert {"panels.bottleneck", "panels.randomise", "riba.segmentation.unmasked"} <= dotted
    for name in dotted:
        thing = {"riba": riba, "panels": panels}[name.split(".")[0]]
        for part in name.split(".")[1:]:
            thing = getattr(thing, part)
    assert "capacity-product-squared" in riba.METHODS


def test_a_session_fills_its_ninety_minutes():
    plans = re.split(r"^\| minutes \|.*$", PAGE, flags=re.MULTILINE)[1:]
    assert len(plans) == 4
    for plan in plans:
        plan = plan.split("\n\n")[0]
        times = [(int(a), int(b)) for a, b in re.findall(r"^\| (\d+)–(\d+) \|", plan, re.MULTILINE)]
        edges = [0, *(end for _, end in times)]
        assert [start for start, _ in times] == edges[:-1]
        assert edges[-1] == 90


def test_the_page_is_short():
    assert len(PAGE.splitlines()) <= 380
