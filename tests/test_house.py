"""The rooms of the package: imports go one way, and importing it is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import riba
from tools import lines

PACKAGE = Path(riba.__file__).parent
FLOORS = (
    {"storage", "progress"},
    {"method"},
    {"testbed"},
    {"workbench"},
    {"compare"},
    {"show"},
    {"explain", "evaluation", "checks"},
)
"""From the ground up: a room imports from its own floor and from those below."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MOST_LINES = {"method": 2059, "testbed": 1301, "compare": 1558, "show": 1290, "beside them": 697}
"""Lines of code of each room, as they are: they may fall, and not rise."""
PUBLIC = (
    *("load", "Workbench", "FeatureStatistics", "InformationBottleneck", "RelevanceIBA"),
    *("METHODS", "evaluate", "metrics", "plots", "panels", "scenes", "segmentation", "rules"),
    *("relevance", "datasets", "photos", "trust", "checks", "evaluation", "InputIBA"),
)


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path):
    """Rooms that a module imports from, wherever in its text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if "riba." in name.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "riba":
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else [name.name for name in node.names]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_imports_go_down(path):
    room = room_of(path)
    if room == "__init__":
        return
    for other in rooms_imported(path):
        assert FLOOR[other] <= FLOOR[room], f"{room} must not import {other}"
        assert other == room or FLOOR[other] < FLOOR[room]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_where_users_type_them(name):
    assert getattr(riba, name) is not None
    assert name in dir(riba)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        riba.nothing  # noqa: B018


def test_importing_is_light():
    heavy = ("captum", "pandas", "matplotlib", "scipy.stats", "seaborn", "timm")
    code = f"import sys, riba.method.relevance; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_lines_are_counted_by_room():
    counts = lines.rooms()
    assert set(counts) == set(MOST_LINES)
    for room, count in counts.items():
        assert count <= MOST_LINES[room], f"{room} grows: delete before you add"
