"""What is quoted of the evaluation is what its committed tables say."""

import pandas as pd
import pytest

from riba.storage import DATA
from tools import pages


@pytest.fixture(scope="module")
def worlds():
    return [pages.World(prefix) for prefix in pages.WORLDS]


@pytest.mark.parametrize("name", ["verdict", "headline"])
def test_a_text_is_that_of_the_tables_wherever_it_stands(worlds, name):
    text = getattr(pages, name)(*worlds)
    assert (DATA / f"{name}.md").read_text(encoding="utf-8") == text + "\n"
    assert f"<!-- {name} -->\n{text}\n<!-- end" in pages.README.read_text(encoding="utf-8")


def test_the_table_of_all_methods_is_that_of_the_summaries(worlds):
    text = (DATA / "results.md").read_text(encoding="utf-8")
    for world in worlds:
        assert pages.results_table(world.summary) in text


def test_words_follow_the_numbers(monkeypatch, worlds):
    scenes, photos = worlds
    key = ("relevance-iba", "iba", "allocation_area", "banded")
    for difference, p, said in (
        (-0.1, 0.001, "ahead (+0.100)"),
        (0.1, 0.001, "behind (-0.100)"),
        (-0.1, 0.02, "level (+0.100)"),
    ):
        table = scenes.compared.copy()
        table.loc[key, ["difference", "p_holm"]] = difference, p
        monkeypatch.setattr(scenes, "compared", table)
        text, word = pages.verdict(scenes, photos), said.split()[0]
        assert f"at the same layer: area | {said} |" in text
        where = "both" if photos.verdict(*key[:2]).startswith(word) else "drawn scenes"
        assert f"as published is {word} on {where}" in text


def test_a_world_without_a_method_is_an_error(worlds):
    with pytest.raises(KeyError):
        worlds[0].mean("no-such-method")


def test_a_page_is_changed_between_its_marks_only(tmp_path):
    page = tmp_path / "page.md"
    start, end = "<!-- verdict -->", "<!-- end of verdict -->"
    page.write_text(f"# Ωne\n\n{start}\nold\n\n{end}\nafter | it\n", encoding="utf-8")
    for text in ("| a |", "| a |\n| b |"):
        pages.fill_in(page, "verdict", text)
        whole = page.read_text(encoding="utf-8")
        assert whole == f"# Ωne\n\n{start}\n{text}\n{end}\nafter | it\n"
    with pytest.raises(ValueError, match=r"page\.md has no place for the headline"):
        pages.fill_in(page, "headline", "text")


def test_names_are_listed():
    assert pages.listed([]) == "none"
    assert pages.listed(["a"]) == "a"
    assert pages.listed(["a", "b", "c"]) == "a, b and c"


SUMMARY = ["method", "metric", "mask", "mean", "low", "high", "n"]
HEADLINE = {
    "allocation area": ("allocation_area", "banded"),
    "strict": ("allocation_area", "strict"),
    "rank accuracy": ("rank_accuracy", "banded"),
    "mass accuracy": ("mass_accuracy", "banded"),
    "mass, strict": ("mass_accuracy", "strict"),
    "two-object contrast": ("two_object_contrast", "banded"),
}


def test_the_results_table_has_the_best_first():
    rows = [
        (method, metric, mask, mean + place / 100, mean + place / 100 - 0.02, mean + 0.03, n)
        for method, mean, n in (("iba", 0.4, 50), ("edges", 0.2, 7), ("oracle", 0.6, 50))
        for place, (metric, mask) in enumerate([*HEADLINE.values(), ("deletion", "none")])
    ]
    rows = [(*row[:5], 2 * row[3] - row[4], row[6]) for row in rows]
    text = pages.results_table(pd.DataFrame(rows, columns=SUMMARY))
    assert text.splitlines() == [
        f"| method | {' | '.join(HEADLINE)} | scenes |",
        "|---|---|---|---|---|---|---|---|",
        "| `oracle` | 0.600 ± 0.020 | 0.610 ± 0.020 | 0.620 ± 0.020 | 0.630 ± 0.020 "
        "| 0.640 ± 0.020 | 0.650 ± 0.020 | 50 |",
        "| `iba` | 0.400 ± 0.020 | 0.410 ± 0.020 | 0.420 ± 0.020 | 0.430 ± 0.020 "
        "| 0.440 ± 0.020 | 0.450 ± 0.020 | 50 |",
        "| `edges` | 0.200 ± 0.020 | 0.210 ± 0.020 | 0.220 ± 0.020 | 0.230 ± 0.020 "
        "| 0.240 ± 0.020 | 0.250 ± 0.020 | 7 |",
    ]


def test_what_was_not_measured_is_left_blank():
    summary = pd.DataFrame(
        [
            ("iba", "mass_accuracy", "strict", 0.5, 0.4, 0.6, 9),
            ("edges", "allocation_area", "banded", 0.2, 0.1, 0.3, 7),
        ],
        columns=SUMMARY,
    )
    assert pages.results_table(summary).splitlines()[2:] == [
        "| `edges` | 0.200 ± 0.100 | – | – | – | – | – | 7 |",
        "| `iba` | – | – | – | – | 0.500 ± 0.100 | – | 9 |",
    ]
